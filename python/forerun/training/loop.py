"""The training loop: from options to a checkpoint, a log and learning curves."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from forerun.errors import InvalidArgumentError
from forerun.training.batch import Batch, make_batch
from forerun.training.checkpoint import write_checkpoint
from forerun.training.curves import draw_curves
from forerun.training.data import Corpus, Example, draft_vocabulary, make_batches
from forerun.training.evaluation import Acceptance, evaluate
from forerun.training.factory import make_head
from forerun.training.heads import Head, Prediction
from forerun.training.options import TrainOptions
from forerun.training.start import Start
from forerun.training.target import StateStore, Target

_LEAST_LR = 0.05  # of the highest, at the end
_SMOOTHING = 0.98  # of what the log and the bar show
_LOG_STEPS = 20
# Held-out examples that are judged: at the end, and for the curves meanwhile.
_MOST_HELD_OUT = 64
_MOST_WATCHED = 16


def run(options: TrainOptions) -> Acceptance | None:
    """Trains, or continues from the state in `options.out`."""
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    # Of accelerators: mantissas of 10 bits in products, which are still added up in float32.
    torch.set_float32_matmul_precision("high" if options.device != "cpu" else "highest")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.data
    if file is None:
        from forerun.training.generate import write_examples

        file = write_examples(options)
    target = Target(options.model, options.device)
    trainer = Trainer(target, Corpus(options, file, target.vocab_size), options)
    with _denormals_flushed():
        trainer.train()
        acceptance = trainer.finish()
    if acceptance is not None:
        print(acceptance)
    print(f"{trainer.step} steps; checkpoint: {options.out / 'checkpoint'}")
    return acceptance


@contextlib.contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Gradients that have all but vanished would slow the processor down.

    The mode is this thread's: afterwards it computes as the engine's other threads do.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Trainer:
    """A drafter, its data, and how far it has come."""

    def __init__(self, target: Target, corpus: Corpus, options: TrainOptions) -> None:
        """Goes on where options.out has a state, of a run with the same options."""
        self.options, self._corpus = options, corpus
        self.step, self.seconds, self.num_tokens = 0, 0.0, 0
        self.epoch, self.batch_of_epoch, self.num_examples = -1, 0, 0
        self.means: dict[str, list[float]] = {}
        state = self._read_state()
        start = None if state is not None else self._read_start()
        if state is None:
            self.num_examples = corpus.refresh()
        if state is not None:
            vocabulary = state["vocabulary"]
        elif options.loss_vocab_size is not None:
            is_all = options.loss_vocab_size >= target.vocab_size
            size = None if is_all else options.loss_vocab_size * 3 // 4
            vocabulary = self._vocabulary(target, size)
        else:
            size = options.draft_vocab_size
            vocabulary = None
            if start is not None:
                vocabulary = start.vocabulary_for(target.vocab_size, options)
                size = size or (len(vocabulary) if vocabulary is not None else None)
            # Rows that are the target's own serve any vocabulary.
            if start is None or options.share_head:
                vocabulary = self._vocabulary(target, size)
        self._vocabulary_ids = vocabulary
        torch.manual_seed(options.seed)
        self.head: Head = make_head(target, options, vocabulary).to(target.device)
        parameters = [p for p in self.head.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
        if start is not None:
            start.load_into(self.head)
        if state is not None:
            self._load_state(state)
        cache = options.states or options.out / "cache" if options.cache else None
        layer_ids = list(self.head.layer_ids)
        self._store = StateStore(target, layer_ids, cache, self.head.needs_best)
        self._batches: list[list[Example]] = []
        if self.epoch >= 0:
            self._plan_epoch()
        if not corpus.train(self.num_examples):
            raise InvalidArgumentError("data", "no example to learn", "prompts with answers")
        self._trim_log()

    def _vocabulary(self, target: Target, size: int | None) -> list[int] | None:
        if size is None:
            return None
        examples = self._corpus.train(self.num_examples)
        return draft_vocabulary(examples, size, target.vocab_size, target.eos_token_ids)

    # --- the loop ---

    def train(self, max_steps: int | None = None) -> None:
        """Trains to the end that the options set, or for some steps."""
        last_save = time.monotonic()
        last_step = None if max_steps is None else self.step + max_steps
        # Nothing but the log where no one looks.
        bar = tqdm(
            total=1.0, bar_format="{percentage:3.0f}%|{bar}| {elapsed}{postfix}", disable=None
        )
        with bar:
            while self.progress < 1 and self.step != last_step:
                begin = time.monotonic()
                self._train_step(self._next_batch())
                self.seconds += time.monotonic() - begin
                bar.n = min(1.0, self.progress)
                rates = " ".join(f"{rate:.3f}" for rate in self.means["accuracy"])
                bar.set_postfix_str(f"step {self.step}, right by position {rates}", refresh=False)
                bar.refresh()
                if time.monotonic() - last_save > 60 * self.options.save_minutes:
                    self.save()
                    last_save = time.monotonic()
        self.save()

    @property
    def progress(self) -> float:
        """How much of the training is done, by the limit that is nearest."""
        options = self.options
        shares = [0.0]
        if options.steps is not None:
            shares.append(self.step / options.steps)
        if options.minutes is not None:
            shares.append(self.seconds / (60 * options.minutes))
        if options.epochs is not None and self.epoch >= 0:
            done = self.epoch + self.batch_of_epoch / max(len(self._batches), 1)
            shares.append(done / options.epochs)
        return max(shares)

    def _plan_epoch(self) -> None:
        order = random.Random(f"{self.options.seed} {self.epoch}")
        examples = self._corpus.train(self.num_examples)
        self._batches = make_batches(examples, self.options.batch_tokens, order)

    def _next_batch(self) -> Batch:
        if self.epoch < 0 or self.batch_of_epoch == len(self._batches):
            self.epoch += 1
            self.batch_of_epoch = 0
            self.num_examples = self._corpus.refresh()
            self._plan_epoch()
        examples = self._batches[self.batch_of_epoch]
        self.batch_of_epoch += 1
        return make_batch(examples, self._store, self.head.num_positions)

    def _learning_rate(self) -> float:
        progress, warmup = min(1.0, self.progress), self.options.warmup
        assert self.options.lr is not None
        if progress < warmup:
            # The first step is not at zero.
            return self.options.lr * max(progress / warmup, 0.01)
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
        return self.options.lr * (_LEAST_LR + (1 - _LEAST_LR) * cosine)

    def _train_step(self, batch: Batch) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        predictions = self._predictions(batch)
        decay = self.options.step_decay or 1.0
        losses = torch.stack([prediction.loss for prediction in predictions])
        weights = decay ** torch.arange(len(losses), device=losses.device)
        self._optimizer.zero_grad()
        torch.autograd.backward((losses * weights).sum())
        norm = nn.utils.clip_grad_norm_(self.head.parameters(), self.options.grad_clip)
        self._optimizer.step()
        self.step += 1
        self.num_tokens += len(batch.position)
        accuracy = []
        for position, prediction in enumerate(predictions):
            counted = batch.remaining > position
            right = (prediction.tokens == batch.truth(position)) & counted
            accuracy.append(int(right.sum()) / max(int(counted.sum()), 1))
        self._average(loss=losses.detach().tolist(), accuracy=accuracy, gradient=[float(norm)])
        if self.step % _LOG_STEPS == 1:
            self._log(lr=self._optimizer.param_groups[0]["lr"], **self.means)

    def _predictions(self, batch: Batch) -> list[Prediction]:
        """Predictions of as many positions as are trained for at this time."""
        positions, growth = self.head.num_positions, self.options.growth
        if self.progress < growth:
            self.head.num_positions = 1 + int(positions * self.progress / growth)
        try:
            return self.head.predictions(batch)
        finally:
            self.head.num_positions = positions

    def _average(self, **values: list[float]) -> None:
        # The mean of all steps at first, of the last fifty or so later.
        keep = min(_SMOOTHING, 1 - 1 / self.step)
        for name, new in values.items():
            old = self.means.get(name, new)
            # A position that is new has no past yet.
            old = (old + new[len(old) :])[: len(new)]
            pairs = zip(old, new, strict=True)
            self.means[name] = [keep * o + (1 - keep) * n for o, n in pairs]

    def _log(self, **entry: Any) -> None:
        common = {
            "step": self.step,
            "epoch": max(self.epoch, 0),
            "minutes": round(self.seconds / 60, 3),
            "answer_tokens": self.num_tokens,
        }
        with (self.options.out / "training_log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(common | entry) + "\n")

    # --- what is kept ---

    def acceptance(self, most: int = _MOST_HELD_OUT) -> Acceptance | None:
        """What the drafter reaches on held-out examples."""
        examples = self._corpus.held_out(self.num_examples, most)
        return evaluate(self.head, self._store, examples, self.options.batch_tokens)

    def save(self) -> None:
        """Writes the checkpoint, the state to go on from, and the curves."""
        write_checkpoint(self.head, self.options.out / "checkpoint")
        directory = self.options.out / "state"
        directory.mkdir(exist_ok=True)
        state = {
            "head": self.head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "vocabulary": self._vocabulary_ids,
            "progress": {name: getattr(self, name) for name in _PROGRESS},
            "options": self.options.identity(),
        }
        torch.save(state, directory / "state.tmp")
        os.replace(directory / "state.tmp", directory / "state.pt")
        if (acceptance := self.acceptance(_MOST_WATCHED)) is not None:
            self._log(held_out=asdict(acceptance))
        draw_curves(self.options.out)

    def finish(self) -> Acceptance | None:
        """Writes what the drafter reaches beside the checkpoint."""
        acceptance = self.acceptance()
        if acceptance is not None:
            text = json.dumps(asdict(acceptance), indent=2) + "\n"
            (self.options.out / "acceptance.json").write_text(text, encoding="utf-8")
        return acceptance

    def _read_state(self) -> dict[str, Any] | None:
        out = self.options.out
        if not self.options.resume or not (out / "state" / "state.pt").is_file():
            return None
        return _read_run(out, self.options.identity())

    def _read_start(self) -> Start | None:
        start = self.options.start
        if start is None:
            return None
        inner = start / "checkpoint"
        return Start(inner if inner.is_dir() else start)

    def _load_state(self, state: dict[str, Any]) -> None:
        try:
            self.head.load_state_dict(state["head"])
            self._optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InvalidArgumentError(
                "out", f"{self.options.out}: {error}", _OF_THIS_VERSION
            ) from error
        for name in _PROGRESS:
            setattr(self, name, state["progress"][name])
        if self._corpus.refresh() < self.num_examples:
            raise InvalidArgumentError(
                "data", "fewer examples than before", f"at least {self.num_examples} examples"
            )

    def _trim_log(self) -> None:
        """Drops what another run left, or this one after its last save."""
        log = self.options.out / "training_log.jsonl"
        if not log.is_file():
            return
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if self.step else []
        whole = (line for line in lines if line.endswith("\n"))
        kept = [line for line in whole if json.loads(line)["step"] <= self.step]
        trimmed = log.with_suffix(".tmp")
        trimmed.write_text("".join(kept), encoding="utf-8")
        os.replace(trimmed, log)


_OF_THIS_VERSION = "the out of a run of this version, or resume off"


def _read_run(out: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The state of a run that had the expected options; others raise InvalidArgumentError."""
    file = out / "state" / "state.pt"
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise InvalidArgumentError("out", f"{file}: {error}", _OF_THIS_VERSION) from error
    missing = {"head", "optimizer", "vocabulary", "progress", "options"} - state.keys()
    missing |= set(_PROGRESS) - state.get("progress", {}).keys()
    if missing:
        absent = ", ".join(sorted(missing))
        raise InvalidArgumentError("out", f"{file} without {absent}", _OF_THIS_VERSION)
    theirs = state["options"]
    for name, value in expected.items():
        if theirs.get(name) != value:
            raise InvalidArgumentError(
                name, value, f"{theirs.get(name)}, as the run in {out} has it"
            )
    return state


_PROGRESS = (
    "step",
    "seconds",
    "num_tokens",
    "epoch",
    "batch_of_epoch",
    "num_examples",
    "means",
)
