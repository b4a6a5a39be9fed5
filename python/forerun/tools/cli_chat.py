"""The command `forerun chat`."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable
from typing import Any

from forerun.errors import ForerunError
from forerun.tools.chat_models import ChatModel, ConversationTooLongError, LocalModel, ServedModel
from forerun.tools.cli_options import (
    add_engine,
    add_sampling,
    add_structure,
    add_url,
    check_remote,
    show,
)
from forerun.util.checks import check_str

_BLOCK = '"""'
_HELP = f"""\
/help   show this
/reset  start a new conversation
/quit   leave (or Ctrl-D)

Ctrl-C stops an answer. A message of several lines begins and ends with {_BLOCK}; in a terminal
Alt-Enter also starts a new line."""


def add_chat(commands: Any) -> None:
    """The command `forerun chat`."""
    chat = commands.add_parser(
        "chat",
        help="talk with a model",
        description="Talks with a model that has a chat template. Commands within the chat: /help, "
        "/reset, /quit.",
    )
    chat.add_argument(
        "model", nargs="?", metavar="MODEL", help="a directory, a .gguf file or a hub id"
    )
    add_url(chat)
    chat.add_argument(
        "--system", "--system-prompt", metavar="TEXT", help="how the model should behave"
    )
    add_sampling(chat, max_tokens=1024)
    add_structure(chat)
    add_engine(chat)
    chat.set_defaults(run=_chat, optional="model")


def _chat(options: argparse.Namespace) -> int:
    check_remote(options, with_method=True)
    model: ChatModel = LocalModel(options) if options.url is None else ServedModel(options)
    chat = Chat(model, options.system, options.stats)
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    read_line = _line_reader(is_terminal)
    _notice(f"Chat with {model.name}. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            message = _read_message(read_line)
            if message == "/quit" or message == "/exit":
                return 0
            chat.take(message)
        except EOFError:
            return 0
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            _notice("/quit or Ctrl-D leaves")


def _line_reader(is_terminal: bool) -> Callable[[str], str]:
    """What reads a line: with history and editing in a terminal, and without a prompt elsewhere."""
    if not (is_terminal and sys.stdout.isatty()):
        return lambda _: input("")
    from prompt_toolkit import PromptSession
    from prompt_toolkit.filters import is_searching
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _start_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        multiline=True, key_bindings=keys, prompt_continuation="  "
    )
    return session.prompt


def _read_message(read_line: Callable[[str], str]) -> str:
    """A line, or all lines from one that begins with three quotes to one that ends with them."""
    message = read_line("> ").strip()
    if not message.startswith(_BLOCK):
        return message
    message = message.removeprefix(_BLOCK)
    try:
        while not message.endswith(_BLOCK):
            message += "\n" + read_line("  ").rstrip()
    except EOFError:
        pass  # the end of the input also ends the message
    return message.removesuffix(_BLOCK).strip("\n")


def _notice(text: str) -> None:
    """Says something that is not the model's: standard output has answers alone."""
    print(text, file=sys.stderr, flush=True)


class Chat:
    """A conversation: what was said so far, and the model that goes on."""

    def __init__(self, model: ChatModel, system: str | None, shows_stats: bool) -> None:
        self._model = model
        self._system = system
        self._shows_stats = shows_stats
        self._reset()

    def _reset(self) -> None:
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def take(self, message: str) -> None:
        """Obeys a command, or answers a message."""
        if message == "/help":
            _notice(_HELP)
        elif message == "/reset":
            self._reset()
            _notice("[a new conversation]")
        elif re.fullmatch(r"/\w+", message):
            _notice(f"[no command {message}: /help lists the commands]")
        elif message:
            try:
                self._answer(message)
            except ConversationTooLongError as error:
                _notice(f"[{error}]")
            except ForerunError as error:
                _notice(f"[error: {error}]")

    def _answer(self, message: str) -> None:
        """Streams an answer. Question and answer are kept together or, without text, neither."""
        user = {"role": "user", "content": check_str("message", message)}
        messages = [*self._messages, user]
        text = ""
        is_complete = False
        try:
            with contextlib.closing(self._model.answer(messages)) as pieces:
                for piece in pieces:
                    text += piece
                    show(piece)
            is_complete = True
        except KeyboardInterrupt:
            pass
        if text:
            self._messages = [*messages, {"role": "assistant", "content": text}]
        print(flush=True)
        self._remark(text, is_complete)

    def _remark(self, text: str, is_complete: bool) -> None:
        """Says how an answer ended, unless it ended by itself."""
        if not is_complete:
            _notice("[stopped]" if text else "[stopped before the answer began]")
            return
        if remark := self._model.remark():
            _notice(f"[{remark}]")
        elif not text:
            _notice("[an empty answer]")
        if self._shows_stats:
            self._model.print_stats()
