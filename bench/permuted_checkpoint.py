"""Writes the same model with its channels in another order.

    python bench/permuted_checkpoint.py MODEL_DIR TARGET_DIR [--seed N]

For models of the Llama and Gemma 3 families whose weights come from a quantized file: they lie on
the grids of that file's groups, so a format with the same groups would lose nothing. The channels
of the hidden state, of each layer's MLP and of each head's values may be permuted without a change
to the model's function; afterwards a group holds weights of many grids.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_HEAD_NORMS = ("q_norm.weight", "k_norm.weight")

Order = npt.NDArray[np.intp]


class Orders:
    """The new order of each kind of channel."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        rng = np.random.default_rng(seed)
        num_layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads", heads)
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        self.hidden = rng.permutation(config["hidden_size"])
        self.inner, self.values, self.outputs = [], [], []  # of each layer
        for _ in range(num_layers):
            self.inner.append(rng.permutation(config["intermediate_size"]))
            orders = [rng.permutation(head_dim) for _ in range(kv_heads)]
            self.values.append(_in_heads(orders))
            self.outputs.append(_in_heads([orders[i * kv_heads // heads] for i in range(heads)]))

    def of(self, name: str) -> tuple[Order | None, Order | None]:
        """Of a tensor's rows and columns; None: as they are. A vector has rows only."""
        if name.endswith("norm.weight"):
            return (None if name.endswith(_HEAD_NORMS) else self.hidden), None
        module = name.rsplit(".", 2)[-2]
        if module in ("embed_tokens", "lm_head"):
            return None, self.hidden
        layer = int(name.split("layers.")[1].split(".")[0])
        orders = {
            "q_proj": (None, self.hidden),
            "k_proj": (None, self.hidden),
            "v_proj": (self.values[layer], self.hidden),
            "o_proj": (self.hidden, self.outputs[layer]),
            "gate_proj": (self.inner[layer], self.hidden),
            "up_proj": (self.inner[layer], self.hidden),
            "down_proj": (self.hidden, self.inner[layer]),
        }
        return orders[module]


def _in_heads(orders: Sequence[Order]) -> Order:
    return np.concatenate([len(order) * i + order for i, order in enumerate(orders)])


def permute(model: Path, target: Path, seed: int = 0) -> None:
    """Writes `target`, a directory that may exist, from a directory with weights in safetensors."""
    orders = Orders(json.loads((model / "config.json").read_text()), seed)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(model.iterdir()):
        if path.suffix == ".safetensors":
            (target / path.name).write_bytes(_permuted(path, orders))
        elif path.is_file():
            shutil.copyfile(path, target / path.name)


def _permuted(path: Path, orders: Orders) -> bytes:
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:begin]).items():
        if name == "__metadata__":
            continue
        values = np.frombuffer(
            data,
            f"V{_BYTES[entry['dtype']]}",
            count=int(np.prod(entry["shape"])),
            offset=begin + entry["data_offsets"][0],
        ).reshape(entry["shape"])
        rows, columns = orders.of(name)
        result = values if rows is None else values[rows]
        values[...] = result if columns is None else result[:, columns]
    return bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    permute(options.model, options.target, options.seed)


if __name__ == "__main__":
    main()
