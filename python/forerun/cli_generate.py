"""The command `forerun generate`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

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


def add_generate(commands: Any) -> None:
    """The command `forerun generate`."""
    generate = commands.add_parser(
        "generate", help="continue a text", description="Continues a text; shows it as it is made."
    )
    add_model(generate)
    generate.add_argument("prompt", nargs="?", help="the text; standard input where it is left out")
    add_sampling(generate, max_tokens=256)
    add_structure(generate)
    add_engine(generate)
    generate.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> int:
    from forerun.bench import run_prompt

    params = sampling_params(options)
    prompt = options.prompt if options.prompt is not None else sys.stdin.read()
    llm = load_with_method(options)
    show(prompt)
    output = run_prompt(llm, prompt, params, show)
    print()
    if options.stats:
        print_stats(output)
    return 0
