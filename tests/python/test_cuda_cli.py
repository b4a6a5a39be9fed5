"""Commands with --device cuda, on the emulated GPU."""

from __future__ import annotations

import json
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


def test_what_a_gpus_memory_error_names_can_be_given(
    gpu: EmulatedGpu, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.configure(memory_mib=12)
    arguments = ["generate", str(tiny_dir), "a b", *OPTIONS]
    assert cli.main(arguments) == 2
    assert "max_num_batched_tokens: got 2048; expected " in capsys.readouterr().err
    arguments += ["--max-num-batched-tokens", "64"]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--gpu-memory-utilization", "0.01"]) == 2
    assert "gpu_memory_utilization: got 0.01, which leaves 0 bytes" in capsys.readouterr().err


def test_eager_passes_are_no_graphs(gpu: EmulatedGpu, tiny_dir: Path) -> None:
    arguments = ["generate", str(tiny_dir), "a b", *OPTIONS, "--method", "none"]
    assert cli.main([*arguments, "--enforce-eager"]) == 0
    assert gpu.graph_launches == 0
    assert cli.main(arguments) == 0
    assert gpu.graph_launches > 0
