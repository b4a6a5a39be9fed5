"""Runs the embedding programs on a tiny model directory: run.py EMBED GENERATE."""

import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from tiny_model import write_tiny_model

embed, generate = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    model = write_tiny_model(pathlib.Path(folder) / "model")
    subprocess.run([embed, str(model)], check=True, timeout=120)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([generate, *arguments], capture_output=True, text=True, timeout=120)

    done = run(str(model), "5", "6", "7")
    ids = [int(line) for line in done.stdout.split()]
    assert done.returncode == 0, done.stderr
    assert 1 <= len(ids) <= 32, ids
    assert "tokens per target pass" in done.stderr, done.stderr
    missing = run(str(model / "missing"), "5")
    assert (missing.returncode, missing.stdout) == (1, ""), missing
    assert "missing" in missing.stderr, missing.stderr
    assert run(str(model)).returncode == 2
print("the program of docs/embedding.md works")
