"""Runs every benchmark binary of a folder in its smallest size, so that none of them rots."""

import pathlib
import subprocess
import sys

binaries = sorted(path for path in pathlib.Path(sys.argv[1]).glob("bench_*") if path.is_file())
if not binaries:
    sys.exit(f"no benchmark binaries in {sys.argv[1]}")
for binary in binaries:
    print(f"== {binary.name}", flush=True)
    subprocess.run([binary, "--smoke"], check=True, timeout=300)
print(f"{len(binaries)} benchmarks ran")
