"""Builds, tests and times what runs on a GPU, on a machine with one and nothing else prepared.

    python bench/gpu/run.py                          # at most 9 minutes
    python bench/gpu/run.py --stages peers sanitize  # where the rest has run
    python bench/gpu/run.py --emulated               # tiny, on the emulated GPU: tries this script

Stages: the package and libforerun_cuda.so (nvcc is got from PyPI where the machine has none), the
CUDA tests, times of calls, models in the engine, the same models in other engines where they are
installed, the CUDA tests on few examples in each tool of compute-sanitizer. A stage that fails does
not stop the others, and one that no time is left for has failed; what lacks a program is left out,
and said so. Writes results.json, results.md and what each stage printed to --out. A run of some
stages keeps what earlier runs of the same commit found there. docs/benchmarks_gpu.md keeps results.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from figures import Figure, call_lines, figure_lines, read_figures
from stages import Run

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
RELEASE = ROOT / "build" / "release"
CUDA_LIBRARY = ROOT / "build" / "cuda" / "libforerun_cuda.so"
EMULATED_LIBRARY = ROOT / "build" / "cuda" / "libforerun_cuda_emulated.so"
TESTS = RELEASE / "tests" / "cuda"
KERNEL_TESTS = [
    TESTS / "verify" / "forerun_cuda_rows_gpu_test",
    TESTS / "verify" / "forerun_cuda_verify_gpu_test",
    TESTS / "ops" / "forerun_cuda_ops_gpu_test",
]
# Whole models with every kind of drafter.
MODEL_TEST = RELEASE / "tests" / "cpp" / "engine" / "forerun_robustness_test"
ON_GPU = {"FORERUN_TEST_DEVICE": "cuda", "FORERUN_CUDA_LIBRARY": str(CUDA_LIBRARY)}
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
GTEST_HEADERS = [
    pathlib.Path(folder) / "gtest" / "gtest.h" for folder in ("/usr/include", "/usr/local/include")
]
INSTALL_GTEST = "apt-get update -qq && apt-get install -y -qq libgtest-dev"  # as in .ci/run
# Of the tests in a sanitizer, where each example takes a hundred times as long.
FEW_EXAMPLES = {"FORERUN_TEST_EXAMPLES": "3"}
TINY_CALLS = ["--requests", "1", "2", "--vocab", "300", "--repeats", "2"]
RESULTS, FIGURES = "results.json", "figures.jsonl"
STAGES = ("build", "test", "calls", "engine", "peers", "sanitize")
SMOLLM = ROOT / "models" / "SmolLM2-135M-Instruct"  # `make model` writes it
RANDOM_MODEL = "Llama-3.1-8B"
PEERS = ("torch", "transformers", "vllm", "sglang")
PEER_SECONDS = 150  # at most, of each
TEST_SECONDS = 120  # at most, of each test: a kernel may hang
CUDA_FOLDER = "/usr/local/cuda/bin"
NVCC_OF_PYPI = 13000  # `make cuda` gets it where there is none of 12.8 or later
NOMINAL_BANDWIDTH = "3.0e12"  # bytes a second, where none is measured
HAS_MODULE = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"


def machine(run: Run, is_emulated: bool) -> dict[str, Any]:
    found = {"cpu": platform.processor() or platform.machine(), "emulated": is_emulated}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found["commit"] = commit.stdout.strip() or "unknown"
    if not is_emulated:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.mem", "--format=csv"]
        if shutil.which("nvidia-smi"):
            found["gpu"] = (run.command("nvidia-smi", query) or "not found").strip()
        else:
            run.leave_out("nvidia-smi", "nvidia-smi is not installed")
    return found


def has_gtest() -> bool:
    return any(header.exists() for header in GTEST_HEADERS)


def nvcc_version() -> int:
    """1000 * major + 10 * minor, of what `make cuda` compiles with."""
    home = [os.path.join(os.environ["CUDA_HOME"], "bin")] if "CUDA_HOME" in os.environ else []
    path = os.pathsep.join([*home, os.environ.get("PATH", ""), CUDA_FOLDER])  # as for CMake
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"), path=path)
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True) if nvcc else None
    found = re.search(r"release (\d+)\.(\d+)", said.stdout if said else "")
    version = 1000 * int(found[1]) + 10 * int(found[2]) if found else 0
    return version if version >= 12080 else NVCC_OF_PYPI


def driver_problem() -> str | None:
    """Where the driver cannot run what nvcc compiles. Nothing, where there is no driver to ask."""
    version = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    if status != 0:
        return None
    nvcc, driver = nvcc_version(), version.value
    if driver // 1000 >= nvcc // 1000:
        return None
    return (
        f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, nvcc is that of "
        f"{nvcc // 1000}.{nvcc % 1000 // 10}: install a driver for it (R580 for 13.0), or nvcc 12.8"
    )


def build(run: Run) -> None:
    if problem := driver_problem():
        run.fail("driver", problem)
        return
    if not has_gtest() and os.geteuid() == 0:
        run.command("GoogleTest", ["sh", "-c", INSTALL_GTEST])
    run.command("package", ["make", ".venv/.package", ".venv/.test", "model"], {"CUDA": "OFF"})
    run.command("libforerun_cuda.so", ["make", "cuda"])


def build_test(run: Run, binary: pathlib.Path) -> bool:
    """Without what builds it, as on a machine without a network, one that is there is taken."""
    cmake = VENV_PYTHON.with_name("cmake")
    if binary.exists() and not cmake.exists():
        return True
    words = [cmake, "--build", RELEASE, "-t", binary.name]
    return run.command(f"build {binary.name}", words) is not None


def test(run: Run) -> None:
    if not has_gtest() and not all(path.exists() for path in (*KERNEL_TESTS, MODEL_TEST)):
        run.fail("CUDA tests", "GoogleTest is not installed (libgtest-dev)")
        return
    for binary in KERNEL_TESTS:
        if build_test(run, binary):
            run.command(binary.name, [binary], max_seconds=TEST_SECONDS)
    if build_test(run, MODEL_TEST):
        words = [MODEL_TEST, "--gtest_filter=*ModelEngine*"]
        run.command("models", words, ON_GPU, TEST_SECONDS)


def sanitize(run: Run) -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(sanitizer).exists():
        run.leave_out("compute-sanitizer", "compute-sanitizer is not installed")
        return
    for binary in KERNEL_TESTS:
        if not binary.exists() and not build_test(run, binary):
            continue
        for tool in SANITIZERS:
            words = [sanitizer, "--tool", tool, "--error-exitcode", "9", binary]
            run.command(f"{binary.name}, {tool}", words, FEW_EXAMPLES, TEST_SECONDS)


@dataclass(frozen=True)
class Setup:
    """What is timed, where, and with which library."""

    python: str
    cuda_library: pathlib.Path
    models: list[str]  # directories, or names of shapes
    cache: pathlib.Path  # for models of random weights
    figures: pathlib.Path  # where the scripts leave their figures
    options: list[str]  # of the scripts that time models

    def script(self, name: str, *words: Any) -> list[Any]:
        return [self.python, ROOT / "bench" / "gpu" / name, *words]

    @property
    def env(self) -> dict[str, str]:
        return {"FORERUN_CUDA_LIBRARY": str(self.cuda_library)}

    def directory(self, model: str) -> pathlib.Path:
        return self.cache / model if model == RANDOM_MODEL else pathlib.Path(model)


def measure(run: Run, setup: Setup, bandwidth: str, options: list[str]) -> list[Any]:
    words = setup.script("time_kernels.py", "--bandwidth", bandwidth, *options)
    printed = run.command("times", words, setup.env)
    return [] if printed is None else json.loads(printed.splitlines()[-1])


def measure_models(run: Run, setup: Setup, bandwidth: str) -> None:
    for model in setup.models:
        name = f"engine, {pathlib.Path(model).name}"
        if model == str(SMOLLM) and not SMOLLM.exists():
            run.leave_out(name, f"there is no {SMOLLM}: `make model` writes it")
            continue
        words = setup.script("time_engine.py", model, "--bandwidth", bandwidth)
        words += ["--cache", setup.cache, "--figures", setup.figures, *setup.options]
        run.command(name, words, setup.env)


def measure_peers(run: Run, setup: Setup) -> None:
    """Each in the first Python that has it."""
    for peer in PEERS:
        found = [
            python
            for python in (setup.python, sys.executable)
            if subprocess.run([python, "-c", HAS_MODULE, peer]).returncode == 0
        ]
        if not found:
            run.leave_out(peer, f"{peer} is not installed")
            continue
        for model in setup.models:
            if not (setup.directory(model) / "config.json").exists():
                continue
            words = setup.script("peers.py", peer, setup.directory(model), *setup.options)
            words = [found[0], *words[1:], "--figures", setup.figures]
            run.command(f"{peer}, {pathlib.Path(model).name}", words, max_seconds=PEER_SECONDS)


def measure_bandwidth(run: Run, setup: Setup) -> str:
    printed = run.command("device bandwidth", setup.script("device_bandwidth.py"))
    return NOMINAL_BANDWIDTH if printed is None else printed.strip()


def table(results: dict[str, Any]) -> str:
    lines = [f"{key}: {value}" for key, value in results["machine"].items()]
    failed = [stage for stage in results["stages"] if stage["status"] == "failed"]
    lines += ["", "| stage | result | seconds |", "|---|---|--:|"]
    lines += [f"| {s['name']} | {s['status']} | {s['seconds']} |" for s in results["stages"]]
    lines += ["", *figure_lines(results["figures"]), "", *call_lines(results["times"])]
    for stage in failed:
        lines += ["", f"{stage['name']} failed:", "", "```", stage["detail"], "```"]
    return "\n".join(lines) + "\n"


def earlier(path: pathlib.Path, found: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run on this machine found, of the same commit."""
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results if results["machine"] == found else None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="tiny sizes, the emulated GPU")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--models", nargs="+", default=[str(SMOLLM), RANDOM_MODEL])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--cache", type=pathlib.Path, help="for random models; default: OUT/models")
    parser.add_argument("--minutes", type=float, default=9.0)
    return parser.parse_args()


def run_stages(run: Run, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Those that are asked for; of the emulated GPU, times alone."""
    cache, figures = args.cache or args.out / "models", args.out / FIGURES
    if args.emulated:
        setup = Setup(sys.executable, EMULATED_LIBRARY, ["tiny"], cache, figures, ["--tiny"])
        run.group = "calls"
        results["times"] = measure(run, setup, NOMINAL_BANDWIDTH, TINY_CALLS)
        run.group = "engine"
        measure_models(run, setup, NOMINAL_BANDWIDTH)
        return
    bandwidth = None
    for run.group in (stage for stage in STAGES if stage in args.stages):
        if run.group == "build":
            build(run)
        elif run.group == "test":
            test(run)
        elif run.group == "sanitize":
            sanitize(run)
        else:
            python = str(VENV_PYTHON) if VENV_PYTHON.exists() else sys.executable
            setup = Setup(python, CUDA_LIBRARY, args.models, cache, figures, [])
            bandwidth = bandwidth or measure_bandwidth(run, setup)
            if run.group == "calls":
                results["times"] = measure(run, setup, bandwidth, [])
            elif run.group == "engine":
                measure_models(run, setup, bandwidth)
            else:
                measure_peers(run, setup)


def write_results(
    run: Run, results: dict[str, Any], before: dict[str, Any] | None, out: pathlib.Path
) -> None:
    stages = [asdict(stage) for stage in run.stages]
    if before is not None:
        groups = {stage.group for stage in run.stages}
        stages = [stage for stage in before["stages"] if stage["group"] not in groups] + stages
        results["times"] = results["times"] or before["times"]
    figures: list[Figure] = read_figures(out / FIGURES)
    results = {**results, "stages": stages, "figures": figures}
    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(table(results), encoding="utf-8")
    print(f"written: {out / RESULTS}, {out / 'results.md'}")


def main() -> int:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(time.monotonic() + args.minutes * 60, args.out / "logs")
    found = machine(run, args.emulated)
    before = earlier(args.out / RESULTS, found) if set(args.stages) < set(STAGES) else None
    if before is None:
        (args.out / FIGURES).unlink(missing_ok=True)
    results: dict[str, Any] = {"machine": found, "times": []}
    try:
        run_stages(run, args, results)
    finally:
        write_results(run, results, before, args.out)
    return 1 if any(stage.status == "failed" for stage in run.stages) else 0


if __name__ == "__main__":
    sys.exit(main())
