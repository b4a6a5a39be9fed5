"""Runs the embedding program on a tiny model directory: run.py PROGRAM."""

import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from tiny_model import write_tiny_model

with tempfile.TemporaryDirectory() as folder:
    model = write_tiny_model(pathlib.Path(folder) / "model")
    subprocess.run([sys.argv[1], str(model)], check=True, timeout=120)
