"""Small training runs: options, data to be learned by heart, and the trainer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from forerun.training import TrainOptions
from forerun.training.data import Corpus
from forerun.training.loop import Trainer
from forerun.training.target import Target

DRAFT_VOCAB, POSITIONS = 48, 3


def write_data(file: Path) -> Path:
    """Few short texts, to be learned by heart."""
    draw = random.Random(4)
    lines = []
    for _ in range(24):
        prompt = [draw.randrange(3, 40) for _ in range(draw.randint(1, 9))]
        answer = [draw.randrange(3, 40) for _ in range(draw.randint(2, 14))]
        lines.append(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
    file.write_text("".join(lines))
    return file


def small_options(method: str, **changes: Any) -> TrainOptions:
    """Options of a run of a few seconds; `changes` has the model, the data and the out."""
    usual: dict[str, Any] = {"steps": 12, "batch_tokens": 150, "lr": 3e-3, "held_out": 0.1}
    if method != "draft_model":
        usual["num_positions"] = POSITIONS
    if method == "eagle3":
        usual |= {"draft_vocab_size": DRAFT_VOCAB}
    return TrainOptions(method=method, **{**usual, **changes})


def trainer_of(options: TrainOptions, target: Target) -> Trainer:
    """A trainer of the options' run."""
    assert options.data is not None
    options.out.mkdir(exist_ok=True)
    return Trainer(target, Corpus(options, options.data, target.vocab_size), options)
