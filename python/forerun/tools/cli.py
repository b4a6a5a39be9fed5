"""The command line: forerun generate, chat, serve, bench, convert, inspect, memory and more."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from forerun.errors import ForerunError
from forerun.tools.cli_bench import add_bench
from forerun.tools.cli_chat import add_chat
from forerun.tools.cli_checkpoints import add_checkpoint_commands
from forerun.tools.cli_drafters import add_selftest
from forerun.tools.cli_generate import add_generate
from forerun.tools.cli_memory import add_memory
from forerun.tools.cli_serve import add_serve
from forerun.tools.cli_train import add_train
from forerun.version import package_version

_DESCRIPTION = """\
Generates text from language models with speculative decoding: drafts several tokens, verifies
all of them in one forward pass of the model, and so writes the same text faster.

MODEL is a Hugging Face model directory, a .gguf file (converted once into a cache), or the id of
a model on the Hugging Face hub (downloaded once)."""

_EXAMPLES = """\
examples:
  forerun generate MODEL "Once upon a time" --max-tokens 100
  forerun chat MODEL
  forerun serve MODEL --port 8000
  forerun bench MODEL prompts.jsonl --plot speed.png
  forerun convert model.gguf model-directory
  forerun inspect checkpoint-directory
  forerun memory show FILE
  forerun selftest MODEL DRAFTER
  forerun train eagle3 --model MODEL --out head-directory

'forerun COMMAND --help' says more about a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    _tolerate_encodings()
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 141
    except KeyboardInterrupt:
        print("forerun: interrupted", file=sys.stderr)
        return 130
    except (ForerunError, OSError) as error:
        _drop_output()
        print(f"forerun: error: {error}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # Before Python 3.13 argparse does not take an optional argument that follows an option.
    name = options.optional
    if len(rest) == 1 and name and getattr(options, name) is None and rest[0][:1] != "-":
        setattr(options, name, rest[0])
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.run is None:
        parser.print_help()
        return 0
    status: int = options.run(options)
    return status


def _drop_output() -> None:
    """Output that cannot be written must not fail once more when the interpreter flushes it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AttributeError:  # there is no standard output
        pass


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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(run=None, optional=None)

    add_generate(commands)
    add_chat(commands)
    add_serve(commands)
    add_bench(commands)
    add_checkpoint_commands(commands)
    add_memory(commands)
    add_selftest(commands)
    add_train(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
