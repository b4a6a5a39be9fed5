"""Runs every benchmark binary of a folder in its smallest size, so that none of them rots."""

import pathlib
import subprocess
import sys
import tempfile

from tiny_model import write_tiny_model

# These take a model directory.
NEEDS_MODEL = {"bench_engine", "bench_profile"}

binaries = sorted(path for path in pathlib.Path(sys.argv[1]).glob("bench_*") if path.is_file())
if not binaries:
    sys.exit(f"no benchmark binaries in {sys.argv[1]}")
with tempfile.TemporaryDirectory() as folder:
    model = write_tiny_model(pathlib.Path(folder) / "model")
    for binary in binaries:
        print(f"== {binary.name}", flush=True)
        arguments = [str(model)] if binary.name in NEEDS_MODEL else []
        subprocess.run([str(binary), *arguments, "--smoke"], check=True, timeout=300)
print(f"{len(binaries)} benchmarks ran")
