"""Real weights against transformers in float32: 20 texts of 64 tokens, teacher-forced."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from forerun import _core

# Prose and code that every Python carries.
MODULES = [
    *("abc", "argparse", "ast", "bisect", "calendar", "collections", "contextlib", "csv"),
    *("dataclasses", "difflib", "fractions", "functools", "heapq", "inspect", "json", "logging"),
    *("pathlib", "random", "shlex", "textwrap"),
]
NUM_TOKENS = 64

Logits = npt.NDArray[np.float32]


def texts(directory: Path) -> list[npt.NDArray[np.int32]]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    results = []
    for name in MODULES:
        source = inspect.getsource(importlib.import_module(name))
        ids = tokenizer.encode(source[:4000]).ids[:NUM_TOKENS]
        assert len(ids) == NUM_TOKENS
        results.append(np.array(ids, np.int32))
    return results


def reference_logits(directory: Path, ids: list[npt.NDArray[np.int32]]) -> Iterator[Logits]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for row in ids:
            yield model(torch.tensor(row[None].astype(np.int64))).logits[0].numpy()


def compare(directory: Path) -> dict[str, float]:
    ids = texts(directory)
    expected = reference_logits(directory, ids)
    exact = _core.Model(str(directory), dtype="float32")
    rounded = _core.Model(str(directory), dtype="bfloat16")
    num_positions = num_same = 0
    worst_gap = 0.0
    for row, reference in zip(ids, expected, strict=True):
        best_two = np.partition(reference, -2, axis=-1)[:, -2:]
        clear = best_two[:, 1] - best_two[:, 0] >= 0.002

        got = exact.logits(row)
        assert np.isfinite(got).all()
        same = got.argmax(-1) == reference.argmax(-1)
        assert same[clear].all()

        got = rounded.logits(row)
        assert np.isfinite(got).all()
        chosen = got.argmax(-1)
        gap = reference.max(-1) - reference[np.arange(NUM_TOKENS), chosen]
        worst_gap = max(worst_gap, float(gap.max()))
        num_same += int((chosen == reference.argmax(-1)).sum())
        num_positions += NUM_TOKENS
    print(f"bfloat16: {num_same} of {num_positions} arg-max, worst logit gap {worst_gap:.4f}")
    return {"same": num_same / num_positions, "gap": worst_gap}


@pytest.mark.parametrize("model", ["smollm_dir", "gemma_dir"])
def test_chosen_tokens_are_the_references(model: str, request: pytest.FixtureRequest) -> None:
    result = compare(request.getfixturevalue(model))
    assert result["gap"] <= 0.25
    assert result["same"] >= 0.97
