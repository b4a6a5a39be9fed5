"""Pieces of training that need no model: losses, vocabularies, batches, counts."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from forerun.training.data import Example, draft_vocabulary, make_batches  # noqa: E402
from forerun.training.evaluation import count_passes  # noqa: E402
from forerun.training.layer_heads import usual_layer_ids  # noqa: E402
from forerun.training.losses import linear_cross_entropy  # noqa: E402


@pytest.mark.parametrize("soft", [True, False])
def test_the_cross_entropy_is_torchs_with_its_gradients(soft: bool) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(700, 12, requires_grad=True)  # more than a chunk
    output = torch.randn(30, 12, requires_grad=True)
    truth = torch.randn(600, 30).softmax(-1) if soft else torch.randint(30, (600,))
    rows, weights = torch.randint(600, (700,)), torch.rand(700)
    loss, best = linear_cross_entropy(hidden, output, truth, rows, weights)
    (2 * loss).backward()
    grads = hidden.grad, output.grad
    hidden.grad = output.grad = None
    logits = hidden @ output.T
    each = torch.nn.functional.cross_entropy(logits, truth[rows], reduction="none")
    expected = (each * weights).sum()
    (2 * expected).backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.equal(best, logits.argmax(-1))
    for ours, theirs in zip(grads, (hidden.grad, output.grad), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


answers = st.lists(st.lists(st.integers(0, 29), min_size=2, max_size=12), min_size=1, max_size=6)


@settings(deadline=None)
@given(answers, st.integers(2, 40), st.sets(st.integers(0, 29), max_size=2))
def test_the_draft_vocabulary_is_the_most_frequent_tokens(
    texts: list[list[int]], size: int, always: set[int]
) -> None:
    examples = [Example((99, *text), 1) for text in texts]
    vocabulary = draft_vocabulary(examples, size, 30, always)
    assert vocabulary == sorted(set(vocabulary))
    assert len(vocabulary) == min(size, 30)
    assert always <= set(vocabulary) <= set(range(30))
    counts = [sum(text.count(token) for text in texts) for token in range(30)]
    chosen = [counts[token] for token in vocabulary if token not in always]
    left = [counts[token] for token in range(30) if token not in vocabulary]
    assert not chosen or not left or min(chosen) >= max(left)


@settings(deadline=None)
@given(st.lists(st.integers(2, 90), min_size=1, max_size=40), st.integers(1, 200))
def test_batches_hold_every_example_once_and_keep_to_their_size(
    lengths: list[int], batch_tokens: int
) -> None:
    examples = [Example((i, *range(length)), 1) for i, length in enumerate(lengths)]
    batches = make_batches(examples, batch_tokens, random.Random(3))
    assert sorted(e.tokens[0] for batch in batches for e in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= batch_tokens
    assert batches == make_batches(examples, batch_tokens, random.Random(3))


@given(st.lists(st.integers(0, 3), max_size=30))
def test_passes_are_counted_as_decoding_makes_them(accepted: list[int]) -> None:
    accepted = [min(a, len(accepted) - i - 1) for i, a in enumerate(accepted)]
    written, passes = 0, 0
    while written < len(accepted):
        written += accepted[written]  # what is accepted
        written += 1  # and the target's own
        passes += 1
    assert count_passes(accepted) == passes


def test_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, forerun, forerun.tools.cli, forerun.training; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_usual_layers_mean_the_same_to_who_reads_them() -> None:
    for num_layers in range(1, 40):
        ids = usual_layer_ids(num_layers)
        assert all(0 <= k < num_layers for k in ids)
        assert ids[0] != 1
