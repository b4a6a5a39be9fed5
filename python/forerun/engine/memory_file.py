"""The file of a suffix memory: past outputs of one model, by tenant, in SQLite.

One transaction adds outputs, whole or not at all, in a write-ahead log: a process that is killed
loses the outputs that it was about to write and nothing else. Several processes may share a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from forerun import _core
from forerun.checkpoints.model_identity import ModelIdentity
from forerun.errors import InvalidArgumentError

_FIELD = "suffix_memory"
_APPLICATION_ID = 0x466F7265
_FORMAT = 1
_BUSY_SECONDS = 30.0
_TOKEN_BYTES = 4
# More than the index of a drafter has room for.
_MAX_TOKENS = 8 << 20

_SCHEMA = (
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_FORMAT}",
    "CREATE TABLE memory (model TEXT NOT NULL, fingerprint TEXT NOT NULL, max_outputs INTEGER)",
    # tokens: int32, little-endian; last_use: microseconds since 1970, later than in all rows before
    """CREATE TABLE outputs (
        id INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        digest BLOB NOT NULL,
        tokens BLOB NOT NULL,
        num_tokens INTEGER NOT NULL,
        num_uses INTEGER NOT NULL,
        last_use INTEGER NOT NULL,
        UNIQUE (tenant, digest)
    )""",
    "CREATE INDEX outputs_by_use ON outputs (last_use, num_tokens)",
)
_ADD = """
    INSERT INTO outputs (tenant, digest, tokens, num_tokens, num_uses, last_use)
    VALUES (?, ?, ?, ?, 1, max(?, (SELECT coalesce(max(last_use), 0) + 1 FROM outputs)))
    ON CONFLICT (tenant, digest)
    DO UPDATE SET num_uses = num_uses + 1, last_use = excluded.last_use
"""


class StoredOutput(NamedTuple):
    """An output and how often a request ended with it."""

    tenant: str  # the cache_salt of its requests
    tokens: bytes  # int32, little-endian
    num_uses: int
    last_use: int  # microseconds since 1970


class TenantSummary(NamedTuple):
    """What a file holds of one tenant."""

    tenant: str
    num_outputs: int
    num_tokens: int
    last_use: int  # microseconds since 1970


class _Owner:
    """The outputs of one owner, the newest first."""

    def __init__(self) -> None:
        self._outputs: list[tuple[int, int]] = []  # id, number of tokens
        self._num_tokens = 0

    def add(self, id: int, num_tokens: int) -> None:
        """Adds one that is older than all so far."""
        self._outputs.append((id, num_tokens))
        self._num_tokens += num_tokens

    def pop_oldest(self) -> tuple[int, int]:
        """Takes the oldest one away: its id and its number of tokens."""
        id, num_tokens = self._outputs.pop()
        self._num_tokens -= num_tokens
        return id, num_tokens

    def share(self, most: tuple[int, int]) -> float:
        """Of the outputs or of the tokens that there may be, the larger one."""
        return max(len(self._outputs) / max(most[0], 1), self._num_tokens / most[1])


class MemoryFile:
    """An open file. One thread at a time may use it.

    Args:
        path: the file, which is made where it is missing.
        identity: the model whose outputs it holds; None takes what an existing file says.
        max_outputs: the most that are kept; None takes what the file says.

    Raises:
        InvalidArgumentError: here and in every method: the file is no suffix memory, is that of
            another model, or cannot be read or written.
    """

    def __init__(
        self, path: Path, identity: ModelIdentity | None = None, max_outputs: int | None = None
    ) -> None:
        self.path = Path(os.path.abspath(path))
        _make_private(self.path, may_create=identity is not None)
        with self._typed():
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._typed():
                self._prepare(identity)
                self.identity, self.max_outputs = self._settle(identity, max_outputs)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Closes the file, which then is a single one, without a log beside it."""
        self._connection.close()

    def add(self, outputs: Iterable[tuple[str, bytes]]) -> None:
        """Keeps outputs (tenant, tokens), the newest last; old ones go as needed."""
        now = time.time_ns() // 1000
        with self._transaction():
            for tenant, tokens in outputs:
                digest = hashlib.blake2b(tokens, digest_size=16).digest()
                num_tokens = len(tokens) // _TOKEN_BYTES
                self._connection.execute(_ADD, (tenant, digest, tokens, num_tokens, now))
            self._trim()

    def newest(self, before: int | None, count: int) -> list[StoredOutput]:
        """The newest `count` of the outputs whose last_use is below `before`, the newest first."""
        query = (
            "SELECT tenant, tokens, num_uses, last_use FROM outputs WHERE last_use < ? "
            "ORDER BY last_use DESC LIMIT ?"
        )
        with self._typed():
            rows = self._connection.execute(query, (2**62 if before is None else before, count))
            return [StoredOutput(*row) for row in rows]

    def summaries(self) -> list[TenantSummary]:
        """What the file holds of each tenant, by name."""
        query = (
            "SELECT tenant, count(*), sum(num_tokens), max(last_use) FROM outputs "
            "GROUP BY tenant ORDER BY tenant"
        )
        with self._typed():
            return [TenantSummary(*row) for row in self._connection.execute(query)]

    def clear(self, tenant: str | None = None, *, with_parts: bool = False) -> int:
        """Forgets the outputs of a tenant, or of all, for good; returns how many.

        Args:
            with_parts: those of the tenants "TENANT:..." too.
        """
        condition = "? IS NULL OR tenant = ? OR (? AND substr(tenant, 1, length(?) + 1) = ? || ':')"
        values = (tenant, tenant, with_parts, tenant, tenant)
        with self._transaction():
            query = f"DELETE FROM outputs WHERE {condition}"
            count = self._connection.execute(query, values).rowcount
        with self._typed():
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return count

    def _prepare(self, identity: ModelIdentity | None) -> None:
        """Makes the tables of a new file, and refuses what is not one of these files."""
        if self._pragma("journal_mode") != "wal" and self._is_new():
            self._pragma("journal_mode = WAL")
        self._pragma("synchronous = NORMAL")
        if self._is_new() and identity is not None:
            with self._transaction():
                if self._is_new():  # no other process made them meanwhile
                    for statement in _SCHEMA:
                        self._connection.execute(statement)
                    self._connection.execute("INSERT INTO memory VALUES (?, ?, NULL)", identity)
        if self._pragma("application_id") != _APPLICATION_ID:
            raise self._refused("a suffix memory, or a new file; it is neither")
        if (version := self._pragma("user_version")) != _FORMAT:
            raise self._refused(
                f"a file of format {_FORMAT}, which this version reads; not {version}"
            )

    def _is_new(self) -> bool:
        query = "SELECT count(*) FROM sqlite_master"
        return (
            self._pragma("application_id") == 0
            and not self._connection.execute(query).fetchone()[0]
        )

    def _settle(
        self, identity: ModelIdentity | None, max_outputs: int | None
    ) -> tuple[ModelIdentity, int]:
        query = "SELECT model, fingerprint, max_outputs FROM memory"
        model, fingerprint, stored = self._connection.execute(query).fetchone()
        if identity is not None and identity.fingerprint != fingerprint:
            raise self._refused(
                f"a file of the model {identity.name} (weights {identity.fingerprint[:8]}), or a "
                f"new one; this one is of {model} (weights {fingerprint[:8]})"
            )
        if max_outputs is not None and max_outputs != stored:
            self._connection.execute("UPDATE memory SET max_outputs = ?", (max_outputs,))
            stored = max_outputs
        default = _core.SuffixOptions().max_cached_requests
        return ModelIdentity(model, fingerprint), default if stored is None else stored

    def _trim(self) -> None:
        """Where there is too much, a sixteenth goes, each time the oldest of the largest owner.

        The owner is what precedes a tenant's first colon: no one displaces the outputs of others
        by many outputs, or by many salts, of its own.
        """
        query = "SELECT count(*), coalesce(sum(num_tokens), 0) FROM outputs"
        count, tokens = self._connection.execute(query).fetchone()
        most = (self.max_outputs, _MAX_TOKENS)
        if count <= most[0] and tokens <= most[1]:
            return
        goal = [limit - limit // 16 for limit in most]
        owners: dict[str, _Owner] = {}
        for id, tenant, num_tokens in self._connection.execute(
            "SELECT id, tenant, num_tokens FROM outputs ORDER BY last_use DESC"
        ):
            owners.setdefault(tenant.partition(":")[0], _Owner()).add(id, num_tokens)
        heap = [(-owner.share(most), name) for name, owner in owners.items()]
        heapq.heapify(heap)
        to_go = []
        while count > goal[0] or tokens > goal[1]:
            name = heap[0][1]
            id, num_tokens = owners[name].pop_oldest()
            to_go.append((id,))
            count, tokens = count - 1, tokens - num_tokens
            heapq.heapreplace(heap, (-owners[name].share(most), name))
        self._connection.executemany("DELETE FROM outputs WHERE id = ?", to_go)

    def _pragma(self, text: str) -> object:
        row = self._connection.execute(f"PRAGMA {text}").fetchone()
        return None if row is None else row[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._typed():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._refused(
                f"a suffix memory that can be read and written ({error})"
            ) from error

    def _refused(self, expected: str) -> InvalidArgumentError:
        return InvalidArgumentError(_FIELD, str(self.path), expected)


def _make_private(path: Path, *, may_create: bool) -> None:
    """Makes the file, where it is missing, for its owner alone: outputs are nobody else's."""
    flags = os.O_RDWR | (os.O_CREAT if may_create else 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        expected = f"a file that can be read and written ({error.strerror})"
        raise InvalidArgumentError(_FIELD, str(path), expected) from error
