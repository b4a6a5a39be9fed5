"""Commands with --device cuda, on the emulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_gpu import EmulatedGpu

from forerun.tools import cli

OPTIONS = ["--device", "cuda", "--max-tokens", "6"]


def test_bench_does_not_compare_a_gpu_with_the_hosts_memory(
    gpu: EmulatedGpu, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, numbers = tmp_path / "prompts.jsonl", tmp_path / "numbers.json"
    prompts.write_text(json.dumps({"prompt": "one two one two one"}) + "\n")
    arguments = ["bench", str(tiny_dir), str(prompts), "--rounds", "1", "--output", str(numbers)]
    picture = ["--plot", str(tmp_path / "plot.svg")]
    assert cli.main([*arguments, *picture, *OPTIONS]) == 0
    said = capsys.readouterr().out
    assert "cuda; weights: " in said
    assert "threads" not in said
    assert "GB/s" not in said
    assert "roofline" not in said
    report = json.loads(numbers.read_text())
    assert report["read_bandwidth_bytes_per_second"] is None
    assert all("share_of_roofline" not in summary for summary in report["methods"].values())
    assert "threads" not in (tmp_path / "plot.svg").read_text()


def test_what_a_gpus_memory_error_names_can_be_given(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    def generate(*options: str) -> subprocess.CompletedProcess[str]:
        """In a process whose GPU no other test has used."""
        words = [sys.executable, "-m", "forerun", "generate", str(tiny_dir), "a b", *OPTIONS]
        small = {"FORERUN_EMULATED_GPU": "memory_mib=12"}
        return subprocess.run(
            [*words, *options], env={**os.environ, **small}, capture_output=True, text=True
        )

    assert "max_num_batched_tokens: got 2048; expected " in generate().stderr
    few = ["--max-num-batched-tokens", "64"]
    assert generate(*few).returncode == 0
    done = generate(*few, "--gpu-memory-utilization", "0.01")
    assert done.returncode == 2
    assert "gpu_memory_utilization: got 0.01, which leaves 0 bytes" in done.stderr


def test_eager_passes_are_no_graphs(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    arguments = ["generate", str(tiny_dir), "a b", *OPTIONS, "--method", "none"]
    assert cli.main([*arguments, "--enforce-eager"]) == 0
    assert gpu.graph_launches == 0
    assert cli.main(arguments) == 0
    assert gpu.graph_launches > 0
