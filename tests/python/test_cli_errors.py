"""How commands end: help, errors in one line, closed pipes, interrupts."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from forerun import SamplingParams
from forerun.tools import cli, cli_generate


def start(arguments: Sequence[str], stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "forerun", *arguments]
    return subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE
    )


def test_the_command_alone_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: forerun")
    assert "forerun chat MODEL" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("length", ["8", "400"])
def test_a_reader_that_leaves_ends_the_command_quietly(tiny_dir: Path, length: str) -> None:
    process = start(["generate", str(tiny_dir), "hi", "--max-tokens", length, "--ignore-eos"])
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tiny_dir: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(["generate", str(tiny_dir), "hi"], stdout=full.fileno())
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith(b"forerun: error: ")
    assert errors.count(b"\n") == 1


def test_an_interrupt_is_one_line_and_status_130(tiny_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}')
    process = start(["bench", str(tiny_dir), str(prompts), "--rounds", "1000000"])
    assert process.stderr is not None
    seen = b""
    while seen.count(b"Measuring") < 2:  # the first is written before the bar can be closed
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith(b"\nforerun: interrupted\n")
    assert b"Traceback" not in errors


def test_generate_reads_a_pipe_without_its_last_newline(tiny_dir: Path) -> None:
    arguments = ["generate", str(tiny_dir), "--max-tokens", "3"]
    expected, _ = start([*arguments, "hi"]).communicate(timeout=60)
    assert expected.startswith(b"hi")
    shown, errors = start(arguments).communicate(b"hi\n", timeout=60)
    assert (shown, errors) == (expected, b"")


def test_an_output_that_failed_is_an_error(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(ids: list[int], logits: object) -> None:
        raise ValueError("no logits today")

    make = cli_generate.sampling_params

    def with_processor(options: argparse.Namespace) -> SamplingParams:
        params = make(options)
        params.logits_processors = [broken]
        return params

    monkeypatch.setattr(cli_generate, "sampling_params", with_processor)
    assert cli.main(["generate", str(tiny_dir), "hi", "--max-tokens", "3"]) == 2
    assert "no logits today" in capsys.readouterr().err


def test_the_prompt_may_follow_the_options(
    tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for arguments in (["hi", "--max-tokens", "3"], ["--max-tokens", "3", "hi"]):
        assert cli.main(["generate", str(tiny_dir), *arguments]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert cli.main(["selftest", str(tiny_dir), "--max-tokens", "3", "/no/such/drafter"]) == 2
    assert "/no/such/drafter" in capsys.readouterr().err
    for arguments in (["hi", "there"], ["hi", "--no-such-option"], ["--max-token", "3", "a", "b"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["generate", str(tiny_dir), *arguments])
        assert exit_.value.code == 2
        assert "unrecognized arguments: " in capsys.readouterr().err
