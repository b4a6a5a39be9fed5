"""`forerun convert`: a GGUF file -> a Hugging Face model directory, without torch."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

from forerun.checkpoints.convert.config import architecture, generation_config, model_config
from forerun.checkpoints.convert.reader import GgufFile
from forerun.checkpoints.convert.tokenizer import write_tokenizer
from forerun.checkpoints.convert.weights import rope_freqs, write_weights
from forerun.errors import InvalidArgumentError
from forerun.util.checks import check_path

__all__ = ["convert", "write_converted"]


def convert(gguf: str | Path, directory: str | Path, *, progress: bool = True) -> Path:
    """Writes the model of a GGUF file as a Hugging Face directory in bf16; returns the directory.

    The directory appears whole or not at all. Llama and Gemma 3 files are understood, in every
    quantization that the `gguf` package can unpack.

    Raises:
        CheckpointError: the file is damaged, or says something this converter cannot honour.
        InvalidArgumentError: the directory exists already, or cannot be written.
    """
    source, target = check_path("gguf", gguf), check_path("directory", directory)
    try:
        return write_converted(source, target, progress=progress, keep_types=False)
    except OSError as error:
        reason = f"a directory that can be written ({error.strerror or error})"
        raise InvalidArgumentError("directory", str(target), reason) from error


def write_converted(gguf: Path, target: Path, *, progress: bool, keep_types: bool) -> Path:
    """As convert; OSError where the directory cannot be written.

    Args:
        keep_types: tensors stay as they are, for the engine alone.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidArgumentError("directory", str(target), "a new or empty directory")
    file = GgufFile(gguf)
    arch = architecture(file)
    config = model_config(file, rope_freqs(file))
    if keep_types:
        config["quantization_config"] = {"quant_method": "gguf"}

    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        _write_json(unfinished / "config.json", config)
        _write_json(unfinished / "generation_config.json", generation_config(file))
        write_tokenizer(file, arch, unfinished)
        write_weights(file, config, unfinished / "model.safetensors", progress, keep_types)
        os.replace(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
