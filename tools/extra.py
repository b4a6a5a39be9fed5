"""Prints the requirements of one extra of pyproject.toml, to install them without the package."""

import pathlib
import re
import sys

text = pathlib.Path("pyproject.toml").read_text()
match = re.search(rf"^{re.escape(sys.argv[1])} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
if match is None:
    sys.exit(f"pyproject.toml has no extra '{sys.argv[1]}'")
print(" ".join(f"'{name}'" for name in re.findall(r'"([^"]+)"', match.group(1))))
