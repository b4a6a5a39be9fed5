"""Adds numbered outputs to a suffix memory without end and prints how many were certainly kept.

Run as `python memory_writer.py FILE FIRST`; killed by its caller. Tests of the file share the rest.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

from forerun.checkpoints.model_identity import ModelIdentity
from forerun.engine.memory_file import MemoryFile

IDENTITY = ModelIdentity("numbers", "0" * 32)
MOST = 500


def blob(*tokens: int) -> bytes:
    return np.asarray(tokens, dtype="<i4").tobytes()


def contents(file: MemoryFile) -> list[tuple[str, tuple[int, ...], int]]:
    """What a file holds, the newest first."""
    rows = file.newest(None, 10**9)
    return [
        (row.tenant, tuple(np.frombuffer(row.tokens, "<i4").tolist()), row.num_uses) for row in rows
    ]


def tokens_of(number: int) -> bytes:
    """An output from which its number can be read: of up to some thousand tokens."""
    return np.full(2 + 37 * number % 3000, number, dtype="<i4").tobytes()


def main() -> None:
    """Writes until it is killed."""
    file = MemoryFile(Path(sys.argv[1]), IDENTITY, MOST)
    number = int(sys.argv[2])
    for size in itertools.cycle((1, 7, 30)):
        file.add([("", tokens_of(number + i)) for i in range(size)])
        number += size
        print(number, flush=True)


if __name__ == "__main__":
    main()
