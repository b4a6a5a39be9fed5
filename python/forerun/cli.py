"""The command line: forerun generate | chat | bench | convert | inspect | selftest | train."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from forerun.cli_bench import add_bench
from forerun.cli_chat import add_chat
from forerun.cli_checkpoints import add_checkpoint_commands
from forerun.cli_drafters import add_selftest
from forerun.cli_generate import add_generate
from forerun.cli_train import add_train
from forerun.errors import ForerunError
from forerun.version import package_version

_DESCRIPTION = """\
Generates text from language models with speculative decoding: guesses several tokens ahead,
checks all guesses in one pass of the model, and so writes the same text faster.

MODEL is a Hugging Face model directory, a .gguf file (converted once into a cache), or the id of
a model on the Hugging Face hub (downloaded once)."""

_EXAMPLES = """\
examples:
  forerun generate MODEL "Once upon a time" --max-tokens 100
  forerun chat MODEL
  forerun bench MODEL prompts.jsonl --plot speed.png
  forerun convert model.gguf model-directory
  forerun inspect checkpoint-directory
  forerun selftest MODEL DRAFTER
  forerun train eagle3 --model MODEL --out head-directory

'forerun COMMAND --help' says more about a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    _tolerate_encodings()
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except ForerunError as error:
        print(f"forerun: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; say nothing at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _tolerate_encodings() -> None:
    """Shows what a terminal cannot write as `?`, and leaves wrong input to the checks of text."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "forerun",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=package_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add_generate(commands)
    add_chat(commands)
    add_bench(commands)
    add_checkpoint_commands(commands)
    add_selftest(commands)
    add_train(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
