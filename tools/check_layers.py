"""Fails when an include points up or sideways in the layer list of docs/architecture.md."""

import pathlib
import re
import sys

LEVELS = {
    "forerun": 0,
    "util": 1,
    "tensor": 2,
    "kv": 2,
    "index": 2,
    "draft_tree": 2,
    "sampling": 3,
    "verify": 4,
    "ops": 3,
    "model": 4,
    "draft": 5,
    "sched": 5,
    "engine": 6,
}
INCLUDE = re.compile(r'^\s*#include "(?:cpp/(\w+)/|(forerun)/)', re.MULTILINE)


def main() -> int:
    root = pathlib.Path(__file__).resolve().parent.parent
    num_includes = 0
    problems = []
    for path in sorted((root / "cpp").rglob("*")):
        if path.suffix not in {".h", ".cc"}:
            continue
        layer = "forerun" if "include" in path.parts else path.relative_to(root / "cpp").parts[0]
        for match in INCLUDE.finditer(path.read_text()):
            target = match.group(1) or match.group(2)
            num_includes += 1
            if target not in LEVELS:
                problems.append(f"{path.relative_to(root)}: unknown layer '{target}'")
            elif target != layer and LEVELS[target] >= LEVELS[layer]:
                problems.append(
                    f"{path.relative_to(root)}: {layer} (level {LEVELS[layer]}) includes "
                    f"{target} (level {LEVELS[target]})"
                )
    print("\n".join(problems) or f"layers: {num_includes} includes, all point down")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
