"""bench/gpu/run.py runs to its end, on the emulated GPU."""

from __future__ import annotations

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


def test_a_stage_without_time_is_left_out_and_said_so(tmp_path: Path) -> None:
    options = ["--emulated", "--minutes", "0", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "gpu" / "run.py", *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "no time was left" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert [stage["status"] for stage in results["stages"]] == ["left out"]
