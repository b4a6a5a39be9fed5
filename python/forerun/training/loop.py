"""The training loop: from options to a checkpoint, a log and learning curves."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from forerun.errors import InvalidArgumentError
from forerun.training.data import Example, load_examples
from forerun.training.heads import Head, Medusa, MlpSpeculator
from forerun.training.layers import Eagle, Eagle3, Mtp
from forerun.training.options import TrainOptions
from forerun.training.target import FeatureCache, Sequence, Target, make_batch

_WARM_UP_STEPS = 50
_LEAST_LR = 0.05
_SMOOTHING = 0.95
_LOG_EVERY = 20


def make_head(target: Target, options: TrainOptions, examples: list[Example]) -> Head:
    """A head that knows nothing yet."""
    torch.manual_seed(options.seed)
    if options.method == "eagle3":
        return Eagle3(target, options, examples)
    kinds: dict[str, type[Head]] = {
        "eagle": Eagle,
        "mtp": Mtp,
        "medusa": Medusa,
        "mlp_speculator": MlpSpeculator,
    }
    return kinds[options.method](target, options)


def run(options: TrainOptions) -> None:
    """Trains, or goes on with what `options.out` holds."""
    options.out.mkdir(parents=True, exist_ok=True)
    examples = load_examples(options)
    target = Target(options.model)
    head = make_head(target, options, [e for e in examples if not e.is_held_out])
    cache = FeatureCache(options.out / "features.f16", target, head.layer_ids)
    sequences = cache.load(examples)
    Trainer(head, sequences, options).run()


class Trainer:
    """A head, its data, and how far it has come."""

    def __init__(self, head: Head, sequences: list[Sequence], options: TrainOptions) -> None:
        """Resumes where options.out has a state of the same run."""
        self.head, self.options = head, options
        self.train = [s for s in sequences if not s.example.is_held_out]
        self.held_out = [s for s in sequences if s.example.is_held_out]
        parameters = [p for p in head.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.step, self.seconds, self.num_tokens = 0, 0.0, 0
        self.accuracies: list[float] = []
        self._resume()

    @property
    def is_done(self) -> bool:
        """Whether the minutes are over."""
        return self.seconds >= 60 * self.options.minutes

    def run(self, max_steps: int | None = None) -> None:
        """Trains until the minutes are over, or for some steps."""
        saved = time.monotonic()
        bar = tqdm(total=round(60 * self.options.minutes), initial=round(self.seconds), unit="s")
        num_steps = 0
        while not self.is_done and (max_steps is None or num_steps < max_steps):
            begin = time.monotonic()
            self._train_step(self._batch(self.step))
            num_steps += 1
            self.seconds += time.monotonic() - begin
            bar.n = min(round(self.seconds), bar.total)
            bar.set_postfix_str(" ".join(f"{a:.3f}" for a in self.accuracies), refresh=False)
            bar.refresh()
            if time.monotonic() - saved > self.options.save_every:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()
        for line in self.report():
            print(line)

    def _batches(self, epoch: int) -> list[list[Sequence]]:
        """The epoch's batches: sequences of like length together, in an order of its own."""
        order = random.Random(self.options.seed * 1_000_003 + epoch)
        ranked = sorted(self.train, key=lambda s: (len(s) // 24, order.random()))
        batches: list[list[Sequence]] = [[]]
        for sequence in ranked:
            if batches[-1] and (len(batches[-1]) + 1) * len(sequence) > self.options.batch_tokens:
                batches.append([])
            batches[-1].append(sequence)
        order.shuffle(batches)
        return batches

    def _batch(self, step: int) -> list[Sequence]:
        epoch = 0
        while True:
            batches = self._batches(epoch)
            if step < len(batches):
                return batches[step]
            step -= len(batches)
            epoch += 1

    def _learning_rate(self) -> float:
        progress = min(1.0, self.seconds / (60 * self.options.minutes))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        warm_up = min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        return self.options.lr * warm_up * (_LEAST_LR + (1 - _LEAST_LR) * cosine)

    def _train_step(self, sequences: list[Sequence]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        guesses = self.head.guesses(make_batch(sequences, self.options.num_steps))
        decay = self.options.step_decay
        loss = torch.stack([g.loss * decay**i for i, g in enumerate(guesses)]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        self.optimizer.step()
        new = [g.accuracy for g in guesses]
        old = self.accuracies or new
        self.accuracies = [
            _SMOOTHING * o + (1 - _SMOOTHING) * n for o, n in zip(old, new, strict=True)
        ]
        self.step += 1
        self.num_tokens += sum(len(s) - s.example.num_prompt_tokens for s in sequences)
        if self.step % _LOG_EVERY == 1:
            self._log({"loss": loss.item(), "accuracy": self.accuracies})

    def _log(self, entry: dict[str, Any]) -> None:
        entry = {
            "step": self.step,
            "minutes": self.seconds / 60,
            "answer_tokens": self.num_tokens,
        } | entry
        with (self.options.out / "training_log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """The share of right guesses by position on the held-out examples."""
        totals: list[float] = []
        num_rows = 0
        for begin in range(0, len(self.held_out), 8):
            batch = make_batch(self.held_out[begin : begin + 8], self.options.num_steps)
            rows = len(batch.rows(0)[0])
            accuracies = [g.accuracy * rows for g in self.head.guesses(batch)]
            totals = [a + b for a, b in zip(totals or [0.0] * len(accuracies), accuracies,
                                            strict=True)]  # fmt: skip
            num_rows += rows
        return [total / num_rows for total in totals]

    def report(self) -> list[str]:
        """What the head reaches, in words."""
        accuracies = self.evaluate()
        lines = [f"{self.step} steps, {self.num_tokens} tokens of answers"]
        if accuracies:
            rates = ", ".join(f"{a:.3f}" for a in accuracies)
            lines.append(f"right on {len(self.held_out)} held-out examples, by position: {rates}")
            expected = sum(math.prod(accuracies[: i + 1]) for i in range(len(accuracies)))
            lines.append(f"a chain's mean acceptance length is about {1 + expected:.2f}")
        lines.append(f"checkpoint: {self.options.out / 'checkpoint'}")
        return lines

    def save(self) -> None:
        """Writes the checkpoint, the curves and the state to resume from."""
        folder = self.options.out / "checkpoint"
        write_checkpoint(self.head, folder, with_target=self.options.method == "mtp")
        self._log({"held_out": self.evaluate()})
        plot(self.options.out)
        state = {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": [self.step, self.seconds, self.num_tokens, self.accuracies],
            "run": self._identity(),
        }
        file = self.options.out / "state.pt"
        torch.save(state, file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)

    def _identity(self) -> list[Any]:
        return [self.options.method, self.options.seed, self.options.num_steps, len(self.train)]

    def _resume(self) -> None:
        file = self.options.out / "state.pt"
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True)
        if state["run"] != self._identity():
            raise InvalidArgumentError(
                "out", str(self.options.out), "an empty directory: it holds another run's state"
            )
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.num_tokens, self.accuracies = state["progress"]


def write_checkpoint(head: Head, folder: Path, *, with_target: bool = False) -> None:
    """The head in its published format, in bfloat16; with_target inside a copy of the target's."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t.detach().to(torch.bfloat16) if t.is_floating_point() else t.detach()).contiguous()
        for name, t in head.tensors().items()
    }
    if with_target:
        source = head.target.directory
        for file in sorted(source.glob("*.safetensors")):
            tensors |= load_file(file)
        for file in source.iterdir():
            if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt"):
                shutil.copy(file, folder / file.name)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    file = folder / "model.safetensors"
    save_file(tensors, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)
    (folder / "config.json").write_text(json.dumps(head.config(), indent=2) + "\n")


def plot(out: Path) -> None:
    """The learning curves as out/learning_curves.png, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for key, style in (("accuracy", "-"), ("held_out", "o--")):
        points = [(e["answer_tokens"], e[key]) for e in entries if e.get(key)]
        for position in range(len(points[0][1]) if points else 0):
            axes.plot(
                [x for x, _ in points],
                [y[position] for _, y in points],
                style,
                color=f"C{position}",
                label=f"position {position}" if key == "accuracy" else None,
            )
    axes.set_xlabel("tokens of answers")
    axes.set_ylabel("right guesses")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "learning_curves.png", dpi=120)
    pyplot.close(figure)
