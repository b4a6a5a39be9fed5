"""Fails on words that the glossary replaces, and on lines of the docs above 120 columns.

Names count as well: num_guesses and RowsBehind hold a word each. docs/glossary.md has the terms to
write instead.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".py", ".pyi", ".md", ".toml", ".txt", ".cmake"}
MAX_COLUMNS = 120  # of docs

# What not to write, and what to write instead.
WORDS = {
    r"behind": "after, following",
    r"guess(es|ed|ing)?": "draft token, candidate",
    r"who(m)?ever": "the subject's own name",
    r"told by": "detected from, given by",
    r"stands?": "is",
    r"places?": "offset, position, index, slot, cursor",
    r"taps?": "auxiliary hidden states",
    r"guides?": "prior draft",
    r"price[sd]?|pric(y|ing)": "cost model, cost",
    r"pays?|paid": "is expected to save time",
}
# What else these words mean: matched before them, and left alone.
ALLOWED = re.compile(
    r"in[ -_]place|decimal places?|stands? for|(leaves?|left) (\w+ )?behind"
    r"|unit price|council paid",
    re.IGNORECASE,
)
# Files that hold such words for a reason.
EXCEPTIONS = {
    "tools/check_words.py": "lists them",
    "tests/python/test_tools.py": "tests the tool",
}

FORBIDDEN = {re.compile(rf"\b({word})\b"): instead for word, instead in WORDS.items()}
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def problems_of(line: str) -> list[str]:
    """What a line says that it should say otherwise."""
    text = ALLOWED.sub(" ", CAMEL.sub(" ", line).replace("_", " ")).lower()
    return [
        f"'{found.group()}': write {instead}"
        for pattern, instead in FORBIDDEN.items()
        if (found := pattern.search(text))
    ]


def is_checked(name: str) -> bool:
    path = pathlib.PurePath(name)
    if name in EXCEPTIONS:
        return False
    return path.suffix in SUFFIXES or path.name == "Makefile"


def main() -> int:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    problems = []
    for name in filter(is_checked, listed.stdout.splitlines()):
        text = (ROOT / name).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            problems += [f"{name}:{number}: {problem}" for problem in problems_of(line)]
            if name.endswith(".md") and len(line) > MAX_COLUMNS:
                problems.append(f"{name}:{number}: {len(line)} columns, at most {MAX_COLUMNS}")
    print("\n".join(problems) or "words: those of docs/glossary.md")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
