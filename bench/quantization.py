"""What quantization takes from a model: its perplexity, and how far it is from bfloat16.

    python bench/quantization.py MODEL_DIR --quantization int8 \\
        --quantization '{"linear": "int4", "head": "int8"}' [--checkpoint FILE.gguf] [--permute]

MODEL_DIR is the reference, in bfloat16. Each --quantization packs the same weights, each
--kv-cache-dtype keeps the keys and values of the reference in another type, and each
--checkpoint is another model of the same vocabulary, as it is stored. All read the same text, the
documentation of Python or a --text, in windows that do not overlap. Printed for each: perplexity,
the mean Kullback-Leibler divergence of its next token from the reference's, and how often both
hold the same token for the most probable one.

With --permute the weights are those of bench/permuted_checkpoint.py, for models that come from a
quantized file. A --checkpoint is compared with the same reference: its function is the same.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from permuted_checkpoint import permute

from forerun import _core
from forerun.checkpoints.loading import resolve_model
from forerun.text.tokenizer import Tokenizer
from forerun.util.checks import check_quantization

# Rows whose probabilities are computed at once: their float64 sums are exact enough, and the cache
# holds them.
_ROWS = 16

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


@dataclass
class Sums:
    """Over the predicted tokens of one model."""

    count: int = 0
    surprise: float = 0.0  # nats
    divergence: float = 0.0
    num_same: int = 0

    def add(self, reference: Logits, logits: Logits, targets: Ids) -> None:
        for begin in range(0, len(targets), _ROWS):
            part = slice(begin, begin + _ROWS)
            expected, got = log_probs(reference[part]), log_probs(logits[part])
            rows = np.arange(len(got))
            self.count += len(got)
            self.surprise -= float(got[rows, targets[part]].sum(dtype=np.float64))
            self.divergence += float((np.exp(expected) * (expected - got)).sum(dtype=np.float64))
            self.num_same += int((expected.argmax(-1) == got.argmax(-1)).sum())

    @property
    def row(self) -> str:
        perplexity = np.exp(self.surprise / self.count)
        divergence, same = self.divergence / self.count, 100 * self.num_same / self.count
        return f"{perplexity:10.3f} {divergence:10.5f} {same:8.2f} %"


def log_probs(logits: Logits) -> Logits:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def make_windows(tokenizer: Tokenizer, text: str, num_tokens: int, size: int) -> list[Ids]:
    """Windows of the text that predict `num_tokens` tokens or a few more, if it is long enough."""
    prefix = tokenizer.encode("")  # what this model's texts begin with
    ids = tokenizer.encode(text, add_special_tokens=False)
    step = size - len(prefix)
    num_predicted = step - (0 if prefix else 1)
    windows = []
    for begin in range(0, len(ids) - step + 1, step):
        if len(windows) * num_predicted >= num_tokens:
            break
        windows.append(np.array(prefix + ids[begin : begin + step], np.int32))
    if not windows:
        raise SystemExit(f"--text: got {len(ids)} tokens, valid: at least {step}")
    return windows


def load(directory: Path, size: int, **options: Any) -> _core.Model:
    return _core.Model(str(directory), max_model_len=size, **options)


def measure(models: dict[str, _core.Model], windows: Sequence[Ids]) -> dict[str, Sums]:
    """The first model is the reference."""
    sums = {name: Sums() for name in models}
    reference: Logits | None = None
    for window in windows:
        for name, model in models.items():
            logits = model.logits(window)[:-1]
            if name == next(iter(models)):
                reference = logits
            assert reference is not None
            sums[name].add(reference, logits, window[1:])
    return sums


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantization", action="append", default=[], metavar="NAME|JSON")
    parser.add_argument("--kv-cache-dtype", action="append", default=[], metavar="NAME")
    parser.add_argument("--checkpoint", action="append", default=[], type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--num-tokens", type=int, default=20000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--permute", action="store_true")
    options = parser.parse_args(arguments)
    text = (
        options.text.read_text() if options.text else "\n".join(pydoc_data.topics.topics.values())
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = options.model
        if options.permute:
            directory = Path(folder)
            permute(options.model, directory)
        size = options.window
        models = {"bfloat16": load(directory, size, dtype="bfloat16")}
        for value in options.quantization:
            parsed = check_quantization(
                "quantization", json.loads(value) if value.startswith("{") else value
            )
            models[value] = load(directory, size, quantization=parsed)
        for name in options.kv_cache_dtype:
            models[f"bfloat16, KV cache {name}"] = load(
                directory, size, dtype="bfloat16", kv_cache_dtype=name
            )
        for path in options.checkpoint:
            models[path.name] = load(resolve_model(path), size)
        windows = make_windows(Tokenizer(directory), text, options.num_tokens, size)
        sums = measure(models, windows)
    print(f"{sums['bfloat16'].count} tokens in {len(windows)} windows of {size}")
    print(f"{'':44} perplexity divergence  same top")
    for name, of_model in sums.items():
        print(f"{name:44} {of_model.row}")


if __name__ == "__main__":
    main()
