"""Prints the include directory of the PyPI package nlohmann-json, or nothing."""

import importlib.metadata
import pathlib

try:
    files = importlib.metadata.files("nlohmann-json") or []
except importlib.metadata.PackageNotFoundError:
    files = []
for file in files:
    if file.as_posix().endswith("nlohmann/json.hpp"):
        print(pathlib.Path(str(file.locate())).resolve().parent.parent)
        break
