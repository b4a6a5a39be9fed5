"""Builds, tests and times what runs on a GPU, on a machine with one and nothing else prepared.

    python bench/gpu/run.py                # at most 9 minutes
    python bench/gpu/run.py --emulated     # tiny sizes on the emulated GPU: tries this script

Stages: the package and libforerun_cuda.so (nvcc is got from PyPI where the machine has none), the
CUDA tests, the tests of small shapes in each tool of compute-sanitizer, times. A stage that fails
does not stop the others, and one that no time is left for has failed; what lacks a program is left
out, and said so. Writes results.json and results.md to --out. docs/benchmarks_gpu.md keeps results.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
RELEASE = ROOT / "build" / "release"
TESTS = ("cuda_verify", "cuda_rows")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
GTEST_HEADERS = [
    pathlib.Path(folder) / "gtest" / "gtest.h" for folder in ("/usr/include", "/usr/local/include")
]
INSTALL_GTEST = "apt-get update -qq && apt-get install -y -qq libgtest-dev"  # as in .ci/run
# Of the tests in a sanitizer, where each example takes a hundred times as long.
FEW_EXAMPLES = {"FORERUN_TEST_EXAMPLES": "3"}
TINY = ["--requests", "1", "2", "--vocab", "300", "--repeats", "2"]


@dataclass
class Stage:
    name: str
    status: str  # "ok", "failed" or "left out"
    seconds: float = 0.0
    detail: str = ""  # why it did not succeed


@dataclass
class Run:
    """All stages so far, and how long they may still take."""

    deadline: float
    stages: list[Stage] = field(default_factory=list)

    def leave_out(self, name: str, reason: str) -> None:
        self._add(Stage(name, "left out", detail=reason))

    def fail(self, name: str, reason: str) -> None:
        self._add(Stage(name, "failed", detail=reason))

    def command(self, name: str, words: list[Any], env: dict[str, str] | None = None) -> str | None:
        """Runs a stage; returns what it printed, or None if it did not succeed."""
        left = self.deadline - time.monotonic()
        if left <= 1:
            return self.fail(name, "no time was left")
        start = time.monotonic()
        stage, printed = Stage(name, "ok"), None
        try:
            done = subprocess.run(
                [str(word) for word in words],
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                capture_output=True,
                text=True,
                timeout=left,
            )
            printed = done.stdout
            if done.returncode != 0:
                stage.status, stage.detail = "failed", (done.stdout + done.stderr)[-2000:]
        except subprocess.TimeoutExpired:
            stage.status, stage.detail = "failed", f"stopped after {left:.0f} s"
        except OSError as error:
            stage.status, stage.detail = "failed", str(error)
        stage.seconds = round(time.monotonic() - start, 1)
        self._add(stage)
        return printed if stage.status == "ok" else None

    def _add(self, stage: Stage) -> None:
        self.stages.append(stage)
        print(f"{stage.name}: {stage.status} ({stage.seconds} s) {stage.detail}", flush=True)


def machine(run: Run, is_emulated: bool) -> dict[str, Any]:
    found = {"cpu": platform.processor() or platform.machine(), "emulated": is_emulated}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found["commit"] = commit.stdout.strip() or "unknown"
    if not is_emulated:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.mem", "--format=csv"]
        found["gpu"] = (run.command("nvidia-smi", query) or "not found").strip()
    return found


def has_gtest() -> bool:
    return any(header.exists() for header in GTEST_HEADERS)


def build(run: Run) -> None:
    if not has_gtest() and os.geteuid() == 0:
        run.command("GoogleTest", ["sh", "-c", INSTALL_GTEST])
    run.command("package", ["make", ".venv/.package", ".venv/.test"], {"CUDA": "OFF"})
    run.command("libforerun_cuda.so", ["make", "cuda"])


def test(run: Run) -> None:
    if not has_gtest():
        run.fail("CUDA tests", "GoogleTest is not installed (libgtest-dev)")
        return
    cmake = ROOT / ".venv" / "bin" / "cmake"
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for name in TESTS:
        target = f"forerun_{name}_gpu_test"
        binary = RELEASE / "tests" / "cuda" / "verify" / target
        if run.command(f"build {name}", [cmake, "--build", RELEASE, "-t", target]) is None:
            continue
        run.command(name, [binary])
        for tool in SANITIZERS:
            stage = f"{name}, {tool}"
            if pathlib.Path(sanitizer).exists():
                words = [sanitizer, "--tool", tool, "--error-exitcode", "9", binary]
                run.command(stage, words, FEW_EXAMPLES)
            else:
                run.leave_out(stage, "compute-sanitizer is not installed")


def measure(run: Run, python: str, library: pathlib.Path, options: list[str]) -> list[Any]:
    words = [python, ROOT / "bench" / "gpu" / "time_kernels.py", *options]
    printed = run.command("times", words, {"FORERUN_CUDA_LIBRARY": str(library)})
    return [] if printed is None else json.loads(printed.splitlines()[-1])


def table(results: dict[str, Any]) -> str:
    lines = [f"{key}: {value}" for key, value in results["machine"].items()]
    lines += ["", "| stage | result | seconds |", "|---|---|--:|"]
    lines += [f"| {s['name']} | {s['status']} | {s['seconds']} |" for s in results["stages"]]
    lines += ["", "| call | requests | vocabulary | us | floor us | torch us |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for row in results["times"]:
        in_torch = "" if row["torch_us"] is None else row["torch_us"]
        lines.append(
            f"| {row['case']} | {row['requests']} | {row['vocab']} | {row['us']} | "
            f"{row['floor_us']} | {in_torch} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="tiny sizes, the emulated GPU")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--minutes", type=float, default=9.0)
    args = parser.parse_args()

    run = Run(time.monotonic() + args.minutes * 60)
    found = machine(run, args.emulated)
    libraries = ROOT / "build" / "cuda"
    if args.emulated:
        times = measure(run, sys.executable, libraries / "libforerun_cuda_emulated.so", TINY)
    else:
        build(run)
        test(run)
        times = measure(run, str(VENV_PYTHON), libraries / "libforerun_cuda.so", [])

    results = {"machine": found, "stages": [asdict(stage) for stage in run.stages], "times": times}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "results.md").write_text(table(results), encoding="utf-8")
    print(f"written: {args.out / 'results.json'}, {args.out / 'results.md'}")
    return 1 if any(stage.status == "failed" for stage in run.stages) else 0


if __name__ == "__main__":
    sys.exit(main())
