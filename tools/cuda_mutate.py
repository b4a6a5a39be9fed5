"""Removes one barrier of the CUDA kernels at a time; reports the removals that no test notices.

    python tools/cuda_mutate.py --build build/mutants --write cuda/barriers.txt \\
        --tests cuda_rows cuda_verify cuda_collectives

Each mutant is built into the test binaries forerun_<test>_<variant>_test that hold the file, on the
emulated GPU: first those of the race variant, then of the plain one. A vote of a barrier becomes
its argument. The build directory must be configured with -DFORERUN_BUILD_TESTS=ON. Sources are
restored afterwards: run it in a checkout of its own. A test compares cuda/barriers.txt with the
sources. A barrier that no test notices is superfluous, or a test is missing; a test that does not
end in time has noticed nothing yet. What fails for another reason than the removal, such as a
compiler without memory, ends the survey.
"""

import argparse
import hashlib
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mutant_tests import NOT_ENDED, builds, failure_in

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLUMNS = "# file, number of the barrier in it, barrier: what notices its removal"
BARRIER = re.compile(r"\b__sync(?:threads|warp)(?:_count|_and|_or)?\(")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
VARIANTS = ("race", "plain")
TIMEOUT_S = 300
NOT_NOTICED = "NOT NOTICED"


class Barrier(NamedTuple):
    path: pathlib.Path
    number: int  # in its file, from 1
    begin: int
    end: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT).as_posix()} {self.number} {self.text}"

    def removed_from(self, source: str) -> str:
        """The source without the barrier; of a vote its argument stays, as (predicate)."""
        name, _, arguments = self.text.partition("(")
        stays = f"({arguments}" if name.count("_") > 2 else "static_cast<void>(0)"
        return source[: self.begin] + stays + source[self.end :]


def find_barriers(path: pathlib.Path, source: str) -> Iterator[Barrier]:
    code = COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), source)
    for number, match in enumerate(BARRIER.finditer(code), start=1):
        end, depth = match.end(), 1
        while depth > 0:
            depth += (code[end] == "(") - (code[end] == ")")
            end += 1
        yield Barrier(path, number, match.start(), end, source[match.start() : end])


def kernel_files() -> list[pathlib.Path]:
    files = [*(ROOT / "cuda").rglob("*.cu"), *(ROOT / "cuda").rglob("*.cuh")]
    return sorted(file for file in files if "emulation" not in file.parts)


def all_barriers(files: Iterable[pathlib.Path]) -> list[Barrier]:
    return [barrier for file in files for barrier in find_barriers(file, file.read_text())]


class Tests:
    """The test binaries, and which of their contents are known to pass."""

    def __init__(self, build: pathlib.Path, names: list[str]) -> None:
        self.build = build
        self.runs = [(name, variant) for variant in VARIANTS for name in names]
        self.sound: set[bytes] = set()

    def failure(self, mutated: pathlib.Path | None = None) -> str:
        """How the first of them that fails does; nothing if none does. Throws SurveyError."""
        return next(filter(None, (self.failure_of(*run, mutated) for run in self.runs)), "")

    def failure_of(self, test: str, variant: str, mutated: pathlib.Path | None) -> str:
        target = f"forerun_{test}_{variant}_test"
        if not builds(self.build, target, mutated):
            return "does not compile"
        folder = self.build / "tests" / "cuda"
        binary = next(path for path in folder.rglob(target) if path.is_file())
        digest = hashlib.sha256(binary.read_bytes()).digest()
        if digest in self.sound:  # a binary that does not hold what was removed
            return ""
        if failure := failure_in(binary, TIMEOUT_S):
            return f"{variant} {test}: {failure}"
        self.sound.add(digest)
        return ""


def survey(barriers: list[Barrier], notice: Callable[[pathlib.Path], str]) -> dict[Barrier, str]:
    """What notices the removal of each barrier, or NOT_NOTICED."""
    noticed = {}
    for barrier in barriers:
        source = barrier.path.read_text()
        barrier.path.write_text(barrier.removed_from(source))
        try:
            noticed[barrier] = notice(barrier.path) or NOT_NOTICED
        finally:
            barrier.path.write_text(source)
        print(f"{barrier}: {noticed[barrier]}", flush=True)
    return noticed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="default: all kernels of cuda/")
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--tests", nargs="+", required=True, help="as cuda_rows")
    parser.add_argument("--write", type=pathlib.Path, help="a file that keeps the result")
    options = parser.parse_args()
    files = [file.resolve() for file in options.files] or kernel_files()
    tests = Tests(options.build, options.tests)
    if failure := tests.failure():
        raise SystemExit(f"the tests fail before anything is removed: {failure}")
    noticed = survey(all_barriers(files), tests.failure)
    survivors = [barrier for barrier, by in noticed.items() if by == NOT_NOTICED]
    endless = [barrier for barrier, by in noticed.items() if by.endswith(NOT_ENDED)]
    print(f"{len(survivors)} of {len(noticed)} removals are not noticed")
    print(f"{len(endless)} of {len(noticed)} removals keep a test from its end ({TIMEOUT_S} s)")
    if options.write:
        lines = [f"{barrier}: {by}" for barrier, by in noticed.items()]
        options.write.write_text("\n".join([COLUMNS, *lines]) + "\n")
    return 1 if survivors or endless else 0


if __name__ == "__main__":
    sys.exit(main())
