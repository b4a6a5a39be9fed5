"""The command `forerun generate`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from forerun.errors import ForerunError, InvalidArgumentError
from forerun.tools.cli_options import (
    add_engine,
    add_model,
    add_sampling,
    add_structure,
    load_with_method,
    print_stats,
    sampling_params,
    show,
)


def add_generate(commands: Any) -> None:
    """The command `forerun generate`."""
    generate = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continues a text and prints it token by token.",
    )
    add_model(generate)
    generate.add_argument("prompt", nargs="?", help="the text; left out: standard input")
    add_sampling(generate, max_tokens=256)
    add_structure(generate)
    add_engine(generate)
    generate.set_defaults(run=_generate, optional="prompt")


def _generate(options: argparse.Namespace) -> int:
    params = sampling_params(options)
    prompt = options.prompt if options.prompt is not None else _read_standard_input()
    llm = load_with_method(options)
    with llm.stream(prompt, params) as stream:
        show(prompt)
        for delta in stream:
            show(delta.text)
    print()
    assert delta.output is not None
    if delta.output.error is not None:
        raise ForerunError(delta.output.error)
    if options.stats:
        print_stats(delta.output)
    return 0


def _read_standard_input() -> str:
    """All of it, without the newline that ends its last line."""
    if sys.stdin is None:
        raise InvalidArgumentError("prompt", None, "a text, or standard input to read it from")
    if sys.stdin.isatty():
        print("Reading the prompt; Ctrl-D on an empty line ends it.", file=sys.stderr)
    text = sys.stdin.read()
    return text[:-1] if text.endswith("\n") else text
