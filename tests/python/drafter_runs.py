"""Runs drafters in the engine, and holds what they computed against the reference."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from drafter_reference import Drafter, draft_logits, make_drafter
from drafter_rows import ROWS, Row
from model_reference import Array, LanguageModel

from forerun import _core

PROMPTS = [[5], [3, 9, 27, 4, 8, 1, 2], [*range(10, 43)]]  # blocks are of 16 tokens
MAX_TOKENS = 24
# Of the logits' spread, by the type that the engine computes in.
TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-2}
TOLERANCE = TOLERANCES["float32"]

Key = tuple[tuple[int, ...], tuple[int, ...]]  # known tokens, path


@dataclass
class Record:
    """A draft record with the tokens that were known."""

    tokens: tuple[int, ...]
    path: tuple[int, ...]
    logits: npt.NDArray[np.float32]

    @property
    def key(self) -> Key:
        return self.tokens, self.path


@dataclass
class Run:
    outputs: list[list[int]]
    records: list[Record]
    metrics: _core.EngineMetrics
    # Request and number of known tokens of steps that had room for a draft, and drafted nothing.
    undrafted: list[tuple[int, int]]


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="forerun-drafters-"))


@functools.cache
def directories(row: Row) -> tuple[Path, Path | None]:
    return row.write(folder())


@functools.cache
def target_of(directory: Path) -> LanguageModel:
    return LanguageModel(directory)


@functools.cache
def reference_of(row: Row) -> Drafter:
    target, drafter = directories(row)
    return make_drafter(row.method, target_of(target), drafter, **row.options)


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


@functools.cache
def engine_directories(row: Row) -> tuple[Path, Path | None]:
    """The same for the engine, which reads safetensors alone."""
    target, drafter = directories(row)
    if not row.is_pickle:
        return target, drafter
    from forerun.checkpoints.convert.pickles import write_as_safetensors

    assert drafter is not None
    converted = folder() / f"{drafter.name} converted"
    write_as_safetensors(drafter, converted)
    return target, converted


def make_engine(
    row: Row,
    speculative: dict[str, Any] | None = None,
    *,
    record_draft_logits: bool = True,
    **options: Any,
) -> Any:
    target, drafter = engine_directories(row)
    core = _core.EngineOptions()
    core.model = str(target)
    core.dtype = "float32"
    core.check_invariants = True
    if speculative is not None:
        drafts = core.speculative
        model = _core.ModelDrafterOptions()
        model.method = getattr(_core.ModelMethod, row.method.upper())
        model.model = "" if drafter is None else str(drafter)
        drafts.num_speculative_tokens = row.num_tokens
        drafts.adaptive = False
        given = {**row.options, **speculative}
        is_hybrid = given.pop("hybrid", False)
        for name, value in given.items():
            setattr(model if hasattr(model, name) else drafts, name, value)
        drafts.method = model
        if is_hybrid:
            hybrid = _core.HybridOptions()
            hybrid.model = model
            drafts.method = hybrid
    for name, value in options.items():
        setattr(core, name, value)
    return _core.Engine(core, record_draft_logits=record_draft_logits)


def bytes_of_blocks(row: Row, count: int, **options: Any) -> int:
    """Of a KV cache that has so many blocks."""
    room = 1 << 20
    engine = make_engine(row, {}, kv_cache_memory_bytes=room, **options)
    return count * room // int(engine.metrics().num_total_blocks) + 256


def drafts_trees(row: Row) -> bool:
    return row.method != "mlp_speculator"


def make_params(**fields: Any) -> _core.SamplingParams:
    params = _core.SamplingParams()
    for name, value in {
        "temperature": 0.0,
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        **fields,
    }.items():
        setattr(params, name, value)
    return params


def records_of(
    drafted: Sequence[Any], sequences: dict[int, list[int]], cancelled: set[int] | None = None
) -> list[Record]:
    """With the tokens that were known, by what requests became in the end."""
    records = []
    for record in drafted:
        tokens = tuple(sequences[record.request_id][: record.num_tokens])
        if len(tokens) < record.num_tokens:
            # A cancelled request may have lost tokens; others draft nothing after their end.
            assert record.request_id in (cancelled or set())
            continue
        records.append(Record(tokens, tuple(record.path), np.array(record.logits)))
    return records


def run(
    engine: Any, prompts: Sequence[Sequence[int]], logits_hook: Any = None, **fields: Any
) -> Run:
    params = make_params(**fields)
    ids = [engine.submit(list(prompt), params, logits_hook=logits_hook) for prompt in prompts]
    num_prompt = {request_id: len(prompt) for request_id, prompt in zip(ids, prompts, strict=True)}
    outputs: dict[int, list[int]] = {request_id: [] for request_id in ids}
    drafted, undrafted = [], []
    while engine.has_unfinished():
        num_before = {request_id: len(output) for request_id, output in outputs.items()}
        updates = engine.step()
        records = engine.take_draft_records()
        who = {record.request_id for record in records}
        for update in updates:
            outputs[update.id] += update.new_tokens
            num_left = fields.get("max_tokens", MAX_TOKENS) - num_before[update.id]
            if num_before[update.id] > 0 and num_left > 1 and update.id not in who:
                undrafted.append((update.id, num_prompt[update.id] + num_before[update.id]))
        drafted += records
    sequences = {
        request_id: [*prompt, *outputs[request_id]]
        for request_id, prompt in zip(ids, prompts, strict=True)
    }
    results = [outputs[request_id] for request_id in ids]
    return Run(results, records_of(drafted, sequences), engine.metrics(), undrafted)


@functools.cache
def plain_outputs(target: Path, max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    core = _core.EngineOptions()
    core.model = str(target)
    core.dtype = "float32"
    return run(_core.Engine(core), PROMPTS, max_tokens=max_tokens).outputs


@functools.cache
def expected_logits(row: Row, tokens: tuple[int, ...], path: tuple[int, ...]) -> Array:
    return draft_logits(reference_of(row), tokens, path)


def check_records(row: Row, records: Sequence[Record], tolerance: float = TOLERANCE) -> None:
    """Every record's logits are those of the reference."""
    assert records
    for record in sorted(records, key=lambda record: -len(record.tokens)):
        expected = expected_logits(row, record.tokens, record.path)
        assert record.logits.shape == expected.shape, row.name
        spread = expected.max() - expected.min()
        worst = np.abs(record.logits - expected).max()  # NaN is not below anything
        assert worst < tolerance * spread, (
            f"{row.name}: {len(record.tokens)} tokens known, path {record.path}: "
            f"off by {worst / spread:.2e} of the spread"
        )


def check_greedy_paths(row: Row, records: Sequence[Record], width: int = 1) -> None:
    """Every path goes on with one of the most probable tokens of the logits before."""
    target_ids = reference_of(row).target_ids
    by_key = {record.key: record.logits for record in records}
    for record in records:
        if record.path:
            before = by_key[record.tokens, record.path[:-1]]
            best = np.argsort(-before, kind="stable")[:width]
            known = best if target_ids is None else target_ids[best]
            assert record.path[-1] in known, (row.name, len(record.tokens), record.path)


def num_by_depth(records: Sequence[Record]) -> dict[int, int]:
    depths = [len(record.path) for record in records]
    return {depth: depths.count(depth) for depth in sorted(set(depths))}
