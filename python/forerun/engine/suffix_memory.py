"""Keeps a model's outputs in a file, and gives them to the drafter of the next process."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from forerun import _core
from forerun.checkpoints.model_identity import ModelIdentity
from forerun.engine.memory_file import MemoryFile
from forerun.errors import ForerunError

_LOGGER = logging.getLogger("forerun")
_BATCH = 64  # outputs that are read at a time: a fraction of a second, which an exit may wait for
# An output that many requests ended with counts as this many, so that it leaves room for others.
_MAX_REPEATS = 8
# None: no more will come.
_Queue = SimpleQueue[tuple[str, "array[int]"] | None]


class SuffixMemory:
    """The file of an engine and the thread that reads and writes it.

    The thread reads the file back, the newest outputs first, while the engine runs, and writes
    every output that has come since the last time. It sleeps where there is nothing to do, and ends
    with this object. A file that cannot be written any more costs a warning and no request.

    Args:
        path: the file; see MemoryFile, which also says what is refused.
        identity: the model.
        max_outputs: how many the drafter learns from.
    """

    def __init__(self, path: Path, identity: ModelIdentity, max_outputs: int) -> None:
        self._file = MemoryFile(path, identity, max_outputs)
        self._queue: _Queue = SimpleQueue()
        self._restored = threading.Event()
        self._thread: threading.Thread | None = None
        # Also called when the process exits.
        self._close = weakref.finalize(self, self._file.close)

    def start(self, engine: _core.Engine) -> None:
        """Starts the thread, which does not keep the engine in existence."""
        self._close.detach()
        thread = threading.Thread(
            target=_run,
            args=(self._file, weakref.ref(engine), self._queue, self._restored),
            name="forerun-memory",
            daemon=True,
        )
        self._thread = thread
        self._close = weakref.finalize(self, functools.partial(_finish, thread, self._queue))
        thread.start()

    def add(self, tenant: str, token_ids: list[int]) -> None:
        """Keeps an output; returns at once."""
        if len(token_ids) > 1:  # what follows nothing is never drafted
            self._queue.put((tenant, array("i", token_ids)))

    def for_tenant(self, tenant: str) -> Callable[[list[int]], None]:
        """What keeps a tenant's outputs."""
        return functools.partial(self.add, tenant)

    def wait_restored(self, timeout: float | None = None) -> bool:
        """Waits until the engine has what the file held; False after `timeout` seconds."""
        return self._restored.wait(timeout)

    def close(self) -> None:
        """Writes what has come and closes the file."""
        self._close()


def _finish(thread: threading.Thread, queue: _Queue) -> None:
    queue.put(None)
    if thread is not threading.current_thread():  # a collection of garbage may run anywhere
        thread.join()


def _run(
    file: MemoryFile,
    engine: weakref.ref[_core.Engine],
    queue: _Queue,
    restored: threading.Event,
) -> None:
    reader = _Reader(file, engine)
    writer = _Writer(file)
    is_open = True
    with contextlib.closing(file):
        while is_open:
            outputs, is_open = _take(queue, wait=restored.is_set())
            writer.write(outputs)
            if is_open and not restored.is_set() and reader.is_done():
                restored.set()
    restored.set()


def _take(queue: _Queue, *, wait: bool) -> tuple[list[tuple[str, bytes]], bool]:
    """What has come, and whether more may come."""
    outputs: list[tuple[str, bytes]] = []
    try:
        while True:
            item = queue.get(block=wait and not outputs)
            if item is None:
                return outputs, False
            tenant, tokens = item
            if sys.byteorder == "big":
                tokens.byteswap()
            outputs.append((tenant, tokens.tobytes()))
    except Empty:
        return outputs, True


class _Reader:
    def __init__(self, file: MemoryFile, engine: weakref.ref[_core.Engine]) -> None:
        self._file = file
        self._engine = engine
        self._before: int | None = None
        self._num_outputs = 0
        self._start = time.monotonic()

    def is_done(self) -> bool:
        """Reads some outputs; returns whether those were the last."""
        engine = self._engine()
        if engine is None:
            return True
        try:
            stored = self._file.newest(self._before, _BATCH)
            is_last = len(stored) < _BATCH
            outputs = [
                (output.tenant, output.tokens)
                for output in stored
                for _ in range(min(output.num_uses, _MAX_REPEATS))
            ]
            wants_more = engine.restore_outputs(outputs, is_last)
        except ForerunError as error:
            _LOGGER.warning("past outputs were not read back: %s", error)
            engine.restore_outputs([], is_last=True)
            return True
        self._num_outputs += len(stored)
        if stored:
            self._before = stored[-1].last_use
        if is_last or not wants_more:
            _LOGGER.info(
                "%d past outputs of %s were read back in %.1f s",
                self._num_outputs,
                self._file.path,
                time.monotonic() - self._start,
            )
        return is_last or not wants_more


class _Writer:
    def __init__(self, file: MemoryFile) -> None:
        self._file = file
        self._has_failed = False

    def write(self, outputs: list[tuple[str, bytes]]) -> None:
        """Adds outputs; where that fails, says so once and goes on without them."""
        if not outputs:
            return
        try:
            self._file.add(outputs)
            self._has_failed = False
        except ForerunError as error:
            if not self._has_failed:
                _LOGGER.warning("outputs are not kept: %s", error)
            self._has_failed = True
