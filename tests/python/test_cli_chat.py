"""`forerun chat`, from a pipe and in a terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forerun import LLM
from forerun.tools import cli, cli_chat

Conversation = list[tuple[str, str]]


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[Conversation]:
    """Every conversation that the model was asked to continue."""
    seen: list[Conversation] = []
    render = LLM.render_chat

    def watched(self: LLM, messages: Any, **options: Any) -> Any:
        seen.append([(message["role"], message["content"]) for message in messages])
        return render(self, messages, **options)

    monkeypatch.setattr(LLM, "render_chat", watched)
    return seen


def chat(monkeypatch: pytest.MonkeyPatch, model: Path, lines: list[str], *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    return cli.main(["chat", str(model), "--ignore-eos", *options])


def test_a_pipe_gets_answers_alone(
    tiny_dir: Path,
    rendered: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = ["hi", "", "/help", "ho", "/reset", "/nothing", "hey", "/quit", "unread"]
    assert chat(monkeypatch, tiny_dir, lines, "--max-tokens", "4", "--system", "brief") == 0
    shown = capsys.readouterr()
    (first, second, third) = rendered
    assert first == [("system", "brief"), ("user", "hi")]
    assert [role for role, _ in second] == ["system", "user", "assistant", "user"]
    assert third == [("system", "brief"), ("user", "hey")]
    assert shown.out.startswith(second[2][1] + "\n")
    assert "> " not in shown.out
    told = shown.err.splitlines()
    assert told[0].startswith(f"Chat with {tiny_dir.name}. ")
    assert "Ctrl-D leaves" in told[0]
    for text in ("/reset  start a new conversation", "[a new conversation]", "no command /nothing"):
        assert text in shown.err
    assert shown.err.count("[cut off after 4 tokens: --max-tokens]") == 3


def test_three_quotes_enclose_a_message_of_several_lines(
    tiny_dir: Path, rendered: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ['"""one', "", '  two"""', '"""a"""', "/etc/hosts ?", '"""open']
    assert chat(monkeypatch, tiny_dir, lines, "--max-tokens", "2") == 0
    asked = [conversation[-1][1] for conversation in rendered]
    assert asked == ["one\n\n  two", "a", "/etc/hosts ?", "open"]


def test_a_conversation_that_is_too_long_is_named_and_can_be_reset(
    tiny_dir: Path,
    rendered: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = ["first", "x" * 200, "again", "/reset", "anew"]
    assert chat(monkeypatch, tiny_dir, lines, "--max-model-len", "64") == 0
    told = capsys.readouterr().err
    assert "[cut off: the conversation fills the model's 64 tokens; /reset" in told
    assert "tokens, and the model takes 64 with the answer; /reset starts a new one]" in told
    assert rendered[-1] == [("user", "anew")]
    # What was too long is not part of the conversation.
    assert [content for role, content in rendered[2] if role == "user"] == ["first", "again"]


def test_an_error_in_a_turn_keeps_the_chat(
    tiny_dir: Path,
    rendered: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert chat(monkeypatch, tiny_dir, ["caf\udce9", "fine"], "--max-tokens", "2") == 0
    assert "[error: " in capsys.readouterr().err
    assert rendered[-1] == [("user", "fine")]


def test_an_interrupt_keeps_what_was_written(
    tiny_dir: Path,
    rendered: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_chat, "show", show)
    assert chat(monkeypatch, tiny_dir, ["one", "two"], "--max-tokens", "9") == 0
    assert rendered[1] == [("user", "one"), ("assistant", "".join(pieces[:3])), ("user", "two")]
    assert capsys.readouterr().err.count("[stopped]") == 1


def test_an_interrupt_before_the_answer_takes_the_question_back(
    tiny_dir: Path,
    rendered: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream, calls = LLM.stream, []

    def interrupted_once(self: LLM, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return stream(self, *arguments)

    monkeypatch.setattr(LLM, "stream", interrupted_once)
    assert chat(monkeypatch, tiny_dir, ["one", "two"], "--max-tokens", "9") == 0
    assert rendered[1] == [("user", "two")]
    assert "[stopped before the answer began]" in capsys.readouterr().err


# In a terminal of its own, slow enough to be interrupted, and says what the model was asked to
# continue.
SLOW = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from forerun import LLM
from forerun.tools import cli
from forerun.tools import cli_chat
render, show = LLM.render_chat, cli_chat.show
def watched(self, messages, **options):
    print("ROLES", *(message["role"] for message in messages))
    return render(self, messages, **options)
def slow(text):
    show("+")
    time.sleep(0.02)
LLM.render_chat, cli_chat.show = watched, slow
sys.exit(cli.main())
"""


# A prompt turns bracketed paste on.
PROMPT = "\x1b[?2004h"


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Reads until the text is shown; returns what was shown with it."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.shown!r}"
            try:
                self.shown += os.read(self._master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self.shown!r}") from None
        begin, _, rest = self.shown.partition(text)
        self.shown = rest
        return begin + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tiny_dir: Path) -> Iterator[Terminal]:
    options = ("--ignore-eos", "--max-tokens", "300", "--method", "none")
    program = Terminal(sys.executable, "-c", SLOW, "chat", str(tiny_dir), *options)
    yield program
    program.close()


def test_a_terminal_has_history_and_interrupts(terminal: Terminal) -> None:
    terminal.wait_for("Ctrl-D leaves.")
    terminal.wait_for(PROMPT)
    terminal.send("one\x1b\rtwo\r")  # Alt-Enter, then Enter
    terminal.wait_for("ROLES user\r\n")
    terminal.wait_for("+++")
    terminal.send("\x03")
    terminal.wait_for("[stopped]")
    terminal.wait_for(PROMPT)
    terminal.send("half\x03")
    terminal.wait_for("/quit or Ctrl-D leaves")
    terminal.wait_for(PROMPT)
    terminal.send("\x1b[A\r")  # the arrow up
    assert "two" in terminal.wait_for("ROLES user assistant user\r\n")
    terminal.wait_for("+++")
    terminal.send("\x03")
    terminal.wait_for("[stopped]")
    terminal.wait_for(PROMPT)
    terminal.send("\x04")
    assert terminal.process.wait(timeout=60) == 0
