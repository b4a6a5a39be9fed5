"""What a training run is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.util.json_files import read_json_object

TRAIN_METHODS = ("eagle3", "eagle", "mlp_speculator", "medusa", "mtp", "draft_model")
# Options that only some methods have; None means "the method's own default".
METHOD_OPTIONS: dict[str, tuple[str, ...]] = {
    "num_positions": ("eagle3", "eagle", "mlp_speculator", "medusa", "mtp"),
    "step_decay": ("eagle3", "eagle", "mlp_speculator", "medusa", "mtp"),
    "draft_vocab_size": ("eagle3", "medusa"),
    "loss_vocab_size": ("mlp_speculator",),
    "layer_ids": ("eagle3",),
    "fc_norm": ("eagle3",),
    "norm_before_residual": ("eagle3",),
    "freeze_head": ("eagle3", "mlp_speculator", "medusa"),
    "share_head": ("eagle3", "medusa"),
    "num_layers": ("medusa", "draft_model"),
    "intermediate_size": ("eagle3", "eagle", "draft_model"),
    "hidden_size": ("draft_model",),
}
_AT_LEAST = {
    "num_examples": 1,
    "num_positions": 1,
    "num_layers": 1,
    "draft_vocab_size": 1,
    "loss_vocab_size": 16,
    "intermediate_size": 1,
    "hidden_size": 8,
    "max_length": 8,
    "max_answer_tokens": 2,
    "batch_tokens": 8,
    "steps": 1,
    "num_threads": 0,
}
_ABOVE_ZERO = ("minutes", "epochs", "lr", "save_minutes", "step_decay", "grad_clip")


@dataclass(kw_only=True)
class TrainOptions:
    """Options of `forerun train`. Wrong values raise InvalidArgumentError at once.

    Attributes:
        method: one of TRAIN_METHODS.
        model: the target's directory.
        out: gets checkpoint/, state/, cache/, the log and the learning curves.
        data: JSON lines with "prompt" and "answer" (texts or token ids) or "messages"; it may grow
            while training runs. None lets the target write both, into out/data.jsonl.
        prompts: JSON lines with a user's "prompt" (text or token ids), "turns" or "messages", which
            the target answers, several times with other samples; None: it writes them too.
        num_examples: how many examples the target writes; of `data`, how many are read at most.
        max_length: tokens of an example; what is longer is cut.
        max_answer_tokens: of an answer that the target writes; None lets it fill max_length.
        held_out: the share of the examples that is kept for the acceptance at the end.
        steps, epochs, minutes: training ends, with the learning rate, when the first is reached;
            none given means an hour.
        batch_tokens: tokens of a step, padding included.
        lr: the highest learning rate.
        warmup: the share of training in which it rises.
        grad_clip: the longest gradient.
        num_positions: tokens of a draft that are trained for: steps of the training-time test, or
            heads.
        step_decay: the weight of a position relative to the one before it.
        growth: the share of training in which the number of positions that are trained for grows,
            from one; later positions are the costly ones and learn little before the first has.
        draft_vocab_size: the most frequent tokens of the answers, which alone can be drafted: 8192
            for eagle3, or as many as where it starts; all for medusa.
        loss_vocab_size: tokens that a step's loss compares where the head is frozen: three quarters
            are the most frequent of the answers, the others the batch's own and drawn ones. All by
            default.
        layer_ids: the target's layers that eagle3 reads, by how many are before them; 1 cannot be
            the first.
        fc_norm: eagle3 norms each of the states that it reads.
        norm_before_residual: eagle3 takes the normed feature as residual.
        freeze_head: keep the target's rows as output matrix instead of training them.
        share_head: leave the output matrix out of the file: it is the target's. Freezes it.
        num_layers: layers of a draft model; residual blocks of a Medusa head.
        hidden_size, intermediate_size: of a draft model; the latter also of a head's layer.
        cache: keep the target's states on disk instead of computing them anew in each epoch.
        states: where they are kept, out/cache by default. Runs of several methods can use one
            directory, one after the other: the first should be the one that reads most.
        start: a drafter of the same shape for the same target, or the `out` of the run that made
            it: the new run starts from its weights, on its own data and schedule, and keeps the
            draft vocabulary unless the output rows are the target's.
        save_minutes: minutes between checkpoints.
        resume: go on with the state in `out` where there is one.
        seed: of data, weights and order.
        num_threads: of torch; 0 leaves it the choice.
        device: of torch.
    """

    method: str
    model: Path
    out: Path
    data: Path | None = None
    prompts: Path | None = None
    num_examples: int | None = None
    max_length: int = 512
    max_answer_tokens: int | None = None
    held_out: float = 0.02
    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch_tokens: int = 2048
    lr: float | None = None
    warmup: float = 0.03
    grad_clip: float = 1.0
    num_positions: int | None = None
    step_decay: float | None = None
    growth: float = 0.0
    draft_vocab_size: int | None = None
    loss_vocab_size: int | None = None
    layer_ids: list[int] | None = None
    fc_norm: bool | None = None
    norm_before_residual: bool | None = None
    freeze_head: bool | None = None
    share_head: bool | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    cache: bool = True
    states: Path | None = None
    start: Path | None = None
    save_minutes: float = 5.0
    resume: bool = True
    seed: int = 0
    num_threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Checks every field, then sets the defaults of the method."""
        self.model, self.out = Path(self.model), Path(self.out)
        self.data = None if self.data is None else Path(self.data)
        self.prompts = None if self.prompts is None else Path(self.prompts)
        if self.method not in TRAIN_METHODS:
            raise InvalidArgumentError("method", self.method, f"one of {', '.join(TRAIN_METHODS)}")
        for name, methods in METHOD_OPTIONS.items():
            value = getattr(self, name)
            if value is not None and self.method not in methods:
                raise InvalidArgumentError(
                    name, value, f"None: {self.method} has no such option; {_list(methods)} do"
                )
        self._check_numbers()
        if self.states is not None:
            self.states = Path(self.states)
            if not self.cache:
                raise InvalidArgumentError("states", str(self.states), "None without cache")
        if self.growth and self.method == "draft_model":
            raise InvalidArgumentError("growth", self.growth, "0: a draft_model has one position")
        if self.start is not None:
            self.start = Path(self.start)
            files = (self.start / inner / "config.json" for inner in ("", "checkpoint"))
            if not any(os.path.isfile(file) for file in files):
                raise InvalidArgumentError(
                    "start", str(self.start), "a drafter's directory, or the OUT of an earlier run"
                )
        if self.loss_vocab_size is not None and not self.freeze_head:
            raise InvalidArgumentError(
                "loss_vocab_size", self.loss_vocab_size, "None without freeze_head"
            )
        if self.share_head and self.freeze_head is False:
            raise InvalidArgumentError("freeze_head", False, "True together with share_head")
        if self.data is not None and not os.path.isfile(self.data):
            raise InvalidArgumentError("data", str(self.data), "a file of JSON lines")
        if self.max_answer_tokens is not None and self.data is not None:
            raise InvalidArgumentError(
                "max_answer_tokens", self.max_answer_tokens, "None together with data"
            )
        if self.prompts is not None:
            if self.data is not None:
                raise InvalidArgumentError("prompts", str(self.prompts), "None together with data")
            if not os.path.isfile(self.prompts):
                raise InvalidArgumentError("prompts", str(self.prompts), "a file of JSON lines")
        if not os.path.isfile(self.model / "config.json"):
            raise InvalidArgumentError("model", str(self.model), "a directory with config.json")
        if self.layer_ids is not None:
            self._check_layer_ids(self.layer_ids)
        if self.steps is None and self.epochs is None and self.minutes is None:
            self.minutes = 60.0
        if self.num_examples is None and self.data is None:
            self.num_examples = 4000
        self._set_defaults()

    def _check_numbers(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidArgumentError(name, value, f"at least {least}")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgumentError(name, value, "a number above 0")
        for name in ("held_out", "warmup", "growth"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidArgumentError(name, getattr(self, name), "a share below 1")

    def _check_layer_ids(self, ids: list[int]) -> None:
        config = read_json_object(self.model / "config.json")
        # Where the config leaves the number out, the model's class knows it: the head asks again.
        num_layers = (config.get("text_config") or config).get("num_hidden_layers")
        check_layer_ids(ids, num_layers)
        if ids[0] == 1:
            raise InvalidArgumentError(
                "layer_ids", ids, "another order: readers of a checkpoint take a list that begins "
                "with 1 for numbers of what leaves the layers",
            )  # fmt: skip

    def _set_defaults(self) -> None:
        defaults: dict[str, Any] = {
            "num_positions": {"mlp_speculator": 3, "eagle": 1}.get(self.method, 4),
            "step_decay": 1.0 if self.method == "mlp_speculator" else 0.8,
            "fc_norm": False,
            "norm_before_residual": False,
            "freeze_head": bool(self.share_head),
            "share_head": False,
            "num_layers": 4 if self.method == "draft_model" else 1,
            "lr": 1e-3,
        }
        if self.method == "eagle3" and self.start is None:
            defaults["draft_vocab_size"] = 8192
        for name, value in defaults.items():
            if getattr(self, name) is None and self.method in METHOD_OPTIONS.get(
                name, TRAIN_METHODS
            ):
                setattr(self, name, value)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one that wrote the state."""
        free = {
            "out",
            "data",
            "prompts",
            "max_answer_tokens",
            "num_examples",
            "steps",
            "epochs",
            "minutes",
            "cache",
            "states",
        }
        free |= {"start", "save_minutes", "resume", "num_threads", "device"}
        return {
            field.name: str(value) if isinstance(value, Path) else value
            for field in fields(self)
            if field.name not in free
            for value in [getattr(self, field.name)]
        }


def check_layer_ids(ids: list[int], num_layers: int | None) -> None:
    """Raises InvalidArgumentError unless they are layers of a model with `num_layers`."""
    least = bool(ids) and all(type(k) is int and k >= 0 for k in ids)
    if not least or (num_layers is not None and max(ids) >= num_layers):
        most = "the last layer" if num_layers is None else num_layers - 1
        raise InvalidArgumentError("layer_ids", ids, f"numbers from 0 to {most}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
