"""Writes the project that a page shows into a directory: extract.py PAGE DIRECTORY."""

import pathlib
import re
import sys

page = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
directory = pathlib.Path(sys.argv[2])
directory.mkdir(parents=True, exist_ok=True)
for language, name in (("cmake", "CMakeLists.txt"), ("cpp", "generate.cc")):
    (block,) = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    (directory / name).write_text(block, encoding="utf-8")
