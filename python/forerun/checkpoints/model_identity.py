"""What tells one model from another: a name for people and a fingerprint of its weights."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from forerun import _core
from forerun.errors import CheckpointError

# Of all files together, and of one file at least.
_NUM_SAMPLES = 256
_LEAST_SAMPLES = 16
_SAMPLE_BYTES = 4096


class ModelIdentity(NamedTuple):
    """Equal fingerprints: the same weights, under any path and name."""

    name: str
    fingerprint: str


def identify(model: str | os.PathLike[str], directory: Path) -> ModelIdentity:
    """The identity of a model.

    Args:
        model: as its user gave it: the id on the hub, or a path.
        directory: where resolve_model found it; looked at for a model on the hub.
    """
    path = Path(model).expanduser()
    if not path.exists():
        return ModelIdentity(os.fspath(model), _fingerprint(_weights_in(directory)))
    # Of the model's own files: what the cache has of them changes with its writer.
    files = [path] if path.is_file() else _weights_in(path)
    return ModelIdentity(path.resolve().name, _fingerprint(files))


def _weights_in(directory: Path) -> list[Path]:
    return [directory / name for name in _core.find_weight_files(os.fsencode(directory)).names]


def _fingerprint(files: list[Path]) -> str:
    """Of samples of the weights, spread so far that a merged adapter shows: gigabytes take long."""
    digest = hashlib.sha256()
    num_samples = max(_LEAST_SAMPLES, _NUM_SAMPLES // max(1, len(files)))
    for path in sorted(files):
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{size}:".encode())
                for i in range(num_samples):
                    file.seek(max(0, size - _SAMPLE_BYTES) * i // (num_samples - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:
            raise CheckpointError(str(path), str(error.strerror), "a readable file") from error
    return digest.hexdigest()[:32]
