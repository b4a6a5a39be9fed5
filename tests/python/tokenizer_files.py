"""Tiny byte-level tokenizers with whatever files beside them, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def write_tokenizer(directory: Path, added: list[AddedToken] | None = None, **files: Any) -> Path:
    """A vocabulary of the 256 bytes; `files` are JSON by a file's stem, or text by its path."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added or [])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    files = {"config": {"model_type": "llama"}, **files}
    if "tokenizer_config" in files and isinstance(files["tokenizer_config"], dict):
        files["tokenizer_config"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **files["tokenizer_config"],
        }
    for name, value in files.items():
        if name.endswith(".jinja"):
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(value, encoding="utf-8")
        else:
            (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


def token(content: str, **flags: Any) -> dict[str, Any]:
    """A token as `added_tokens_decoder` has it."""
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": content, **usual, "special": True, **flags}
