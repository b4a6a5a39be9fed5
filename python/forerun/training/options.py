"""What a training run is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forerun.errors import InvalidArgumentError

TRAIN_METHODS = ("eagle3", "eagle", "mtp", "mlp_speculator", "medusa")


@dataclass(kw_only=True)
class TrainOptions:
    """Options of `forerun train`. Wrong values raise InvalidArgumentError at once.

    Attributes:
        method: one of TRAIN_METHODS.
        model: the target's directory.
        out: where the checkpoint, the log, the learning curves and the state to resume from go.
        data: JSON lines with "prompt" and "answer" (texts or token ids) or "messages"; None lets
            the target write both, into out/data.jsonl.
        num_examples: how many examples the target writes; of `data`, how many are read at most.
        max_length: tokens of an example; what is longer is cut.
        minutes: of training; the learning rate falls to a twentieth over them.
        lr: the highest learning rate, of AdamW.
        batch_tokens: tokens of a step, padding included.
        num_steps: positions that are trained: the training-time test of heads that feed on
            themselves, the number of heads otherwise.
        step_decay: weight of a position relative to the one before it.
        draft_vocab_size: eagle3: the most frequent tokens of the answers that can be drafted.
        layer_ids: eagle3: the target's layers that are read, by how many are before them; None for
            the second, the middle and the third last.
        share_head: eagle3, mlp_speculator and medusa: keep the target's output matrix instead of
            training one: smaller files, faster training.
        save_every: seconds between checkpoints.
        seed: of data, weights and order.
    """

    method: str
    model: Path
    out: Path
    data: Path | None = None
    num_examples: int = 4000
    max_length: int = 512
    minutes: float = 60.0
    lr: float = 1e-3
    batch_tokens: int = 3072
    num_steps: int = 4
    step_decay: float = 0.8
    draft_vocab_size: int = 8192
    layer_ids: list[int] | None = None
    share_head: bool = True
    save_every: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every field."""
        if self.method not in TRAIN_METHODS:
            raise InvalidArgumentError("method", self.method, f"one of {', '.join(TRAIN_METHODS)}")
        for name in ("num_examples", "num_steps", "draft_vocab_size"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(name, getattr(self, name), "at least 1")
        for name, least in (("max_length", 16), ("batch_tokens", 32)):
            if getattr(self, name) < least:
                raise InvalidArgumentError(name, getattr(self, name), f"at least {least}")
        for name in ("minutes", "lr", "save_every", "step_decay"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(name, getattr(self, name), "a number above 0")
        if self.data is not None and not self.data.is_file():
            raise InvalidArgumentError("data", str(self.data), "a file of JSON lines")
        if not (self.model / "config.json").is_file():
            raise InvalidArgumentError("model", str(self.model), "a directory with config.json")
