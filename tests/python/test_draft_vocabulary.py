"""A drafter with a part of its vocabulary: the same logits of fewer tokens, and the same output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafter_checkpoints import VOCAB
from drafter_rows import ROWS, Row
from drafter_runs import (
    PROMPTS,
    Run,
    directories,
    engine_directories,
    make_engine,
    plain_outputs,
    reference_of,
    row_named,
    run,
)

from forerun import CheckpointError, InvalidArgumentError

EOS = 1  # of all targets
SOME = ("draft_model", "eagle3 no lm_head, tied target", "medusa vllm token_map", "mtp mimo")


def tokens_of(row: Row) -> list[int]:
    """The tokens that a drafter has, by the row of their logits."""
    ids = reference_of(row).target_ids
    return list(range(VOCAB)) if ids is None else [int(token) for token in ids]


def hottest(row: Row, order: list[int], size: int) -> list[int]:
    """The rows of the first `size` tokens of an order that the drafter has."""
    tokens = tokens_of(row)
    ranked = sorted(range(len(tokens)), key=lambda i: order.index(tokens[i]))
    return sorted(ranked[:size])


def check_rows(cut: Run, whole: Run, rows: list[int]) -> None:
    """Where both runs drafted, the logits are those of the rows, bit by bit."""
    expected = {record.key: record.logits for record in whole.records}
    same = [record for record in cut.records if record.key in expected]
    assert same
    for record in same:
        np.testing.assert_array_equal(record.logits, expected[record.key][rows])


def with_hot_tokens(row: Row, tokens: Any, tmp_path: Path) -> str:
    """A copy of the drafter, or of the target that drafts for itself, with hot_tokens.json."""
    target, drafter = engine_directories(row)
    copy = shutil.copytree(drafter or target, tmp_path / "drafter")
    (copy / "hot_tokens.json").write_text(json.dumps(tokens))
    return str(copy)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_the_lowest_ids_are_drafted_with_the_logits_of_the_whole(row: Row) -> None:
    order = [EOS, *(token for token in range(VOCAB) if token != EOS)]
    size = len(tokens_of(row)) // 2
    whole = run(make_engine(row, {}), PROMPTS)
    cut = run(make_engine(row, {"draft_vocab_size": size}), PROMPTS)
    assert cut.outputs == plain_outputs(directories(row)[0])
    check_rows(cut, whole, hottest(row, order, size))
    kept = {tokens_of(row)[i] for i in hottest(row, order, size)}
    assert kept.issuperset(token for record in cut.records for token in record.path)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("shape", [{}, {"draft_tree_width": 3, "num_speculative_tokens": 9}])
def test_a_file_of_hot_tokens_gives_their_order(
    name: str, shape: dict[str, int], tmp_path: Path
) -> None:
    row = row_named(name)
    listed = [int(token) for token in np.random.default_rng(3).permutation(VOCAB)[:30]]
    model = with_hot_tokens(row, {"token_ids": listed}, tmp_path)
    order = [*dict.fromkeys([EOS, *listed, *range(VOCAB)])]
    target = model if row.method == "mtp" else str(directories(row)[0])
    found = {"model": "" if row.method == "mtp" else model}
    whole = run(make_engine(row, shape), PROMPTS)
    for size in (7, 20, None):
        options = {**found, **shape, "draft_vocab_size": size}
        cut = run(make_engine(row, options, model=target), PROMPTS)
        assert cut.outputs == whole.outputs
        size = size or len({EOS, *listed}.intersection(tokens_of(row)))
        check_rows(cut, whole, hottest(row, order, size))


@pytest.mark.parametrize("name", SOME)
def test_all_of_its_tokens_are_the_drafter_as_it_is(name: str) -> None:
    row = row_named(name)
    whole = run(make_engine(row, {}), PROMPTS)
    same = run(make_engine(row, {"draft_vocab_size": len(tokens_of(row))}), PROMPTS)
    assert [record.key for record in same.records] == [record.key for record in whole.records]
    check_rows(same, whole, [*range(len(tokens_of(row)))])
    with pytest.raises(InvalidArgumentError, match=r"draft_vocab_size.*at most \d+"):
        make_engine(row, {"draft_vocab_size": len(tokens_of(row)) + 1})


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2], "JSON object"),
        ({"ids": [1]}, "token_ids: got nothing; expected a list"),
        ({"token_ids": []}, r"token_ids: got \[\]"),
        ({"token_ids": [3, VOCAB]}, f"got {VOCAB}; expected each token of the target once"),
        ({"token_ids": [3, -1]}, "got -1"),
        ({"token_ids": [3, 2**70]}, "expected each token of the target once"),
        ({"token_ids": [3, 4.0]}, "got 4.0"),
        ({"token_ids": [3, 5, 3]}, "got 3; expected each token of the target once"),
    ],
)
def test_a_wrong_file_of_hot_tokens_is_refused(tokens: Any, expected: str, tmp_path: Path) -> None:
    row = row_named("draft_model")
    with pytest.raises(CheckpointError, match=r"hot_tokens\.json") as caught:
        make_engine(row, {"model": with_hot_tokens(row, tokens, tmp_path)})
    assert caught.match(expected)
