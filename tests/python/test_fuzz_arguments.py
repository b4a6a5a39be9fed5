"""Any argument of the Python interface works or raises an error that names the mistake."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from argument_fuzz import Fuzz
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1)
# The seed makes the call: a smaller one is not a simpler one.
RUN = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzz(tiny_dir: Path) -> Fuzz:
    return Fuzz(tiny_dir)


def check(fuzz: Fuzz, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = fuzz.call(seed)
    assert problem is None, problem


@settings(RUN, max_examples=600)
@given(seed=SEEDS)
def test_random_calls_end_as_they_should(fuzz: Fuzz, seed: int) -> None:
    check(fuzz, seed)


@pytest.mark.long
@settings(RUN, max_examples=20_000)
@given(seed=SEEDS)
def test_many_random_calls_end_as_they_should(fuzz: Fuzz, seed: int) -> None:
    check(fuzz, seed)
