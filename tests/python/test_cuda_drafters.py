"""Drafters that are models, on the emulated GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from drafter_rows import Row
from drafter_runs import PROMPTS, bytes_of_blocks, make_engine, make_params, row_named, run
from emulated_gpu import EmulatedGpu
from test_drafter_mixes import SAFETENSORS_ROWS, check_mix, plain_engine

from forerun import _core

DTYPES = ("float32", "bfloat16")
NAMES = [row.name for row in SAFETENSORS_ROWS]
# One of each kind; all of them in the long run.
KINDS = list({row.method: row.name for row in reversed(SAFETENSORS_ROWS)}.values())


@pytest.fixture(autouse=True)
def _engines_leave_the_gpu() -> Iterator[None]:
    """Its memory is that of later tests too."""
    yield
    plain_engine.cache_clear()


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


def drawing_engine(row: Row, method: str, dtype: str, on_host: bool = False, **options: Any) -> Any:
    """With drafts that are drawn; on the host, where their logits are recorded."""
    speculative = {
        "draft_sample_method": _core.DraftSampleMethod.PROBABILISTIC,
        "acceptance_method": getattr(_core.AcceptanceMethod, method),
    }
    options = {"device": "cuda", "dtype": dtype, **options}
    return make_engine(row, speculative, record_draft_logits=on_host, **options)


def check_drawn(row: Row, method: str, dtype: str, prompts: list[list[int]], **fields: Any) -> None:
    """Drafts are drawn as on the host, and accepted as `Verify` accepts them."""
    fields = {"temperature": 0.8, "seed": 0, **fields}
    runs = [
        run(drawing_engine(row, method, dtype, on_host), prompts, hook, **fields)
        for hook, on_host in ((None, False), (unchanged, False), (None, True))
    ]
    first, *others = ((got.outputs, got.metrics.spec_decode.num_accepted_tokens) for got in runs)
    assert all(other == first for other in others)
    assert 0 < first[1] < runs[0].metrics.spec_decode.num_draft_tokens


def outputs_together(engine: Any, requests: list[tuple[list[int], dict[str, Any]]]) -> list[Any]:
    ids = [engine.submit(prompt, make_params(**fields)) for prompt, fields in requests]
    outputs: dict[int, list[int]] = {request_id: [] for request_id in ids}
    while engine.has_unfinished():
        for update in engine.step():
            outputs[update.id] += update.new_tokens
    return [outputs[request_id] for request_id in ids]


@pytest.mark.parametrize("method", ["REJECTION", "BLOCK"])
def test_requests_whose_drafts_are_drawn_change_no_neighbour(method: str, gpu: EmulatedGpu) -> None:
    row = row_named(KINDS[0])
    fields: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.2, "seed": 2, "top_p": 0.9, "max_tokens": 7},
        {"temperature": 0.6, "seed": 3, "top_k": 20, "speculative": False},
    ]
    requests = [([3 + i, 9, 27], {"max_tokens": 10, **each}) for i, each in enumerate(fields)]
    together = outputs_together(drawing_engine(row, method, "bfloat16"), requests)
    engine = drawing_engine(row, method, "bfloat16")
    for request, expected in zip(requests, together, strict=True):
        assert outputs_together(engine, [request]) == [expected]


@pytest.mark.parametrize("method", ["REJECTION", "BLOCK"])
def test_preempted_requests_draw_again_as_on_the_host(method: str, gpu: EmulatedGpu) -> None:
    row = row_named(KINDS[0])
    room = bytes_of_blocks(row, 5, device="cuda", dtype="bfloat16")
    options = {"max_model_len": 64, "kv_cache_memory_bytes": room}
    there, here = (
        run(drawing_engine(row, method, "bfloat16", on_host, **options), PROMPTS, temperature=0.8)
        for on_host in (False, True)
    )
    assert there.outputs == here.outputs
    assert there.metrics.spec_decode.num_accepted_tokens > 0
    assert there.metrics.num_preemptions == here.metrics.num_preemptions > 0


@pytest.mark.parametrize("name", KINDS)
def test_drawn_drafts_are_those_of_the_host(name: str, gpu: EmulatedGpu) -> None:
    method = "REJECTION" if KINDS.index(name) % 2 == 0 else "BLOCK"
    check_drawn(row_named(name), method, "bfloat16", PROMPTS[1:2], max_tokens=8)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_drawn_drafts_are_those_of_the_host_in_full(
    name: str, dtype: str, gpu: EmulatedGpu
) -> None:
    for method in ("COUPLED", "REJECTION", "BLOCK"):
        check_drawn(row_named(name), method, dtype, PROMPTS, max_tokens=16)
