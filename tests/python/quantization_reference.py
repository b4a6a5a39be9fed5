"""Weights of 8 and 4 bits in NumPy, from the formulas of docs/quantization.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from model_reference import Array, Decoder, LanguageModel

GROUP = 32
ZEROS = {"int8": 128, "int4": 8}
# Bytes of 16 outputs and 64 inputs.
STEP_BYTES = {"int8": 64 + 1024, "int4": 64 + 512}

Floats = npt.NDArray[np.float32]


def in_groups(values: npt.NDArray[Any]) -> Floats:
    """[rows, groups, GROUP], with zeros after the last input."""
    rows, inputs = values.shape
    padded = np.zeros((rows, -(-inputs // GROUP) * GROUP), np.float32)
    padded[:, :inputs] = values
    return padded.reshape(rows, -1, GROUP)


def float16_away_from_zero(values: Floats) -> Floats:
    """The nearest float16 that is not nearer to 0."""
    nearest = values.astype(np.float16)
    is_nearer = np.abs(nearest.astype(np.float32)) < np.abs(values)
    farther = np.nextafter(nearest, np.where(values < 0, -np.inf, np.inf).astype(np.float16))
    return np.where(is_nearer, farther, nearest).astype(np.float32)


def fitted_scale(groups: Floats, farthest: Floats) -> Floats:
    """Of int4: least squares, in float32 and the weights' order."""
    units = groups / np.where(farthest == 0, np.float32(1), farthest)
    integers = np.clip(np.rint(units * np.float32(-8)), np.float32(-8), np.float32(7))
    weighted = integers * np.abs(units)
    product, square = np.zeros_like(farthest), np.zeros_like(farthest)
    for i in range(GROUP):
        column = slice(i, i + 1)
        product += weighted[..., column] * units[..., column]
        square += weighted[..., column] * integers[..., column]
    fit = product / np.maximum(square, np.float32(1)) * farthest
    return fit.astype(np.float16).astype(np.float32)


def dequantized(weights: npt.NDArray[Any], name: str) -> Floats:
    """What is left of weights [outputs, inputs] in a format."""
    groups = in_groups(weights)
    zero = ZEROS[name]
    least, most = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    if name == "int8":
        scale = float16_away_from_zero(np.maximum(-least, most) / np.float32(127))
    else:
        scale = fitted_scale(groups, np.where(-least > most, least, most))
    divisor = np.where(scale == 0, np.float32(1), scale)
    integers = np.clip(np.rint(groups / divisor), -zero, zero - 1)
    return (scale * integers).reshape(len(weights), -1)[:, : weights.shape[1]]


def quantized_rows(x: Array) -> Array:
    """Activations as products with integers read them."""
    groups = in_groups(x)
    magnitude = np.abs(groups).max(-1, keepdims=True)
    divisor = np.where(magnitude == 0, np.float32(1), magnitude)
    integers = np.rint(groups * (np.float32(127) / divisor))
    rows = (magnitude / np.float32(127)).astype(np.float64) * integers
    return rows.reshape(len(x), -1)[:, : x.shape[1]]


@dataclass
class QuantizedDecoder(Decoder):
    """A layer whose linear weights are dequantized ones."""

    def linear(self, name: str, x: Array) -> Array:
        return super().linear(name, quantized_rows(x))


class QuantizedModel(LanguageModel):
    """A model in float64 whose matrices are what is left of them; None: as they are."""

    def __init__(
        self,
        directory: Path,
        *,
        linear: str | None = None,
        embedding: str | None = None,
        head: str | None = None,
    ) -> None:
        super().__init__(directory)
        self.quantizes_head = head is not None
        if linear is not None:
            self.layers = [
                QuantizedDecoder(
                    {
                        name: dequantized(values, linear).astype(np.float64)
                        if values.ndim == 2
                        else values
                        for name, values in layer.weights.items()
                    },
                    self.config,
                )
                for layer in self.layers
            ]
        if head is not None:
            self.lm_head = dequantized(self.lm_head, head).astype(np.float64)
        if self.config.get("tie_word_embeddings", False):
            self.embedding = self.lm_head
        elif embedding is not None:
            self.embedding = dequantized(self.embedding, embedding).astype(np.float64)

    def logits(self, tokens: Sequence[int]) -> Array:
        hidden = self.hidden(tokens)
        return (quantized_rows(hidden) if self.quantizes_head else hidden) @ self.lm_head.T
