"""Finds the directory of a model: a local one, a converted `.gguf` file, or a hub download."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from forerun.checks import check_path
from forerun.errors import CheckpointError, InvalidArgumentError

# Changes whenever `forerun convert` writes something else for the same file.
_CONVERTER_VERSION = 1
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
_HUB_PICKLES = ["*.bin", "*.pt"]
_EDGE_BYTES = 1 << 20


def resolve_model(
    model: str | os.PathLike[str], *, revision: str | None = None, progress: bool = True
) -> Path:
    """The local directory of a model, converted or downloaded first where needed.

    Args:
        model: a Hugging Face model directory, a `.gguf` file, or the id of a model on the hub.
        revision: the branch, tag or commit of a model on the hub.
        progress: show a progress bar while a .gguf file is converted.
    """
    return _resolve("model", model, revision, progress, is_drafter=False)


def resolve_drafter(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local directory of a drafter; one on the hub may have `.bin` or `.pt` files alone."""
    return _resolve("speculative_config.model", model, revision, True, is_drafter=True)


def _resolve(
    field: str,
    model: str | os.PathLike[str],
    revision: str | None,
    progress: bool,
    is_drafter: bool,
) -> Path:
    path = check_path(field, model, "a directory, a .gguf file or a hub id")
    if not path.exists():
        return _download(field, os.fspath(model), revision, is_drafter)
    if revision is not None:
        raise InvalidArgumentError("revision", revision, "None for a model on this machine")
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(field, str(path), "a directory or a .gguf file")
        return _converted(path, progress)
    if not (path / "config.json").is_file():
        raise CheckpointError(field, str(path), "a directory with config.json")
    return path


def cache_directory() -> Path:
    """Where converted models are kept: $FORERUN_CACHE, else `forerun` in the user's cache."""
    if "FORERUN_CACHE" in os.environ:
        return Path(os.environ["FORERUN_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "forerun"


def _converted(gguf: Path, progress: bool) -> Path:
    from forerun.convert import convert

    target = cache_directory() / f"{gguf.stem}-{_fingerprint(gguf)}"
    if not (target / "config.json").is_file():
        try:
            convert(gguf, target, progress=progress)
        except (OSError, InvalidArgumentError):
            # Another process may have converted the same file meanwhile.
            if not (target / "config.json").is_file():
                raise
    return target


def _fingerprint(*paths: Path) -> str:
    """Names files by size, time and both ends, without reading gigabytes at every start."""
    digest = hashlib.sha256(f"{_CONVERTER_VERSION}".encode())
    for path in paths:
        status = path.stat()
        digest.update(f":{status.st_size}:{status.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, status.st_size - _EDGE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def as_safetensors(directory: Path) -> Path:
    """A directory with the same checkpoint in safetensors: itself, or one in the cache."""
    from forerun.convert.pickles import write_as_safetensors
    from forerun.inspection.tensors import pickle_files

    files = pickle_files(directory)
    if any(directory.glob("*.safetensors")) or not files:
        return directory
    name = _fingerprint(directory / "config.json", *files)
    target = cache_directory() / f"{directory.resolve().name}-{name}"
    if not (target / "config.json").is_file():
        try:
            write_as_safetensors(directory, target)
        except OSError:
            # Another process may have written the same meanwhile.
            if not (target / "config.json").is_file():
                raise
    return target


def _download(field: str, model: str, revision: str | None, is_drafter: bool) -> Path:
    if not _HUB_ID.fullmatch(model) or model.endswith(".gguf"):
        raise CheckpointError(
            field, model, "an existing directory or .gguf file, or a hub id such as org/name"
        )
    weights = ["*.safetensors"]
    path = _snapshot(field, model, revision, _HUB_FILES)
    if is_drafter and not any(path.glob("*.safetensors")):
        weights += _HUB_PICKLES
        path = _snapshot(field, model, revision, [*_HUB_FILES, *_HUB_PICKLES])
    has_weights = any(file for pattern in weights for file in path.glob(pattern))
    if not has_weights or not (path / "config.json").is_file():
        wanted = " or ".join(weights)
        raise CheckpointError(field, model, f"a repository with config.json and {wanted}")
    return path


def _snapshot(field: str, model: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        directory = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except LocalEntryNotFoundError as error:
        reason = "a model that was downloaded before, or a connection to the hub"
        if constants.HF_HUB_OFFLINE:
            reason = "a model that was downloaded before: HF_HUB_OFFLINE is set"
        raise CheckpointError(field, model, reason) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        summary = str(error).strip().splitlines()[0]
        raise CheckpointError(
            field, model, f"a model that can be downloaded from the hub ({summary})"
        ) from error
    return Path(directory)
