"""The bindings: types, exceptions, threads."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forerun import (
    CheckpointError,
    DeviceError,
    ForerunError,
    InternalError,
    InvalidArgumentError,
    _core,
)


def make_engine(directory: Path, **options: Any) -> _core.Engine:
    core = _core.EngineOptions()
    core.model = str(directory)
    core.check_invariants = True
    for name, value in options.items():
        setattr(core, name, value)
    return _core.Engine(core)


def params(max_tokens: int) -> _core.SamplingParams:
    core = _core.SamplingParams()
    core.temperature = 0
    core.max_tokens = max_tokens
    core.ignore_eos = True
    return core


def run(engine: _core.Engine) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    while engine.has_unfinished():
        for update in engine.step():
            tokens.setdefault(update.id, []).extend(update.new_tokens)
    return tokens


def test_prompts_are_lists_or_arrays_of_integers(tiny_dir: Path) -> None:
    engine = make_engine(tiny_dir)
    forms: list[Any] = [
        [5, 6, 7],
        np.array([5, 6, 7], np.int32),
        np.array([5, 6, 7], np.int64),
        (5, np.int16(6), 7),
        np.arange(10, dtype=np.int32)[5:8],
        np.array([5, 0, 6, 0, 7, 0], np.int32)[::2],
    ]
    ids = [engine.submit(form, params(8)) for form in forms]
    tokens = run(engine)
    assert all(tokens[request] == tokens[ids[0]] for request in ids)
    matrix = np.zeros((2, 2), np.int32)
    for bad in ([[1, 2]], 3, "text", None, [1.5], np.array([1.5]), matrix, [1 << 40]):
        with pytest.raises((InvalidArgumentError, TypeError, ValueError)):
            engine.submit(bad, params(8))  # type: ignore[arg-type]


def test_updates_outlive_the_step_and_the_engine(tiny_dir: Path) -> None:
    engine = make_engine(tiny_dir)
    engine.submit([5, 6, 7], params(3))
    updates = []
    while engine.has_unfinished():
        updates += engine.step()
    tokens = [list(update.new_tokens) for update in updates]
    limits = engine.limits
    del engine
    gc.collect()
    assert [list(update.new_tokens) for update in updates] == tokens
    assert sum(map(len, tokens)) == 3
    assert updates[-1].finish_reason == _core.FinishReason.LENGTH
    assert updates[-1].metrics is not None
    assert updates[-1].metrics.num_generated_tokens == 3
    assert limits.vocab_size == 268


class Hook:
    """A logits hook that changes nothing."""

    def __call__(self, token_ids: list[int], logits: Any) -> Any:
        return logits


@pytest.mark.parametrize("form", [list, np.array])
def test_hooks_of_refused_requests_are_dropped_by_the_next(tiny_dir: Path, form: Any) -> None:
    engine = make_engine(tiny_dir)
    too_long = form([5] * (engine.limits.max_model_len + 1))
    if form is np.array:
        too_long = too_long.astype(np.int32)
    alive: weakref.WeakSet[Hook] = weakref.WeakSet()
    for _ in range(5):
        hook = Hook()
        alive.add(hook)
        with pytest.raises(InvalidArgumentError):
            engine.submit(too_long, params(1), constraint=hook, logits_hook=hook)
        del hook
        assert len(alive) == 1


def test_a_step_that_throws_drops_the_hooks_of_requests_that_ended(tiny_dir: Path) -> None:
    engine = make_engine(tiny_dir)

    def interrupt(token_ids: list[int], logits: Any) -> Any:
        if token_ids:
            raise KeyboardInterrupt
        return logits

    engine.submit([5, 6], params(3), logits_hook=interrupt)
    hook = Hook()
    alive = weakref.ref(hook)
    engine.submit([5, 6], params(1), logits_hook=hook)
    del hook
    assert len(engine.step()) == 2
    assert alive() is not None, "the updates of a step keep their requests"
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert alive() is None


def test_a_finalizer_that_steps_takes_no_updates_from_its_step(tiny_dir: Path) -> None:
    engine = make_engine(tiny_dir)
    inner: list[_core.RequestUpdate] = []

    class Stepping(Hook):
        def __del__(self) -> None:
            inner.extend(engine.step())

    long = engine.submit([5, 6, 7], params(6))
    engine.submit([5, 6], params(1), logits_hook=Stepping())
    outer: list[_core.RequestUpdate] = []
    while engine.has_unfinished():
        outer += engine.step()
    assert len(inner) == 1
    positions = [update.num_earlier_tokens for update in outer + inner if update.id == long]
    assert sorted(positions) == list(range(6))


def test_other_threads_run_while_the_engine_steps(smollm_dir: Path) -> None:
    engine = make_engine(smollm_dir, num_threads=1)
    engine.submit(np.arange(1000, 1600, dtype=np.int32), params(1))
    ticks, done = [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.monotonic()
    engine.step()
    end = time.monotonic()
    done.set()
    thread.join()
    assert sum(begin < at < end for at in ticks) >= 3, "the step held the GIL"


def test_submit_and_cancel_are_safe_from_another_thread(tiny_dir: Path) -> None:
    engine = make_engine(tiny_dir, max_num_seqs=4)
    expected = engine.submit([9, 8, 7], params(16))
    plain = run(engine)[expected]
    results: dict[int, list[int]] = {}
    kept: list[int] = []
    stop = threading.Event()

    def submitter() -> None:
        for _ in range(40):
            kept.append(engine.submit([9, 8, 7], params(16)))
            engine.cancel(engine.submit([1, 2, 3], params(200)))
        stop.set()

    thread = threading.Thread(target=submitter)
    thread.start()
    while not stop.is_set() or engine.has_unfinished():
        for update in engine.step():
            results.setdefault(update.id, []).extend(update.new_tokens)
    thread.join()
    assert len(kept) == 40
    assert all(results[request] == plain for request in kept)
    assert engine.metrics().num_held_blocks == 0


def test_exceptions_carry_field_value_and_what_is_valid(tiny_dir: Path, tmp_path: Path) -> None:
    engine = make_engine(tiny_dir)
    with pytest.raises(InvalidArgumentError) as error:
        engine.submit([], params(1))
    assert (error.value.field, error.value.value) == ("prompt", "no tokens")
    assert str(error.value) == "prompt: got no tokens; expected at least one token"
    with pytest.raises(CheckpointError):
        make_engine(tmp_path)
    for cls, bases in (
        (InvalidArgumentError, (ForerunError, ValueError)),
        (CheckpointError, (InvalidArgumentError,)),
        (DeviceError, (ForerunError, RuntimeError)),
        (InternalError, (ForerunError, RuntimeError)),
    ):
        assert all(issubclass(cls, base) for base in bases)
    engine.submit([1], params(9))
    with pytest.raises(InternalError, match="token bytes may not change"):
        engine.set_token_bytes([b""] * 268)
