"""The scripts of bench/gpu run to their ends, on the emulated GPU."""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulated_gpu import LIBRARY, ROOT

from forerun import LLM, SamplingParams

GIGABYTE = 10**9


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script of bench/gpu."""
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "gpu"))
    return importlib.import_module


def test_the_script_times_every_call_and_writes_a_table(tmp_path: Path) -> None:
    if not LIBRARY.exists():
        pytest.skip("the emulated GPU is not built (make cuda-emulated)")
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "gpu" / "run.py", "--emulated", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    stages = [(stage["name"], stage["status"]) for stage in results["stages"]]
    assert stages == [("times", "ok"), ("engine, tiny", "ok")]
    assert len(results["times"]) == 16
    assert all(row["us"] > 0 for row in results["times"])
    figures = {figure["what"]: figure for figure in results["figures"]}
    assert figures.keys() > {"plain decoding", "host time of a step", "step of 5 rows, by one"}
    assert all(figure["value"] > 0 for figure in figures.values())
    # Of 5 tokens a step at most: those right by chance alone would be a few in a hundred.
    per_step = [figures[f"4 drafts, {share} right"]["tokens_per_step"] for share in (0.6, 0.9)]
    assert 1.2 < per_step[0] < per_step[1] <= 5
    table = (tmp_path / "results.md").read_text()
    assert "| verify block | 2 | 300 |" in table
    assert "| tiny | step of 5 rows | ms |" in table


def test_a_stage_without_time_has_failed(tmp_path: Path) -> None:
    options = ["--emulated", "--minutes", "0", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "gpu" / "run.py", *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no time was left" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert [stage["status"] for stage in results["stages"]] == ["failed", "failed"]


@pytest.mark.parametrize("is_root", [True, False])
def test_a_missing_googletest_is_installed_or_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_root: bool, scripts: Callable[[str], Any]
) -> None:
    script = scripts("run")
    monkeypatch.setattr(script, "GTEST_HEADERS", [ROOT / "missing.h"])
    monkeypatch.setattr(script.os, "geteuid", lambda: 0 if is_root else 1000)
    run = script.Run(0.0, tmp_path)  # no command has the time to run
    script.build(run)
    script.test(run)
    names = [stage.name for stage in run.stages]
    assert ("GoogleTest" in names) == is_root
    assert names[-1] == "CUDA tests"
    assert run.stages[-1].status == "failed"
    assert "GoogleTest is not installed" in run.stages[-1].detail


def test_every_test_of_kernels_runs_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scripts: Callable[[str], Any]
) -> None:
    script = scripts("run")
    folders = (ROOT / "tests" / "cuda").glob("*/CMakeLists.txt")
    found = {
        f"{path.parent.name}/forerun_{name}_gpu_test"
        for path in folders
        for name in re.findall(r"^forerun_add_gpu_test\((\w+)", path.read_text(), re.MULTILINE)
    }
    assert found > {"ops/forerun_cuda_ops_gpu_test"}
    ran = []
    monkeypatch.setattr(
        script.Run, "command", lambda run, name, words, *_, **__: ran.append(words) or ""
    )
    monkeypatch.setattr(script, "has_gtest", lambda: True)
    script.test(script.Run(0.0, tmp_path))
    release = script.RELEASE
    programs = [Path(words[0]) for words in ran]
    started = {str(path.relative_to(release)) for path in programs if release in path.parents}
    models = "tests/cpp/engine/forerun_robustness_test"
    assert started == {f"tests/cuda/{name}" for name in found} | {models}


def test_a_stage_that_hangs_ends_with_all_that_it_started(
    tmp_path: Path, scripts: Callable[[str], Any]
) -> None:
    run = scripts("stages").Run(time.monotonic() + 60, tmp_path / "logs")
    code = "echo begun; sleep 60 & echo $! >&2; wait"
    assert run.command("a, b", ["sh", "-c", code], max_seconds=1.5) is None
    [stage] = run.stages
    log = tmp_path / "logs" / "a_b.log"
    assert (stage.name, stage.status) == ("a, b", "failed")
    child = int(log.with_suffix(".errors.log").read_text())
    assert stage.detail == f"stopped after 2 s; {log}:\nbegun\n{child}\n"
    state = Path(f"/proc/{child}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the process that the stage started still runs")


def test_a_stage_returns_what_it_printed(tmp_path: Path, scripts: Callable[[str], Any]) -> None:
    run = scripts("stages").Run(time.monotonic() + 60, tmp_path)
    assert run.command("good", ["sh", "-c", "echo out; echo err >&2; echo $A"], {"A": "1"}) == (
        "out\n1\n"
    )
    assert run.command("bad", ["sh", "-c", "echo err >&2; exit 3"]) is None
    assert run.command("missing", [tmp_path / "nothing"]) is None
    assert [stage.status for stage in run.stages] == ["ok", "failed", "failed"]
    assert run.stages[1].detail.startswith("exit status 3")
    assert run.stages[1].detail.endswith("err\n")
    assert "No such file" in run.stages[2].detail


def test_a_run_of_some_stages_keeps_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scripts: Callable[[str], Any]
) -> None:
    script, figures = scripts("run"), scripts("figures")
    monkeypatch.setattr(script, "machine", lambda run, is_emulated: {"commit": "c"})
    monkeypatch.setattr(script, "measure_bandwidth", lambda *_: "1e12")
    calls = [{"case": "verify", "requests": 1, "vocab": 9, "rows": 5, "us": 7.0, "floor_us": 1.0}]
    calls[0]["torch_us"] = None

    def measure(run: Any, *_: Any) -> list[Any]:
        run.leave_out("times", "")
        return calls

    def measure_models(run: Any, setup: Any, _: str) -> None:
        run.leave_out("engine", "")
        figures.Report("forerun", "m", setup.figures).add("plain", 2.0, "x")

    def measure_peers(run: Any, setup: Any) -> None:
        run.fail("torch", "no time was left")
        figures.Report("torch", "m", setup.figures).add("plain", len(run.stages), "x")

    for name, stage in (("", measure), ("_models", measure_models), ("_peers", measure_peers)):
        monkeypatch.setattr(script, f"measure{name}", stage)

    def results(*stages: str) -> Any:
        options = ["run.py", "--out", str(tmp_path), "--stages", *stages]
        monkeypatch.setattr(sys, "argv", options)
        script.main()
        return json.loads((tmp_path / "results.json").read_text())

    results("calls", "engine", "peers")
    monkeypatch.setattr(script, "measure_peers", lambda run, _: run.fail("x", "of this run"))
    results("peers")
    monkeypatch.setattr(script, "measure_peers", measure_peers)
    both = results("peers")
    assert [stage["name"] for stage in both["stages"]] == ["times", "engine", "torch"]
    assert both["times"] == calls
    assert [(f["engine"], f["value"]) for f in both["figures"]] == [("forerun", 2), ("torch", 1)]
    table = (tmp_path / "results.md").read_text()
    assert "| m | plain | x | 2.0 |  |  | 1.0 |" in table
    assert "torch failed:\n\n```\nno time was left\n```" in table
    monkeypatch.setattr(script, "machine", lambda run, is_emulated: {"commit": "d"})
    other = results("peers")
    assert [stage["name"] for stage in other["stages"]] == ["torch"]
    assert [f["engine"] for f in other["figures"]] == ["torch"]
    monkeypatch.setattr(script, "measure_peers", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results("peers")
    assert json.loads((tmp_path / "results.json").read_text())["figures"] == other["figures"]
    (tmp_path / "results.json").write_text('{"machine"')
    monkeypatch.setattr(script, "measure_peers", measure_peers)
    assert results("peers")["machine"] == {"commit": "d"}


@pytest.mark.parametrize(
    ("driver", "nvcc", "folder", "problem"),
    [
        (13000, "release 13.0, V13.0.88", ".", None),
        (12080, "release 12.9, V12.9.1", "home/bin", None),
        (12080, "release 13.1, V13.1.2", ".", "the driver is for CUDA 12.8, nvcc is that of 13.1"),
        (12080, "release 12.4, V12.4.1", ".", "the driver is for CUDA 12.8, nvcc is that of 13.0"),
        (12080, None, ".", "the driver is for CUDA 12.8, nvcc is that of 13.0"),
        (None, None, ".", None),
        (0, None, ".", None),
    ],
)
def test_a_driver_that_is_too_old_for_nvcc_is_told_before_the_build(
    driver: int | None,
    nvcc: str | None,
    folder: str,
    problem: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    scripts: Callable[[str], Any],
) -> None:
    script = scripts("run")

    class Driver:
        def __init__(self, name: str) -> None:
            if driver is None:
                raise OSError(name)

        def cuDriverGetVersion(self, version: Any) -> int:
            version._obj.value = driver
            return 0 if driver else 34

    monkeypatch.setattr(script.ctypes, "CDLL", Driver)
    if nvcc is not None:
        program = tmp_path / folder / "nvcc"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, {nvcc}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setattr(script, "CUDA_FOLDER", str(tmp_path / "nothing"))
    run = script.Run(0.0, tmp_path / "logs")
    script.build(run)
    found = [stage.detail for stage in run.stages if stage.name == "driver"]
    assert [text.split(":")[0] for text in found] == ([] if problem is None else [problem])


def test_a_missing_program_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    scripts: Callable[[str], Any],
) -> None:
    script = scripts("run")
    monkeypatch.setattr(script, "machine", lambda run, is_emulated: {})
    monkeypatch.setattr(script, "measure", lambda run, *_: run.leave_out("x", "is not installed"))
    monkeypatch.setattr(script, "measure_models", lambda *_: None)
    monkeypatch.setattr(script, "table", lambda results: "")
    monkeypatch.setattr(sys, "argv", ["run.py", "--emulated", "--out", str(tmp_path)])
    assert script.main() == 0
    assert "x: left out (0.0 s) is not installed" in capsys.readouterr().out


class FakeDriver:
    """CUDA's driver, whose copies take as long as they would at one terabyte a second."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.allocated: set[int] = set()
        self.copied = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *arguments: self.call(name, *arguments)

    def call(self, name: str, *arguments: Any) -> int:
        if name == self.failing:
            return 2
        if name == "cuMemAlloc_v2":
            address = 1 + len(self.allocated)
            arguments[0]._obj.value = address
            self.allocated.add(address)
        elif name == "cuMemFree_v2":
            self.allocated.remove(arguments[0].value)
        elif name == "cuMemcpyDtoDAsync_v2":
            target, source, size, _ = arguments
            assert target.value != source.value
            assert {target.value, source.value} <= self.allocated
            self.copied = size.value
        elif name == "cuEventElapsedTime":
            assert isinstance(arguments[0]._obj, ctypes.c_float)
            arguments[0]._obj.value = 2 * self.copied / GIGABYTE
        return 0


def test_bandwidth_counts_what_is_read_and_written(scripts: Callable[[str], Any]) -> None:
    driver = FakeDriver()
    measured = scripts("device_bandwidth").measure_bandwidth(driver)
    assert measured == pytest.approx(1000 * GIGABYTE, rel=1e-3)
    assert not driver.allocated
    with pytest.raises(SystemExit, match="cuMemAlloc_v2: error 2"):
        scripts("device_bandwidth").measure_bandwidth(FakeDriver("cuMemAlloc_v2"))


def test_figures_are_beside_targets_and_other_engines(
    scripts: Callable[[str], Any], tmp_path: Path
) -> None:
    figures = scripts("figures")
    model, path = "SmolLM2-135M-Instruct", tmp_path / "figures.jsonl"
    ours = figures.Report("forerun", model, path)
    ours.add(figures.PLAIN, 1499, "tokens/s", share=0.4)
    ours.add(figures.HOST, 100, "us")
    ours.add("4 drafts, 0.8 right", 3000, "tokens/s", tokens_per_step=3.36)
    figures.Report("forerun", "Llama-3.1-8B", path).add(figures.PLAIN, 150, "tokens/s", share=0.8)
    figures.Report("torch", model, path).add(figures.PLAIN, 700, "tokens/s")
    lines = figures.figure_lines(figures.read_figures(path))
    assert lines[0].endswith("| target | torch |")
    assert lines[2:] == [
        f"| {model} | plain decoding | tokens/s | 1499.0 | 0.4 | at least 1500: missed | 700.0 |",
        f"| {model} | host time of a step | us | 100.0 |  | at most 100: met |  |",
        f"| {model} | 4 drafts, 0.8 right: 3.36 tokens a step | tokens/s | 3000.0 |  |  |  |",
        "| Llama-3.1-8B | plain decoding | tokens/s | 150.0 | 0.8 "
        "| at least 0.8 of the floor: met |  |",
    ]
    ours.compare("drafts", [1, 2], [1, 2, 3])
    ours.compare("drafts", [1, 3], [1, 2, 3])
    assert ours.problems == ["drafts: the ids are not those of plain decoding"]


def test_prompts_are_no_longer_than_a_model_takes(scripts: Callable[[str], Any]) -> None:
    sizes = scripts("figures").FULL.within(8192)
    assert sizes.prompts == (512, 2048, 8191)
    assert sizes.max_len == 8192
    assert scripts("figures").FULL.within(16384) == scripts("figures").FULL


def test_a_replayed_draft_is_wrong_as_often_as_asked(scripts: Callable[[str], Any]) -> None:
    replay = scripts("time_engine").replay
    ids = list(range(1000))
    assert replay(ids, 1.0, 5000, seed=0) == ids
    wrong = replay(ids, 0.0, 5000, seed=0)
    assert wrong[1::2] == ids
    assert all(a != b for a, b in zip(wrong[::2], ids, strict=True))
    assert 150 < len(replay(ids, 0.8, 5000, seed=0)) - len(ids) < 250


def test_torchs_llama_and_a_random_checkpoint_are_a_llama(
    scripts: Callable[[str], Any], tmp_path: Path
) -> None:
    import torch

    made = scripts("random_checkpoint")
    model = made.write_random_checkpoint(made.SHAPES["tiny"], tmp_path / "tiny")
    before = (model / "config.json").stat().st_mtime_ns
    made.write_random_checkpoint(made.SHAPES["tiny"], model)
    assert (model / "config.json").stat().st_mtime_ns == before
    peer = scripts("peers").TorchLlama(model, "cpu", 64)
    for tensors in (peer.tensors, vars(peer)):
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
                tensors[name] = value.float()
    prompt = [5, 200, 31, 7]
    llm = LLM(model, dtype="float32", skip_tokenizer_init=True)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    [output] = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
    assert peer.generate(prompt, 20) == output.outputs[0].token_ids
    assert len(set(output.outputs[0].token_ids)) > 3
