"""The command `forerun chat`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from forerun.errors import ForerunError, InvalidArgumentError
from forerun.tools.cli_options import (
    add_engine,
    add_model,
    add_sampling,
    add_structure,
    load_with_method,
    model_name,
    print_stats,
    sampling_params,
    show,
)
from forerun.util.checks import check_str

if TYPE_CHECKING:
    from forerun.llm import LLM
    from forerun.outputs import RequestOutput

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
    add_model(chat)
    chat.add_argument(
        "--system", "--system-prompt", metavar="TEXT", help="how the model should behave"
    )
    add_sampling(chat, max_tokens=1024)
    add_structure(chat)
    add_engine(chat)
    chat.set_defaults(run=_chat)


def _chat(options: argparse.Namespace) -> int:
    chat = Chat(options, load_with_method(options))
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    read_line = _line_reader(is_terminal)
    name = model_name(options.model)
    _notice(f"Chat with {name}. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
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
    """A conversation: what was said so far, and how the model is asked to go on."""

    def __init__(self, options: argparse.Namespace, llm: LLM) -> None:
        if llm.get_tokenizer().chat_template is None:
            raise InvalidArgumentError("model", options.model, "a model with a chat template")
        self._llm = llm
        self._params = sampling_params(options)
        self._shows_stats = options.stats
        self._system = options.system
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
            except ForerunError as error:
                _notice(f"[error: {error}]")

    def _answer(self, message: str) -> None:
        """Streams an answer. Question and answer are kept together or, without text, neither."""
        user = {"role": "user", "content": check_str("message", message)}
        messages = [*self._messages, user]
        prompt = self._llm.render_chat(messages)
        num_tokens, limit = len(prompt["prompt_token_ids"]), self._llm.limits.max_model_len
        if num_tokens >= limit:
            _notice(
                f"[too long: the conversation would have {num_tokens} tokens, and the model takes "
                f"{limit} with the answer; /reset starts a new one]"
            )
            return
        text = ""
        output: RequestOutput | None = None
        try:
            with self._llm.stream(prompt, self._params) as stream:
                for delta in stream:
                    text += delta.text
                    show(delta.text)
                    output = delta.output
        except KeyboardInterrupt:
            output = None
        if text:
            self._messages = [*messages, {"role": "assistant", "content": text}]
        print(flush=True)
        self._remark(text, output)

    def _remark(self, text: str, output: RequestOutput | None) -> None:
        """Says how an answer ended, unless it ended by itself."""
        if output is None:
            _notice("[stopped]" if text else "[stopped before the answer began]")
            return
        if output.error is not None:
            _notice(f"[error: {output.error}]")
        elif output.outputs[0].finish_reason == "length":
            limit = self._llm.limits.max_model_len
            num_tokens = len(output.prompt_token_ids) + len(output.outputs[0].token_ids)
            _notice(
                f"[cut off: the conversation fills the model's {limit} tokens; /reset starts a new "
                "one]"
                if num_tokens >= limit
                else f"[cut off after {self._params.max_tokens} tokens: --max-tokens]"
            )
        elif not text:
            _notice("[an empty answer]")
        if self._shows_stats:
            print_stats(output)
