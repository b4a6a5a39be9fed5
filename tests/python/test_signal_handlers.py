"""What a signal handler raises reaches the caller, whatever was being read or called."""

from __future__ import annotations

import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forerun.checkpoints.convert import tokenizer as convert_tokenizer
from forerun.checkpoints.inspection import pickles
from forerun.engine.progress import progress_bar
from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.logits_processors import processor_classes
from forerun.training import start, target


class Alarm(Exception):
    """What the handler raises: any exception, not only KeyboardInterrupt."""


def ring(*_: Any, **__: Any) -> Any:
    """Runs the handler, as a signal that arrives now would."""
    signal.raise_signal(signal.SIGUSR1)


def fail(*_: Any, **__: Any) -> Any:
    raise ValueError("broken")


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    def handle(*_: object) -> None:
        raise Alarm

    previous = signal.signal(signal.SIGUSR1, handle)
    yield
    signal.signal(signal.SIGUSR1, previous)


Call = Callable[[Callable[..., Any], Path, pytest.MonkeyPatch], Any]


def read_pickle(inner: Callable[..., Any], path: Path, _: pytest.MonkeyPatch) -> Any:
    with zipfile.ZipFile(path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"")
    return pickles._with_archive(path / "x.bin", inner)


def convert_merges(inner: Callable[..., Any], path: Path, _: pytest.MonkeyPatch) -> Any:
    file: Any = SimpleNamespace(path=path)
    return convert_tokenizer._model(file, inner)


def start_training(inner: Callable[..., Any], path: Path, patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(start, "read_checkpoint", inner)
    return start.Start(path)


def load_target(inner: Callable[..., Any], path: Path, patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(target, "_load", inner)
    return target.load_model(path, target.torch.float32)


def make_bar(inner: Callable[..., Any], _: Path, __: pytest.MonkeyPatch) -> Any:
    return progress_bar(inner, 1)


def import_processor(inner: Callable[..., Any], _: Path, patch: pytest.MonkeyPatch) -> Any:
    module: Any = type("Module", (), {"__getattr__": inner})()
    patch.setitem(sys.modules, "processor_of_test", module)
    return processor_classes("logits_processors", ["processor_of_test:X"])


@pytest.mark.parametrize(
    ("call", "failure"),
    [
        (read_pickle, CheckpointError),
        (convert_merges, CheckpointError),
        (start_training, CheckpointError),
        (load_target, CheckpointError),
        (make_bar, InvalidArgumentError),
        (import_processor, InvalidArgumentError),
    ],
)
def test_an_interrupt_is_not_a_failure_of_the_interrupted_code(
    call: Call, failure: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Alarm):
        call(ring, tmp_path, monkeypatch)
    with pytest.raises(failure):
        call(fail, tmp_path, monkeypatch)
