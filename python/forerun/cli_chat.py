"""The command `forerun chat`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from forerun.cli_options import (
    add_engine,
    add_model,
    add_sampling,
    add_structure,
    load_with_method,
    print_stats,
    sampling_params,
    show,
)
from forerun.errors import InvalidArgumentError

if TYPE_CHECKING:
    from forerun.llm import LLM
    from forerun.sampling_params import SamplingParams


def add_chat(commands: Any) -> None:
    """The command `forerun chat`."""
    chat = commands.add_parser(
        "chat",
        help="talk with a model",
        description="Talks with a model that has a chat template. /reset starts anew, /quit ends; "
        "Ctrl-C stops an answer.",
    )
    add_model(chat)
    chat.add_argument("--system", metavar="TEXT", help="how the model should behave")
    add_sampling(chat, max_tokens=1024)
    add_structure(chat)
    add_engine(chat)
    chat.set_defaults(run=_chat)


def _chat(options: argparse.Namespace) -> int:
    params = sampling_params(options)
    llm = load_with_method(options)
    if llm.get_tokenizer().chat_template is None:
        raise InvalidArgumentError("model", options.model, "a model with a chat template")
    system = [{"role": "system", "content": options.system}] if options.system else []
    messages = list(system)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        if line in ("/quit", "/exit"):
            return 0
        if line == "/reset":
            messages = list(system)
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append(
                {"role": "assistant", "content": _answer(options, llm, messages, params)}
            )


def _answer(
    options: argparse.Namespace, llm: LLM, messages: list[dict[str, str]], params: SamplingParams
) -> str:
    """Streams one answer; Ctrl-C stops it and keeps what there is."""
    text = ""
    try:
        with llm.stream(llm.render_chat(messages), params) as stream:
            for delta in stream:
                text += delta.text
                show(delta.text)
                if delta.output is not None and options.stats:
                    print()
                    print_stats(delta.output)
    except KeyboardInterrupt:
        pass
    print()
    return text
