"""Changes one comparison or constant of the C++ sources at a time; reports what no test notices.

    python tools/mutate.py --seed 17 --count 30 --build build/mutants cpp/verify cpp/kv

Each mutant is built into forerun_<layer>_test, and where that one passes also into each test binary
of --then. The build directory must be configured with -DFORERUN_BUILD_TESTS=ON. Sources are
restored afterwards: run it in a checkout of its own. A survivor either computes the same as the
original, or a test is missing.
"""

import argparse
import pathlib
import random
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from mutant_tests import SurveyError, builds, failure_in

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
# Operators are written between spaces, template brackets are not.
SITE = re.compile(r"(?<= )(?:<=|>=|==|!=|<|>)(?= )|(?<![\w.\"])\d+(?:\.\d+f?)?(?![\w.\"])")
SKIPPED = re.compile(r"^\s*(?:#|//|static_assert|template|FORERUN_CHECK|\"|throw )")
TIMEOUT_S = 300


class Mutant(NamedTuple):
    path: pathlib.Path
    line: int  # from 1
    column: int  # from 0
    old: str
    new: str

    def __str__(self) -> str:
        position = f"{self.path.relative_to(ROOT)}:{self.line}:{self.column + 1}"
        return f"{position}: {self.old} -> {self.new}"

    def apply(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        line = lines[self.line - 1]
        end = self.column + len(self.old)
        lines[self.line - 1] = line[: self.column] + self.new + line[end:]
        return "".join(lines)


def mutate(token: str) -> str:
    if token in COMPARISONS:
        return COMPARISONS[token]
    if "." not in token:
        return str(int(token) + 1)
    number = token.removesuffix("f")
    return str(float(number) * 2 + 1) + token[len(number) :]


def find_mutants(folder: pathlib.Path) -> Iterator[Mutant]:
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".h", ".cc"}:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if SKIPPED.match(line):
                continue
            code = line.split("//")[0]
            for match in SITE.finditer(code):
                if code[: match.start()].count('"') % 2 == 0:
                    token = match.group()
                    yield Mutant(path, number, match.start(), token, mutate(token))


def failure_of(build: pathlib.Path, layer: str, mutated: pathlib.Path | None) -> str:
    """How the layer's tests fail, or nothing."""
    target = f"forerun_{layer}_test"
    if not builds(build, target, mutated):
        return "does not compile"
    failure = failure_in(build / "tests" / "cpp" / layer / target, TIMEOUT_S)
    return failure and f"{layer}: {failure}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", type=pathlib.Path, help="as cpp/kv")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--then", nargs="*", default=["engine"], help="layers that use the others")
    options = parser.parse_args()
    mutants = [m for folder in options.folders for m in find_mutants(folder.resolve())]
    chosen = random.Random(options.seed).sample(mutants, options.count)
    layers = {m.path.relative_to(ROOT / "cpp").parts[0] for m in chosen} | set(options.then)
    for layer in sorted(layers):
        if failure := failure_of(options.build, layer, None):
            raise SystemExit(f"the tests fail before anything is changed: {failure}")
    num_survivors = num_unknown = 0
    for mutant in chosen:
        text = mutant.path.read_text()
        own = mutant.path.relative_to(ROOT / "cpp").parts[0]
        mutant.path.write_text(mutant.apply(text))
        try:
            tested = dict.fromkeys([own, *options.then])
            failures = (failure_of(options.build, layer, mutant.path) for layer in tested)
            killer = next(filter(None, failures), "")
        except SurveyError as error:
            num_unknown += 1
            killer = f"UNKNOWN: {error}"
        finally:
            mutant.path.write_text(text)
        num_survivors += not killer
        print(f"{mutant}: {killer or 'SURVIVES'}", flush=True)
    of = f"{len(chosen)} of {len(mutants)} mutants, seed {options.seed}"
    print(f"{num_survivors} survive, {num_unknown} could not be built or run, of {of}")
    return 1 if num_survivors or num_unknown else 0


if __name__ == "__main__":
    sys.exit(main())
