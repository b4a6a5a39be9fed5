"""The command `forerun train`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from forerun.training.options import TRAIN_METHODS, TrainOptions

_USUAL = {field.name: field.default for field in fields(TrainOptions)}


def add_train(commands: Any) -> None:
    """The command `forerun train`."""
    parser = commands.add_parser(
        "train",
        help="make a drafter for a model",
        description="Trains a head that drafts for a model and writes it in the format that people "
        "publish, into OUT/checkpoint, with a log, learning curves and the state to go on from: "
        "the same command resumes. Needs the extra 'train'.",
    )
    parser.add_argument("method", choices=TRAIN_METHODS)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="the target")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.jsonl",
        help="lines with 'prompt' and 'answer', or 'messages'; left out: the target writes both",
    )
    for name, kind, what in (
        ("num_examples", int, "how many the target writes, or are read at most"),
        ("max_length", int, "tokens of an example"),
        ("minutes", float, "of training"),
        ("lr", float, "the highest learning rate"),
        ("batch_tokens", int, "tokens of a step"),
        ("num_steps", int, "positions to be trained: drafted tokens, or heads"),
        ("step_decay", float, "weight of a position relative to the one before"),
        ("draft_vocab_size", int, "eagle3: tokens that can be drafted"),
        ("save_every", float, "seconds between checkpoints"),
        ("seed", int, "of data, weights and order"),
    ):
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            default=_USUAL[name],
            metavar="N",
            help=f"{what} (default: %(default)s)",
        )
    parser.add_argument(
        "--layer-ids",
        type=lambda text: [int(part) for part in text.split(",")],
        metavar="N,N,N",
        help="eagle3: the target's layers that are read, each by how many are before it",
    )
    parser.add_argument(
        "--share-head",
        action=argparse.BooleanOptionalAction,
        default=_USUAL["share_head"],
        help="keep the target's output matrix, or train one (default: keep)",
    )
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from forerun.training import train

    train(TrainOptions(**{name: getattr(options, name) for name in _USUAL}))
    return 0
