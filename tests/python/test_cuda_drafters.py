"""Drafters that are models, on the emulated GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drafter_rows import Row
from drafter_runs import PROMPTS, make_engine, row_named, run
from emulated_gpu import EmulatedGpu
from test_drafter_mixes import SAFETENSORS_ROWS, check_mix

from forerun import _core

DTYPES = ("float32", "bfloat16")
NAMES = [row.name for row in SAFETENSORS_ROWS]
# One of each kind; all of them in the long run.
KINDS = list({row.method: row.name for row in reversed(SAFETENSORS_ROWS)}.values())


@pytest.mark.parametrize("name", KINDS)
def test_no_mix_changes_ids_or_draft_logits(name: str, gpu: EmulatedGpu) -> None:
    row = row_named(name)
    _, num_records = check_mix(3, [row], num_requests=1, device="cuda", dtype="bfloat16")
    assert num_records > 0


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_no_mix_changes_ids_or_draft_logits_in_full(
    name: str, dtype: str, gpu: EmulatedGpu
) -> None:
    for seed in range(4):
        check_mix(seed, [row_named(name)], device="cuda", dtype=dtype)


def unchanged(output: list[int], logits: np.ndarray) -> np.ndarray:
    """A logits hook, for which the host verifies."""
    return logits


def check_drawn(row: Row, method: str, dtype: str, prompts: list[list[int]], **fields: Any) -> None:
    """Drafts that are drawn are accepted as `Verify` accepts them."""
    speculative: dict[str, Any] = {
        "draft_sample_method": _core.DraftSampleMethod.PROBABILISTIC,
        "acceptance_method": getattr(_core.AcceptanceMethod, method),
    }
    fields = {"temperature": 0.8, "seed": 0, **fields}
    runs = []
    for hook in (None, unchanged):
        engine = make_engine(
            row, speculative, record_draft_logits=False, device="cuda", dtype=dtype
        )
        runs.append(run(engine, prompts, hook, **fields))
    on_gpu, on_host = (got.metrics.spec_decode for got in runs)
    assert runs[0].outputs == runs[1].outputs
    assert on_gpu.num_accepted_tokens == on_host.num_accepted_tokens
    assert 0 < on_gpu.num_accepted_tokens < on_gpu.num_draft_tokens


@pytest.mark.parametrize("name", KINDS)
def test_drawn_drafts_are_verified_as_on_the_host(name: str, gpu: EmulatedGpu) -> None:
    method = "REJECTION" if KINDS.index(name) % 2 == 0 else "BLOCK"
    check_drawn(row_named(name), method, "bfloat16", PROMPTS[1:2], max_tokens=8)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_drawn_drafts_are_verified_as_on_the_host_in_full(
    name: str, dtype: str, gpu: EmulatedGpu
) -> None:
    for method in ("COUPLED", "REJECTION", "BLOCK"):
        check_drawn(row_named(name), method, dtype, PROMPTS, max_tokens=16)
