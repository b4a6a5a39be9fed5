"""The commands `forerun convert` and `forerun inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from forerun.errors import CheckpointError


def add_checkpoint_commands(commands: Any) -> None:
    """The commands `forerun convert` and `forerun inspect`."""
    convert = commands.add_parser(
        "convert",
        help="turn a .gguf file into a model directory",
        description="Writes the model of a GGUF file (Llama or Gemma 3 family, any quantization) "
        "as a Hugging Face directory in bfloat16.",
    )
    convert.add_argument("gguf", metavar="FILE.gguf")
    convert.add_argument("directory", metavar="OUT_DIR", help="a new or empty directory")
    convert.set_defaults(run=_convert)

    inspect = commands.add_parser(
        "inspect",
        help="show what a checkpoint directory or .gguf file holds",
        description="Detects from tensors and config what a directory is: a language model, or a "
        "drafter of which method, for which target, and what its config leaves open. Reads no "
        "weights.",
    )
    inspect.add_argument(
        "path", metavar="PATH", help="a directory with config.json and weights, or a .gguf"
    )
    inspect.add_argument("--method", metavar="NAME", help="fail unless it can serve as this")
    inspect.add_argument("--target", metavar="DIR", help="fail unless it fits this model")
    inspect.set_defaults(run=_inspect)


def _convert(options: argparse.Namespace) -> int:
    from forerun.checkpoints.convert import convert

    print(convert(options.gguf, options.directory))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from forerun.checkpoints.inspection import fit_problems, inspect

    found = inspect(Path(options.path), options.method)
    print(found)
    if options.target is None:
        return 0
    from forerun.checkpoints.vocabulary_bridge import find_bridge

    target = inspect(Path(options.target))
    problems, bridge = fit_problems(found, target), None
    try:
        bridge = find_bridge(found, target) if found.method == "target" else None
    except CheckpointError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"  does not fit {options.target}: {problem}")
    if not problems:
        print(f"  fits {options.target}")
    if bridge is not None and not problems:
        size = len(bridge.draft_ids)
        print(f"  by the {len(bridge.shared_ids)} tokens that it shares with the target's {size}")
    return 1 if problems else 0
