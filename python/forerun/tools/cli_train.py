"""What the command line says of training."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from forerun.training.options import METHOD_OPTIONS, TRAIN_METHODS, TrainOptions

_NUMBERS: tuple[tuple[str, type, str], ...] = (
    ("num_examples", int, "examples that the target writes (4000), or that are read at most"),
    ("max_length", int, "tokens of an example"),
    ("max_answer_tokens", int, "tokens of an answer that the target writes (to max_length)"),
    ("held_out", float, "share of the examples that is kept for the acceptance at the end"),
    ("steps", int, "training ends after so many"),
    ("epochs", float, "training ends after so many"),
    ("minutes", float, "training ends after so many (60, where nothing else ends it)"),
    ("batch_tokens", int, "tokens of a step, with the padding"),
    ("lr", float, "highest learning rate (0.001)"),
    ("warmup", float, "share of training in which the learning rate rises"),
    ("grad_clip", float, "longest gradient"),
    ("num_positions", int, "tokens of a draft that are trained for"),
    ("step_decay", float, "weight of a position relative to the one before"),
    ("growth", float, "share of training in which the positions trained for grow from one to all"),
    ("draft_vocab_size", int, "the most frequent tokens, which alone can be drafted"),
    ("loss_vocab_size", int, "tokens that a step's loss compares, with --freeze-head (all)"),
    ("num_layers", int, "layers of a draft model, or blocks of a Medusa head"),
    ("hidden_size", int, "width of a draft model"),
    ("intermediate_size", int, "width between the matrices of a layer"),
    ("save_minutes", float, "minutes between checkpoints"),
    ("seed", int, "of data, weights and order"),
    ("num_threads", int, "of torch; 0 leaves it the choice"),
)
_SWITCHES = (
    ("fc_norm", "norm each of the target's states"),
    ("norm_before_residual", "the normed hidden state is the residual"),
    ("freeze_head", "keep the target's output matrix as it is"),
    ("share_head", "leave the output matrix out of the file: it is the target's"),
    ("cache", "keep the target's states on disk (default: yes)"),
    ("resume", "continue from the state in --out, if there is one (default: yes)"),
)
_DEFAULTS = {field.name: field.default for field in fields(TrainOptions)}


def add_train(commands: Any) -> None:
    """The command `forerun train`."""
    parser = commands.add_parser(
        "train",
        help="make a drafter for a model",
        description="Trains a drafter for a model and writes it, in the format that people "
        "publish, into OUT/checkpoint. OUT also gets a log, the learning curves, the acceptance on "
        "examples that were held out, and the state from which the same command continues. Needs "
        "the extra 'train'.",
    )
    parser.add_argument("method", choices=TRAIN_METHODS)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="the target")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.jsonl",
        help="lines with 'prompt' and 'answer' (texts or token ids), or with 'messages'; left "
        "out, the target writes both",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE.jsonl",
        help="lines with 'prompt' (a user's words or token ids), 'turns' or 'messages', which the "
        "target answers; left out, it writes them too",
    )
    for name, kind, what in _NUMBERS:
        parser.add_argument(
            _flag(name), type=kind, default=_DEFAULTS[name], metavar="N", help=_help(name, what)
        )
    parser.add_argument(
        "--states",
        type=Path,
        metavar="DIR",
        help="where the target's states are kept, which runs of several methods can use one after "
        "the other (default: OUT/cache)",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="a drafter, or the OUT of the run that made it, whose weights this one starts from",
    )
    parser.add_argument(
        "--layer-ids",
        type=_numbers,
        metavar="N,N,N",
        help=_help("layer_ids", "the target's layers that are read, by how many are before"),
    )
    for name, what in _SWITCHES:
        parser.add_argument(
            _flag(name),
            action=argparse.BooleanOptionalAction,
            default=_DEFAULTS[name],
            help=_help(name, what),
        )
    parser.add_argument("--device", default=_DEFAULTS["device"], help="cpu (default) or cuda")
    parser.set_defaults(run=_train)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(name: str, what: str) -> str:
    methods = METHOD_OPTIONS.get(name)
    scope = f"{', '.join(methods)}: " if methods else ""
    default = _DEFAULTS[name]
    shown = type(default) in (int, float)
    return scope + what + (f" (default: {default})" if shown else "")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _train(options: argparse.Namespace) -> int:
    from forerun.training import train

    train(TrainOptions(**{name: getattr(options, name) for name in _DEFAULTS}))
    return 0
