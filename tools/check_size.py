"""Fails when a file outgrows its budget, and prints the total."""

import pathlib
import sys

# A file may be larger for a reason, which stands here.
EXCEPTIONS: dict[str, str] = {}


def budget(path: pathlib.Path) -> int:
    if "tests" in path.parts:
        return 500
    if path.suffix == ".h":
        return 200
    return 400 if path.suffix in {".cc", ".cu"} else 500


def main() -> int:
    root = pathlib.Path(__file__).resolve().parent.parent
    folders = ("cpp", "cuda", "python", "tests", "bench", "tools")
    total: dict[str, int] = {}
    problems = []
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix not in {".h", ".cc", ".cu", ".cuh", ".py"}:
                continue
            num_lines = len(path.read_text().splitlines())
            total[folder] = total.get(folder, 0) + num_lines
            limit = budget(path.relative_to(root))
            if num_lines > limit and name not in EXCEPTIONS:
                problems.append(f"{name}: {num_lines} lines, budget {limit}")
    print("lines: " + ", ".join(f"{folder} {count}" for folder, count in total.items()))
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
