"""Runs clang-tidy over cpp/ and checks that every header compiles alone.

A header whose source includes it first is compiled alone with that source; the others go through
clang-tidy by themselves. What passed is remembered in build/check_cpp by the contents of the file,
of all that it includes and of .clang-tidy, so a run looks at what changed.

    python tools/check_cpp.py [FILE...]     # default: all sources and headers of cpp/
"""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PASSED = ROOT / "build" / "check_cpp"
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
FLAGS = ["-std=c++20", "-I.", "-Icpp/include"]
# By the end of a file's name: the instruction set that cmake/isa_sources.cmake enables for it.
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = ["-mavx512f", *_AVX2]
ISA_FLAGS = {
    "_avx2": _AVX2,
    "_avxvnni": [*_AVX2, "-mavxvnni"],
    "_avx512": _AVX512,
    "_avx512vnni": [*_AVX512, "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
    "_avx512bf16": [*_AVX512, "-mavx512bw", "-mavx512vl", "-mavx512bf16"],
}


@functools.cache
def includes(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The files of this repository that a file includes, in order."""
    names = INCLUDE.findall(path.read_text(encoding="utf-8"))
    found = [ROOT / "cpp" / "include" / n if n.startswith("forerun/") else ROOT / n for n in names]
    return tuple(file for file in found if file.is_file())


def closure(path: pathlib.Path) -> list[pathlib.Path]:
    """A file and all files of this repository that it includes."""
    found, queue = {path}, [path]
    while queue:
        new = set(includes(queue.pop())) - found
        found |= new
        queue += new
    return sorted(found)


def stamp(path: pathlib.Path, flags: list[str]) -> pathlib.Path:
    """The file that exists once `path` has passed as it is now."""
    digest = hashlib.sha256(f"{path.relative_to(ROOT)} {flags}".encode())
    for file in [ROOT / ".clang-tidy", *closure(path)]:
        digest.update(file.read_bytes())
    return PASSED / digest.hexdigest()


def is_compiled_by_source(header: pathlib.Path) -> bool:
    source = header.with_suffix(".cc")
    return source.is_file() and includes(source)[:1] == (header,)


def json_include() -> list[str]:
    command = [sys.executable, "cmake/find_json_header.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return ["-isystem", found.stdout.strip()] if found.stdout.strip() else []


def check(path: pathlib.Path, tidy: str, flags: list[str]) -> str:
    """What clang-tidy says of a file; empty if it passes."""
    flags = flags + next((ISA_FLAGS[end] for end in ISA_FLAGS if path.stem.endswith(end)), [])
    passed = stamp(path, flags)
    if passed.exists():
        return ""
    command = [tidy, "--quiet", str(path.relative_to(ROOT)), "--", "-xc++", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        passed.touch()
        return ""
    return done.stdout + done.stderr


def main() -> int:
    beside_python = pathlib.Path(sys.executable).parent / "clang-tidy"
    tidy = str(beside_python) if beside_python.exists() else shutil.which("clang-tidy")
    if tidy is None:
        raise SystemExit("clang-tidy is not installed: pip install clang-tidy")
    given = {pathlib.Path(name).resolve() for name in sys.argv[1:]}
    files = [*sorted((ROOT / "cpp").rglob("*.cc")), *sorted((ROOT / "cpp").rglob("*.h"))]
    files = [file for file in files if not given or file in given]
    files = [file for file in files if file.suffix == ".cc" or not is_compiled_by_source(file)]
    PASSED.mkdir(parents=True, exist_ok=True)
    flags = FLAGS + json_include()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda file: check(file, tidy, flags), files)
        problems = [found for found in results if found]
    print("".join(problems) or f"clang-tidy: {len(files)} files, nothing found")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
