"""Strings that UTF-8 cannot hold are refused by name, and output degrades instead of failing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forerun
from forerun import LLM, InvalidArgumentError, SamplingParams
from forerun.checkpoints.convert import convert
from forerun.text.structured_outputs import StructuredOutputsParams

LONE = "\ud83d"


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, max_model_len=64)


def refused(field: str, action: Callable[[], Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        action()
    assert caught.value.field == field
    assert "lone surrogate" in caught.value.expected
    str(caught.value).encode()


def test_a_prompt_is_named_by_its_number(llm: LLM) -> None:
    one = SamplingParams(max_tokens=1)
    refused("prompts[1]", lambda: llm.generate(["fine", LONE], one, use_tqdm=False))
    refused("prompts[2]", lambda: llm.generate(["a", "b", {"prompt": f"a{LONE}"}], one))
    refused("prompts", lambda: llm.generate("hi \udc80", one))
    refused("prompts[1]", lambda: llm.stream(["fine", f"{LONE} {LONE}"], one))
    assert len(llm.generate(["fine", "\ufffd 🤗 \0"], one, use_tqdm=False)) == 2


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("stop", {"stop": LONE}),
        ("stop", {"stop": ["ok", LONE]}),
        ("bad_words", {"bad_words": ["ok", f"a{LONE}"]}),
        ("choice", {"structured_outputs": {"choice": ["a", LONE]}}),
        ("regex", {"structured_outputs": {"regex": f"[a{LONE}]"}}),
        ("grammar", {"structured_outputs": {"grammar": f'start: "{LONE}"'}}),
    ],
)
def test_parameters_name_their_field(field: str, fields: dict[str, Any]) -> None:
    refused(field, lambda: SamplingParams(**fields))


def test_structured_outputs_name_their_field() -> None:
    refused("regex", lambda: StructuredOutputsParams(regex=LONE))


def test_paths_name_their_field(tiny_dir: Path, tmp_path: Path) -> None:
    refused("model", lambda: LLM(LONE))
    refused("model", lambda: LLM(Path(f"/tmp/{LONE}")))
    refused("tokenizer", lambda: LLM(tiny_dir, tokenizer=LONE))
    refused("model", lambda: forerun.SpeculativeConfig(model=LONE))
    refused("gguf", lambda: convert(LONE, tmp_path / "out"))
    refused("directory", lambda: convert("x.gguf", f"{LONE}"))
    for action in (lambda: LLM("a\0b"), lambda: LLM(b"bytes"), lambda: LLM(3)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="model"):
            action()
    for absent in ("", 0, False):
        with pytest.raises(InvalidArgumentError, match="tokenizer"):
            LLM(tiny_dir, tokenizer=absent)  # type: ignore[arg-type]


def test_unknown_names_that_utf8_cannot_hold_are_printable() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        SamplingParams(**{LONE: 1})
    assert "\\ud83d" in str(caught.value)


def run_cli(
    arguments: list[str | bytes], stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "forerun", *arguments],
        input=stdin,
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_the_command_line_refuses_latin1_input(tiny_dir: Path) -> None:
    result = run_cli(["generate", str(tiny_dir), "--max-tokens", "2"], b"caf\xe9")
    assert result.returncode == 2
    assert b"prompts" in result.stderr
    assert b"lone surrogate" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_terminal_without_utf8_shows_question_marks(tiny_dir: Path) -> None:
    text = "caf\u00e9 \U0001f917"
    result = run_cli(
        ["generate", str(tiny_dir), text, "--max-tokens", "2"], PYTHONIOENCODING="ascii"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"caf? ?")
    result = run_cli(
        ["generate", str(tiny_dir), "--max-tokens", "2"], text.encode(), PYTHONIOENCODING="latin-1"
    )
    assert result.returncode == 0, result.stderr
