"""Random mixes of requests over drafters' state: any pool, chunks, trees, samplers, cancellations.

Whatever happens, ids are those of plain decoding, draft logits are those of the reference, and two
records of the same tokens and path have the same bits, be they from one engine or from two.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest
from drafter_checkpoints import VOCAB
from drafter_rows import ROWS, Row
from drafter_runs import (
    TOLERANCES,
    check_records,
    drafts_trees,
    make_engine,
    make_params,
    records_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun import _core

Fields = dict[str, Any]
SAFETENSORS_ROWS = [row for row in ROWS if not row.is_pickle]
MAX_MODEL_LEN = 80


@functools.cache
def plain_engine(row: Row, **options: Any) -> Any:
    return make_engine(row, enable_prefix_caching=False, max_num_seqs=1, num_threads=1, **options)


def random_request(rng: random.Random, prompts: list[list[int]]) -> tuple[list[int], Fields]:
    """Prompts begin as earlier ones do, or as earlier requests went on."""
    known = rng.choice(prompts) if prompts and rng.random() < 0.7 else []
    prompt = known[: rng.randint(0, len(known))]
    prompt = prompt + [rng.randrange(VOCAB) for _ in range(rng.randint(0 if prompt else 1, 20))]
    prompt = prompt[: MAX_MODEL_LEN - 30]
    fields: Fields = {
        "temperature": 0.0 if rng.random() < 0.6 else rng.uniform(0.5, 1.5),
        "seed": rng.getrandbits(32),
        "max_tokens": rng.randint(1, 30),
        "speculative": rng.random() < 0.85,
    }
    if rng.random() < 0.3:
        fields["max_draft_tokens"] = rng.randint(0, 3)
    if rng.random() < 0.2:
        fields["repetition_penalty"] = 1.3
    return prompt, fields


def random_engine(rng: random.Random, row: Row, **given: Any) -> Any:
    speculative: Fields = {"num_speculative_tokens": rng.randint(1, row.num_tokens)}
    if rng.random() < 0.4 and drafts_trees(row):
        speculative["draft_tree_width"] = rng.randint(2, 5)
        speculative["num_speculative_tokens"] = rng.randint(1, 20)
        speculative["draft_tree_depth"] = rng.randint(1, row.num_tokens)
    elif rng.random() < 0.4:
        speculative["draft_sample_method"] = _core.DraftSampleMethod.PROBABILISTIC
    speculative["adaptive"] = rng.random() < 0.3
    speculative["hybrid"] = "draft_sample_method" not in speculative and rng.random() < 0.3
    max_num_seqs = rng.randint(1, 5)
    options: Fields = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + rng.choice([0, 1, 3, 10, 40, 200]),
        "enable_prefix_caching": rng.random() < 0.75,
        "num_threads": rng.randint(1, 2),
        "max_model_len": MAX_MODEL_LEN,
        **given,
    }
    room = 1 << 20
    sizes = {**given, "device": "cpu", "kv_cache_memory_bytes": room}  # there it takes no time
    blocks = make_engine(row, speculative, **sizes).metrics().num_total_blocks
    options["kv_cache_memory_bytes"] = rng.randint(6, 16) * room // blocks
    return make_engine(row, speculative, **options)


def drive(rng: random.Random, engine: Any, requests: list[tuple[list[int], Fields]]) -> Any:
    """Submits over time, and cancels a few."""
    waiting = list(requests)
    order: list[int] = []
    outputs: dict[int, list[int]] = {}
    cancelled: set[int] = set()
    drafted = []
    while waiting or engine.has_unfinished():
        while waiting and (rng.random() < 0.5 or not engine.has_unfinished()):
            prompt, fields = waiting.pop(0)
            order.append(engine.submit(prompt, make_params(**fields)))
            outputs[order[-1]] = []
        for update in engine.step():
            outputs[update.id] += update.new_tokens
        drafted += engine.take_draft_records()
        if order and rng.random() < 0.03:
            victim = rng.choice(order)
            if engine.cancel(victim):
                cancelled.add(victim)
    return order, outputs, cancelled, drafted


def check_mix(
    seed: int, rows: list[Row] | None = None, num_requests: int = 6, **given: Any
) -> tuple[int, int]:
    """Returns how many requests and records were compared; `given` are options of all engines."""
    rng = random.Random(seed)
    row = rng.choice(rows or SAFETENSORS_ROWS)
    engine = random_engine(rng, row, **given)
    bits: dict[Any, Any] = {}
    prompts: list[list[int]] = []
    num_compared = num_records = 0
    for _ in range(2):
        requests = [random_request(rng, prompts) for _ in range(num_requests)]
        order, outputs, cancelled, drafted = drive(rng, engine, requests)
        sequences = {}
        for request_id, (prompt, fields) in zip(order, requests, strict=True):
            plain = plain_engine(row, **given)
            plain_id = plain.submit(prompt, make_params(**fields))
            expected: list[int] = []
            while plain.has_unfinished():
                for update in plain.step():
                    assert update.id == plain_id
                    expected += update.new_tokens
            got = outputs[request_id]
            if request_id in cancelled:
                expected = expected[: len(got)]
            assert got == expected, (seed, row.name, fields)
            sequences[request_id] = prompt + got
            prompts.append(prompt + got)
            num_compared += 1
        records = records_of(drafted, sequences, cancelled)
        if records:
            check_records(row, records, TOLERANCES[given.get("dtype", "float32")])
        for record in records:
            first = bits.setdefault(record.key, record.logits)
            assert np.array_equal(first, record.logits), (seed, row.name, record.key)
        num_records += len(records)
    assert engine.metrics().num_held_blocks == 0
    return num_compared, num_records


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(0, 2**32))
def test_no_mix_changes_ids_or_draft_logits(seed: int) -> None:
    check_mix(seed)


@pytest.mark.long
def test_no_mix_changes_ids_or_draft_logits_in_full() -> None:
    num_requests = num_records = 0
    for index, row in enumerate(SAFETENSORS_ROWS):
        for seed in range(40):
            counts = check_mix(1000 * index + seed, [row])
            num_requests += counts[0]
            num_records += counts[1]
    print(f"{len(SAFETENSORS_ROWS)} drafters: {num_requests} requests, {num_records} draft records")
