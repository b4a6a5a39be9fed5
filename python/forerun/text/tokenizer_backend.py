"""Reads tokenizer.json, which takes longer than all else about a tokenizer and needs no GIL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.errors import CheckpointError
from forerun.util.interrupts import pass_on_interrupt

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def read_backend(directory: str | Path) -> Backend:
    """The tokenizer of the library tokenizers that a directory has.

    Raises:
        CheckpointError: tokenizer.json is missing or damaged.
    """
    from tokenizers import Tokenizer as Backend

    path = Path(directory) / "tokenizer.json"
    if not os.path.isfile(path):
        raise CheckpointError("tokenizer", str(directory), "a directory with tokenizer.json")
    try:
        return Backend.from_file(str(path))
    except Exception as error:
        pass_on_interrupt(error)
        raise CheckpointError(str(path), str(error), "a tokenizer.json") from error
