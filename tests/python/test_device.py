"""Devices: what is missing is said in one typed error, and the CPU needs nothing of CUDA."""

from __future__ import annotations

import ctypes
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_gpu import LIBRARY, ROOT, VARIABLE, EmulatedGpu

import forerun
from forerun import LLM, DeviceError, InvalidArgumentError

PROMPTS = ["one two three four one two", "a b c a b c a b", "x"]


def load(model: Path, **options: Any) -> LLM:
    return LLM(str(model), max_model_len=128, check_invariants=True, num_threads=1, **options)


@pytest.mark.parametrize("option", ["device", "verify_device"])
def test_unknown_devices_are_refused_by_name(option: str, tiny_dir: Path) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        load(tiny_dir, **{option: "tpu"})
    assert (error.value.field, error.value.value) == (option, "tpu")
    assert "'cuda'" in error.value.expected


@pytest.mark.parametrize("option", ["device", "verify_device"])
def test_a_missing_library_is_one_error_that_says_what_to_do(
    option: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "libforerun_cuda.so"
    monkeypatch.setenv(VARIABLE, str(missing))
    with pytest.raises(DeviceError) as error:
        load(tiny_dir, **{option: "cuda"})
    assert error.value.found == f"no file {missing}"
    assert 'pip install "cuda-toolkit[nvcc,cudart,cccl]==13.0.*"' in error.value.remedy
    assert "device 'cpu'" in error.value.remedy
    assert str(error.value) == (
        f"wanted {error.value.wanted}; found {error.value.found}; {error.value.remedy}"
    )


def test_files_that_are_no_library_of_forerun_are_named(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    junk = tmp_path / "junk.so"
    junk.write_text("not a library")
    monkeypatch.setenv(VARIABLE, str(junk))
    with pytest.raises(DeviceError, match=str(junk)):
        load(tiny_dir, device="cuda")
    monkeypatch.setenv(VARIABLE, _ssl_library())
    with pytest.raises(DeviceError, match="without the symbol forerun_cuda_library"):
        load(tiny_dir, device="cuda")


def _ssl_library() -> str:
    import _ctypes

    return str(_ctypes.__file__)


class Watch:
    """Whether a file has been opened, by inotify."""

    _IN_OPEN = 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init()
        assert libc.inotify_add_watch(self._events, os.fsencode(path), self._IN_OPEN) >= 0

    def was_opened(self) -> bool:
        is_ready, _, _ = select.select([self._events], [], [], 0)
        return bool(is_ready)

    def close(self) -> None:
        os.close(self._events)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    library = tmp_path / "libforerun_cuda.so"
    library.write_text("opened only when a GPU is asked for")
    monkeypatch.setenv(VARIABLE, str(library))
    watch = Watch(library)
    yield watch
    watch.close()


def test_the_cpu_opens_no_cuda_file(watched: Watch, tiny_dir: Path) -> None:
    code = f"""
import forerun
llm = forerun.LLM({str(tiny_dir)!r}, max_model_len=64, num_threads=1, spec_method="suffix")
llm.generate(["a b a b a b"], forerun.SamplingParams(max_tokens=8), use_tqdm=False)
files = {{line.split("/")[-1].lower() for line in open("/proc/self/maps") if "/" in line}}
assert not [name for name in files if "cuda" in name or "torch" in name]
import sys
assert not {{"torch", "forerun.kernels"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert not watched.was_opened()
    with pytest.raises(DeviceError):  # the watch works
        load(tiny_dir, device="cuda")
    assert watched.was_opened()


def real_library() -> Path | None:
    """The library for real GPUs: that of `make cuda`, or the installed package's."""
    package = Path(forerun.__file__).parent / "libforerun_cuda.so"
    paths = [ROOT / "build" / "cuda" / "libforerun_cuda.so", package]
    return next((path for path in paths if path.exists()), None)


def test_without_a_driver_the_real_library_says_so(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = real_library()
    if library is None:
        pytest.skip("the library for GPUs is not built (make cuda)")
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    monkeypatch.setenv(VARIABLE, str(library))
    with pytest.raises(DeviceError) as error:
        load(tiny_dir, device="cuda")
    assert error.value.found == "no NVIDIA driver"
    assert "device 'cpu'" in error.value.remedy


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        ({"driver_version": 0}, "no NVIDIA driver"),
        ({"driver_version": 12020}, "a driver for CUDA 12.2"),
        ({"num_devices": 0}, "a driver without a GPU"),
        ({"capability": 75}, r".* of compute capability 7\.5"),
    ],
)
def test_machines_that_do_not_suit_are_described(
    machine: dict[str, int], found: str, gpu: EmulatedGpu, tiny_dir: Path
) -> None:
    gpu.configure(**machine)
    with pytest.raises(DeviceError) as error:
        load(tiny_dir, device="cuda")
    assert re.fullmatch(found, error.value.found)
    assert "device 'cpu'" in error.value.remedy
    assert error.value.wanted == (
        "a GPU of compute capability 8.0 or later and a driver for CUDA 13.0"
    )


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (3, "use no GPU before the process forks"),
        (34, "the machine's driver instead of a stub"),
        (46, "end the process that has the GPU for itself"),
        (802, "start NVIDIA's fabric manager"),
        (803, "restart the machine, whose driver was updated"),
        (999, "see whether nvidia-smi finds the GPU"),
    ],
)
def test_a_gpu_that_does_not_start_is_no_lost_one(
    code: int, remedy: str, gpu: EmulatedGpu, tiny_dir: Path
) -> None:
    gpu.configure(start_error=code)
    with pytest.raises(DeviceError) as error:
        load(tiny_dir, device="cuda")
    assert error.value.found.startswith(f"CUDA error {code} (")
    assert remedy in error.value.remedy
    assert "device 'cpu'" in error.value.remedy
    assert not error.value.is_lost


def test_a_library_of_another_build_is_refused(
    gpu: EmulatedGpu, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = LIBRARY.read_bytes()
    (build_id,) = set(re.findall(rb"0\.1\.0 GNU [\d.]+ \w+ [0-9a-f]{16}", code))
    other = tmp_path / "libother.so"
    other.write_bytes(code.replace(build_id, build_id[:-1] + b"?"))
    monkeypatch.setenv(VARIABLE, str(other))
    with pytest.raises(DeviceError) as error:
        load(tiny_dir, device="cuda")
    assert error.value.found == f"{other} of build {build_id[:-1].decode()}?"
    assert build_id.decode() in error.value.remedy


@pytest.mark.parametrize("library", [LIBRARY, real_library()], ids=["emulated", "real"])
def test_the_library_exports_its_table_and_no_more(library: Path | None) -> None:
    if library is None or not library.exists():
        pytest.skip("not built (make cuda-emulated, make cuda)")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], check=True, capture_output=True, text=True
    )
    # Weak symbols are templates of the C++ library.
    strong = {line.split()[-1] for line in listed.stdout.splitlines() if line.split()[-2] in "TDBR"}
    assert {name for name in strong if "emulation" not in name} == {"forerun_cuda_library"}
