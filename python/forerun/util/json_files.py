"""JSON that others wrote: parsed within a limit of depth, and every failure a typed error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from forerun import _core
from forerun.errors import CheckpointError, InvalidArgumentError

_MOST_BYTES = 256 << 20


def parse_json(
    text: str | bytes,
    field: str,
    expected: str = "JSON",
    error: type[InvalidArgumentError] = CheckpointError,
) -> Any:
    """The value that a JSON text holds.

    Args:
        field: names the text in errors.
        expected: what the text should be, for errors.
        error: the class of those errors.

    Raises:
        InvalidArgumentError: `error`, for a text that is not JSON in UTF-8, is nested deeper than
            MAX_JSON_DEPTH, or holds half of a surrogate pair.
    """
    try:
        data = text.encode() if isinstance(text, str) else text
        _check_depth(data, field, error)
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except InvalidArgumentError:
        raise
    except (ValueError, RecursionError) as reason:
        summary = str(reason).strip().splitlines()[0]
        raise error(field, "text that cannot be parsed", f"{expected} ({summary})") from reason
    return value


def _check_depth(data: bytes, field: str, error: type[InvalidArgumentError]) -> None:
    depth = _core.json_depth(data)
    if depth > _core.MAX_JSON_DEPTH:
        raise error(
            field,
            f"JSON nested {depth} levels deep",
            f"at most {_core.MAX_JSON_DEPTH} levels",
        )


def read_bytes(path: Path, most: int = _MOST_BYTES) -> bytes:
    """The content of a file of a checkpoint.

    Raises:
        CheckpointError: it is missing, no file, not readable, or longer than `most` bytes.
    """
    check_is_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise CheckpointError(str(path), str(error.strerror), "a readable file") from error
    if len(data) > most:
        raise CheckpointError(str(path), f"more than {most} bytes", f"at most {most} bytes")
    return data


def check_is_file(path: Path) -> None:
    """Raises a CheckpointError unless the path is a file: pipes and devices may never end."""
    try:
        if path.is_file():
            return
        reason = "no file" if os.path.lexists(path) else "no such file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise CheckpointError(str(path), reason, "a readable file")


def read_text(path: Path) -> str:
    """The text of a file of a checkpoint, in UTF-8; CheckpointError as for read_bytes."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(str(path), str(error), "text in UTF-8") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file; CheckpointError as for read_bytes and parse_json."""
    return parse_json(read_bytes(path), str(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError as for read_json, or for another type."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(str(path), type(value).__name__, "a JSON object")
    return value
