"""Finds the directory of a model: a local one, a converted `.gguf` file, or a hub download."""

from __future__ import annotations

import os
import re
from pathlib import Path

from forerun import _core
from forerun.checkpoints.model_cache import cached
from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.util.checks import check_path
from forerun.util.interrupts import pass_on_interrupt
from forerun.util.json_files import check_is_file

# Changes whenever something else is written for the same file.
_CONVERTER_VERSION = 4
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
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
    return as_safetensors(_resolve("model", model, revision, progress))


def resolve_drafter(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local directory of a drafter, as it is."""
    return _resolve("speculative_config.model", model, revision, True)


def refuse_drafter(directory: Path) -> None:
    """Raises CheckpointError where a directory holds a drafter.

    It reads the headers of all weight files, so models that load are not asked.
    """
    from forerun.checkpoints.inspection.detect import detect, strip_prefixes
    from forerun.checkpoints.inspection.tensors import read_tensors

    try:
        found = detect(strip_prefixes(read_tensors(directory)), {})
    except CheckpointError:
        return
    if found.name != "target":
        raise CheckpointError(
            "model",
            f"{directory}, a drafter: {found.name} ({found.evidence})",
            "a language model; drafters are given as speculative_config={'model': ...}",
        )


def _resolve(
    field: str, model: str | os.PathLike[str], revision: str | None, progress: bool
) -> Path:
    path = check_path(field, model, "a directory, a .gguf file or a hub id")
    try:
        if not path.exists():
            return _download(field, os.fspath(model), revision)
        if revision is not None:
            raise InvalidArgumentError("revision", revision, "None for a model on this machine")
        if path.is_file():
            if path.suffix != ".gguf":
                raise CheckpointError(field, str(path), "a directory or a .gguf file")
            return _converted(path, progress)
        if not (path / "config.json").is_file():
            raise CheckpointError(field, str(path), "a directory with config.json")
    except OSError as error:
        reason = f"a path that can be read ({error.strerror})"
        raise CheckpointError(field, str(path), reason) from error
    return path


def _converted(gguf: Path, progress: bool) -> Path:
    name = f"{gguf.stem}-{_fingerprint(gguf)}"

    def write(target: Path) -> Path:
        from forerun.checkpoints.convert import write_converted

        return write_converted(gguf, target, progress=progress, keep_types=True)

    return cached(name, write)


def _fingerprint(*paths: Path) -> str:
    """Names files by size, time and both ends, without reading gigabytes at every start."""
    import hashlib

    digest = hashlib.sha256(f"{_CONVERTER_VERSION}".encode())
    for path in paths:
        check_is_file(path)
        try:
            status = path.stat()
            digest.update(f":{status.st_size}:{status.st_mtime_ns}".encode())
            with path.open("rb") as file:
                digest.update(file.read(_EDGE_BYTES))
                file.seek(max(0, status.st_size - _EDGE_BYTES))
                digest.update(file.read(_EDGE_BYTES))
        except OSError as error:
            raise CheckpointError(str(path), str(error.strerror), "a readable file") from error
    return digest.hexdigest()[:16]


def as_safetensors(directory: Path) -> Path:
    """A directory with the same checkpoint in safetensors: itself, or one in the cache."""
    name = _name_in_cache(directory)
    if name is None:
        return directory
    from forerun.checkpoints.convert.pickles import write_as_safetensors

    return cached(name, lambda target: write_as_safetensors(directory, target))


def is_same_model(directory: Path, resolved: Path) -> bool:
    """Whether resolve_model made `resolved` of `directory`."""
    return directory.resolve() == resolved.resolve() or _name_in_cache(directory) == resolved.name


def _name_in_cache(directory: Path) -> str | None:
    """None for a checkpoint that is in safetensors already."""
    files = _core.find_weight_files(os.fsencode(directory))
    if not files.names or not files.are_pickled:
        return None
    from forerun.checkpoints.convert.pickles import files_beside

    sources = [*files_beside(directory), *(directory / name for name in files.names)]
    return f"{directory.resolve().name}-{_fingerprint(*sources)}"


def _download(field: str, model: str, revision: str | None) -> Path:
    if not _HUB_ID.fullmatch(model) or model.endswith(".gguf"):
        raise CheckpointError(
            field,
            f"{model}: no such directory or file",
            "an existing directory or .gguf file, or a hub id such as org/name",
        )
    path = _snapshot(field, model, revision, _HUB_FILES)
    if not any(path.glob("*.safetensors")):
        path = _snapshot(field, model, revision, [*_HUB_FILES, *_HUB_PICKLES])
    patterns = ["*.safetensors", *_HUB_PICKLES]
    has_weights = any(file for pattern in patterns for file in path.glob(pattern))
    if not has_weights or not (path / "config.json").is_file():
        wanted = " or ".join(patterns)
        raise CheckpointError(field, model, f"a repository with config.json and {wanted}")
    return path


def _snapshot(field: str, model: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    missing = f"{model}: no such directory"
    try:
        directory = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except LocalEntryNotFoundError as error:
        reason = "a model that was downloaded before, or a connection to the hub"
        if constants.HF_HUB_OFFLINE:
            reason = "a model that was downloaded before: HF_HUB_OFFLINE is set"
        raise CheckpointError(field, missing, reason) from error
    except Exception as error:  # of the hub, its client, or the cache
        pass_on_interrupt(error)
        summary = (str(error).strip() or repr(error)).splitlines()[0]
        if isinstance(error, OSError) and error.errno is not None:
            summary = f"HF_HUB_CACHE is {constants.HF_HUB_CACHE}: {summary}"
        raise CheckpointError(
            field, missing, f"a model that can be downloaded from the hub ({summary})"
        ) from error
    return Path(directory)
