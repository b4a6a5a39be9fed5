"""What drafters compute, against independent models in float64 that recompute everything.

Every row of the table - method, format, option - is a small random checkpoint. Records of the
engine's draft steps are a function of the known tokens and the draft's path, so the reference needs
no notion of cycles, and shift, hidden states, feedback, positions and kept keys and values are all
judged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from drafter_reference import draft_logits, make_drafter
from drafter_rows import ROWS, Row
from drafter_runs import (
    MAX_TOKENS,
    PROMPTS,
    TOLERANCE,
    Run,
    bytes_of_blocks,
    check_greedy_paths,
    check_records,
    directories,
    drafts_trees,
    make_engine,
    num_by_depth,
    plain_outputs,
    reference_of,
    row_named,
    run,
)
from model_reference import LanguageModel

from forerun.checkpoints.inspection import fit_problems, inspect

# One of every kind of drafter, each with what makes its state hard to keep.
SOME = [
    "draft_model",
    "eagle bias",
    "eagle3 two layers",
    "eagle3 norm_output",
    "mlp_speculator tied",
    "mlp_speculator arctic sum_lstm",
    "medusa vllm bias",
    "mtp mimo",
    "mtp deepseek",
]


def names(rows: list[Row]) -> list[Any]:
    return [pytest.param(row, id=row.name) for row in rows]


@pytest.mark.parametrize("row", names(ROWS))
def test_draft_logits_are_those_of_the_reference(row: Row) -> None:
    got = run(make_engine(row, speculative={}), PROMPTS)
    assert got.outputs == plain_outputs(directories(row)[0])
    # Long sequences take the reference long; the long tests check every record.
    check_records(row, [r for r in got.records if len(r.tokens) < 24 or len(r.tokens) % 3 == 0])
    check_greedy_paths(row, got.records)
    assert not got.undrafted
    assert sorted(num_by_depth(got.records)) == list(range(row.num_tokens))
    assert len({record.key for record in got.records}) == len(got.records)


@pytest.mark.parametrize("row", names(ROWS))
def test_the_engine_detects_the_method_of_every_row(row: Row) -> None:
    given, detected = (
        run(make_engine(row, speculative=options), PROMPTS[:1])
        for options in ({}, {"method": None})
    )
    assert [record.key for record in detected.records] == [record.key for record in given.records]
    assert given.records


@pytest.mark.parametrize("row", names(ROWS))
def test_every_row_is_recognised_by_its_content(row: Row) -> None:
    target, directory = directories(row)
    if directory is None:
        assert inspect(target).options["layers for multi-token prediction"]
    else:
        found = inspect(directory)
        assert found.method == ("target" if row.method == "draft_model" else row.method)
        assert fit_problems(found, inspect(target)) == []


@pytest.mark.parametrize("name", SOME)
def test_no_step_is_without_a_draft_wherever_blocks_end(name: str) -> None:
    row = row_named(name)
    for num_tokens in (1, row.num_tokens):
        for width in (1, 2) if drafts_trees(row) else (1,):
            drafts = {"num_speculative_tokens": num_tokens, "draft_tree_width": width}
            prompts = [(PROMPTS[2] * 2)[:length] for length in (14, 15, 16, 31, 33)]
            got = run(make_engine(row, drafts), prompts, max_tokens=9)
            assert not got.undrafted, (num_tokens, width)
            check_records(row, got.records)


def test_drafts_of_the_table_are_accepted_in_part() -> None:
    drafted = accepted = 0
    for name in SOME:
        counters = run(make_engine(row_named(name), speculative={}), PROMPTS).metrics.spec_decode
        assert 0 < counters.num_accepted_tokens < counters.num_draft_tokens, name
        drafted += counters.num_draft_tokens
        accepted += counters.num_accepted_tokens
    assert 0.1 < accepted / drafted < 0.9


def chunked(row: Row) -> Run:
    return run(make_engine(row, speculative={}, max_num_batched_tokens=9, max_num_seqs=3), PROMPTS)


def preempted(row: Row) -> Run:
    """The pool holds every request alone, but not all of them together."""
    room = bytes_of_blocks(row, 5)
    engine = make_engine(row, speculative={}, max_model_len=64, kv_cache_memory_bytes=room)
    got = run(engine, PROMPTS)
    assert got.metrics.num_preemptions > 0
    return got


def cached(row: Row) -> Run:
    """The prompts' blocks are there, some from a request that drafted nothing."""
    engine = make_engine(row, speculative={})
    run(engine, PROMPTS[:2])
    run(engine, PROMPTS[2:], speculative=False)
    before = engine.metrics().num_cached_prompt_tokens
    got = run(engine, PROMPTS)
    assert engine.metrics().num_cached_prompt_tokens > before
    return got


def continued(row: Row) -> Run:
    """Conversations go on after blocks that other requests made, drafting or not."""
    engine = make_engine(row, speculative={})
    first = run(engine, PROMPTS, max_tokens=18, speculative=False).outputs
    second = run(engine, PROMPTS, max_tokens=20).outputs
    assert [output[:18] for output in second] == first
    prompts = [prompt + output[:12] for prompt, output in zip(PROMPTS, second, strict=True)]
    got = run(engine, prompts, max_tokens=MAX_TOKENS - 12)
    got.outputs = [a[:12] + b for a, b in zip(second, got.outputs, strict=True)]
    return got


def shared(row: Row) -> Run:
    """Requests catch up together with a prefix that is the same for them."""
    engine = make_engine(row, speculative={})
    run(engine, PROMPTS, speculative=False)
    got = run(engine, PROMPTS * 3)
    assert got.outputs[3:] == got.outputs[:3] * 2
    got.outputs = got.outputs[:3]
    return got


def one_by_one(row: Row) -> Run:
    """Requests come and go while others run."""
    return run(make_engine(row, speculative={}, max_num_seqs=2), PROMPTS)


def short_of_rows(row: Row) -> Run:
    """Some steps have no rows left for drafts: drafters catch up later."""
    return run(make_engine(row, speculative={}, max_num_batched_tokens=4, max_num_seqs=3), PROMPTS)


def in_adaptive_lengths(row: Row) -> Run:
    return run(make_engine(row, speculative={"adaptive": True}), PROMPTS)


def on_two_threads(row: Row) -> Run:
    return run(make_engine(row, speculative={}, num_threads=2, block_size=32), PROMPTS)


def in_hybrid_drafts(row: Row) -> Run:
    """Text that repeats is drafted by an index, some of it instead of the model's, some after."""
    got = run(make_engine(row, speculative={"hybrid": True}), PROMPTS)
    # The index needs past outputs to know what comes.
    engine = make_engine(row, speculative={"hybrid": True})
    run(engine, PROMPTS)
    again = run(engine, PROMPTS)
    assert again.outputs == got.outputs
    got.records += again.records
    return got


SCENARIOS = [
    chunked,
    preempted,
    cached,
    continued,
    shared,
    one_by_one,
    short_of_rows,
    in_adaptive_lengths,
    on_two_threads,
    in_hybrid_drafts,
]


def check_scenario(row: Row, scenario: Any) -> None:
    got = scenario(row)
    assert got.outputs == plain_outputs(directories(row)[0]), (row.name, scenario.__name__)
    check_records(row, got.records)
    if scenario is not in_hybrid_drafts:  # there the model goes on from the index's draft too
        check_greedy_paths(row, got.records)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_draft_logits_do_not_depend_on_the_history_of_the_state(scenario: Any) -> None:
    for name in SOME:
        check_scenario(row_named(name), scenario)


def check_trees(row: Row) -> None:
    grown = {"draft_tree_width": 3, "draft_tree_depth": 4, "num_speculative_tokens": 14}
    paths = [[0], [1], [2], [0, 0], [0, 2], [1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    fixed = {"speculative_token_tree": paths, "num_speculative_tokens": None}
    for tree in (grown, fixed):
        got = run(make_engine(row, speculative=tree), PROMPTS)
        assert got.outputs == plain_outputs(directories(row)[0]), row.name
        assert not got.undrafted
        check_records(row, got.records)
        if row.method != "medusa":  # the heads do not depend on the path, so it is not told
            check_greedy_paths(row, got.records, width=3)
            siblings = {(record.tokens, len(record.path)) for record in got.records}
            assert len(siblings) < len(got.records), row.name


@pytest.mark.parametrize("name", [name for name in SOME if drafts_trees(row_named(name))])
def test_nodes_of_trees_have_the_logits_of_their_paths(name: str) -> None:
    check_trees(row_named(name))


def check_sampled(row: Row, acceptance_method: str) -> None:
    sampled = {
        "draft_sample_method": _core_value("DraftSampleMethod", "PROBABILISTIC"),
        "acceptance_method": _core_value("AcceptanceMethod", acceptance_method),
    }
    got = run(make_engine(row, speculative=sampled), PROMPTS, temperature=1.3, seed=7)
    check_records(row, got.records)
    greedy = [record for record in got.records if record.path]
    with pytest.raises((AssertionError, KeyError)):
        check_greedy_paths(row, greedy)


def _core_value(kind: str, name: str) -> Any:
    from forerun import _core

    return getattr(getattr(_core, kind), name)


@pytest.mark.parametrize("acceptance_method", ["REJECTION", "BLOCK"])
def test_sampled_drafts_have_the_logits_of_their_paths(acceptance_method: str) -> None:
    for name in SOME:
        check_sampled(row_named(name), acceptance_method)


def check_same_bits(row: Row, dtype: str = "float32") -> None:
    """Records of a request's cycles are == those of requests that start with the known tokens."""
    kept = run(make_engine(row, speculative={}, dtype=dtype), PROMPTS).records
    lengths = {record.tokens: len(record.tokens) for record in kept}
    fresh = make_engine(
        row, speculative={}, dtype=dtype, enable_prefix_caching=False, max_num_seqs=4
    )
    # The last known token is sampled, as it was; one more makes a draft worthwhile.
    prompts = [list(tokens[: length - 1]) for tokens, length in lengths.items() if length > 1]
    again = run(fresh, prompts, max_tokens=row.num_tokens + 2).records
    by_key = {record.key: record.logits for record in again}
    compared = 0
    for record in kept:
        if record.key in by_key:
            compared += 1
            assert (record.logits == by_key[record.key]).all(), (row.name, record.key)
    assert compared >= 0.9 * len(kept), f"{row.name}: {compared} of {len(kept)}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SOME)
def test_kept_state_and_recomputation_agree_to_the_bit(name: str, dtype: str) -> None:
    check_same_bits(row_named(name), dtype)


@pytest.mark.long
@pytest.mark.parametrize("row", names(ROWS))
def test_every_row_in_every_scenario(row: Row) -> None:
    for scenario in SCENARIOS:
        check_scenario(row, scenario)
    if drafts_trees(row):
        check_trees(row)
    for acceptance_method in ("REJECTION", "BLOCK"):
        check_sampled(row, acceptance_method)
    check_same_bits(row)


def other_config(**changes: Any) -> Callable[[Any], None]:
    def change(drafter: Any) -> None:
        layers = [drafter.layer] if hasattr(drafter, "layer") else drafter.layers
        for layer in layers:
            layer.config = {**layer.config, **changes}

    return change


def set_to(name: str, value: Any) -> Callable[[Any], None]:
    return lambda drafter: setattr(drafter, name, value)


def without(*tensors: str) -> Callable[[Any], None]:
    return lambda drafter: [drafter.weights.tensors.pop(name) for name in tensors]


def times_zero(*tensors: str) -> Callable[[Any], None]:
    return lambda drafter: [drafter.weights.tensors[name].fill(0.0) for name in tensors]


def shift_aux_layers(drafter: Any) -> None:
    drafter.aux_layers = lambda: [3, 4, 4]


def forget_window(drafter: Any) -> None:
    drafter.layers[0].window = None


MLP = {"n_predict": 3, "scale_input": False}
MISREADINGS = {
    "the target's RoPE base": ("eagle3 plain", other_config(rope_theta=500.0)),
    "another RoPE base": ("eagle rope_theta", other_config(rope_theta=10000.0)),
    "no RoPE scaling": ("eagle3 rope_scaling", other_config(rope_scaling=None)),
    "no window": (
        "eagle3 sliding window",
        lambda drafter: setattr(drafter.layers[0], "window", None),
    ),
    "silu for gelu": ("eagle hidden_act", other_config(hidden_act="silu")),
    "the target's epsilon": ("eagle bias", other_config(rms_norm_eps=1e-5)),
    "other layers": ("eagle3 plain", shift_aux_layers),
    "ids as entered layers": ("eagle3 ids of left layers", set_to("aux_layers", lambda: [1, 2, 4])),
    "normed residual": ("eagle3 plain", set_to("norm_before_residual", True)),
    "plain residual": ("eagle3 speculators plain", set_to("norm_before_residual", False)),
    "normed feedback": ("eagle3 plain", set_to("norm_output", True)),
    "plain feedback": ("eagle3 norm_output", set_to("norm_output", False)),
    "no norm before fc": ("eagle3 norm_before_fc", without("input_norm.weight")),
    "no norms of parts": ("eagle3 fc_norm", without("fc_norm.0.weight")),
    "no scale": ("eagle3 logit_scale", set_to("scale", 1.0)),
    "no bias of fc": ("eagle bias", times_zero("fc.bias")),
    "no bias of a head": ("medusa vllm bias", without("blocks.2.layers.1.bias")),
    "an unmasked first token": ("mtp mimo", set_to("masks_first", False)),
    "a masked first token": ("mtp qwen", set_to("masks_first", True)),
    "embedding before hidden state": ("mtp mimo", set_to("is_hidden_first", False)),
    "hidden state before embedding": ("mtp deepseek", set_to("is_hidden_first", True)),
    "MiMo's state after the norm": ("mtp mimo", set_to("reads_normed", True)),
    "DeepSeek's state before the norm": ("mtp deepseek", set_to("reads_normed", False)),
    "Qwen's state before the norm": ("mtp qwen", set_to("reads_normed", False)),
    "no final norm": ("mtp deepseek", set_to("final_norm", None)),
    "other n_predict": (
        "mlp_speculator fewer than n_predict",
        set_to("config", {"n_predict": 2, "scale_input": False}),
    ),
    "unscaled input": (
        "mlp_speculator scale_input",
        set_to("config", MLP),
    ),
}


@pytest.mark.parametrize("name", MISREADINGS)
def test_a_misreading_is_far_outside_the_tolerance(name: str) -> None:
    row_name, misread = MISREADINGS[name]
    row = row_named(row_name)
    target, directory = directories(row)
    tokens, path = [*PROMPTS[1], 37, 57, 9, 3, 25, 28], [60, 9]
    wrong = make_drafter(row.method, LanguageModel(target), directory, **row.options)
    misread(wrong)
    path = path[: row.num_tokens - 1]
    expected = draft_logits(reference_of(row), tokens, path)
    off = np.abs(draft_logits(wrong, tokens, path) - expected).max()
    assert off > 10 * TOLERANCE * np.ptp(expected)
