"""bench/gpu/run.py runs to its end, on the emulated GPU."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_gpu import LIBRARY, ROOT


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
    assert [(stage["name"], stage["status"]) for stage in results["stages"]] == [("times", "ok")]
    assert len(results["times"]) == 16
    assert all(row["us"] > 0 for row in results["times"])
    assert "| verify block | 2 | 300 |" in (tmp_path / "results.md").read_text()


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
    assert [stage["status"] for stage in results["stages"]] == ["failed"]


@pytest.mark.parametrize("is_root", [True, False])
def test_a_missing_googletest_is_installed_or_named(
    monkeypatch: pytest.MonkeyPatch, is_root: bool
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "gpu"))
    script = importlib.import_module("run")
    monkeypatch.setattr(script, "GTEST_HEADERS", [ROOT / "missing.h"])
    monkeypatch.setattr(script.os, "geteuid", lambda: 0 if is_root else 1000)
    run = script.Run(deadline=0.0)  # no command has the time to run
    script.build(run)
    script.test(run)
    names = [stage.name for stage in run.stages]
    assert ("GoogleTest" in names) == is_root
    assert names[-1] == "CUDA tests"
    assert run.stages[-1].status == "failed"
    assert "GoogleTest is not installed" in run.stages[-1].detail


def test_a_missing_program_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "gpu"))
    script = importlib.import_module("run")
    monkeypatch.setattr(script, "machine", lambda run, is_emulated: {})
    monkeypatch.setattr(script, "measure", lambda run, *_: run.leave_out("x", "is not installed"))
    monkeypatch.setattr(script, "table", lambda results: "")
    monkeypatch.setattr(sys, "argv", ["run.py", "--emulated", "--out", str(tmp_path)])
    assert script.main() == 0
    assert "x: left out (0.0 s) is not installed" in capsys.readouterr().out
