"""What a model directory says about its tokens and chat templates beside tokenizer.json."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from forerun.errors import CheckpointError
from forerun.util.json_files import read_json_object, read_text

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_UNLIMITED = int(1e30)  # as in transformers
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


class TokenizerFiles:
    """tokenizer_config.json, special_tokens_map.json, added_tokens.json and the templates.

    Attributes:
        named: the tokens with a role, by its name: "bos_token", "eos_token", ...
        extra: special tokens without one of these roles.
        added: tokens beside the vocabulary, by id.
        model_max_length: the most tokens of a text, a very large number where nothing says so.
        padding_side: "left" or "right".
    """

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointError for files that are damaged or hold values of wrong types."""
        self._directory = directory
        self._config = _read(directory / "tokenizer_config.json")
        specials = _read(directory / "special_tokens_map.json")
        config = str(directory / "tokenizer_config.json")
        self.model_max_length = _max_length(config, self._config.get("model_max_length"))
        self.padding_side = self._config.get("padding_side", "right")
        if self.padding_side not in ("left", "right"):
            raise CheckpointError(f"{config}: padding_side", self.padding_side, "left or right")
        self.named: dict[str, AddedToken] = {}
        self.extra: list[AddedToken] = []
        # As in transformers, the older file counts more where the config lists no added tokens.
        sources = [(config, self._config), (str(directory / "special_tokens_map.json"), specials)]
        if "added_tokens_decoder" in self._config:
            sources.reverse()
        for path, values in sources:
            self._read_special(path, values)
        self.named = {name: self.named[name] for name in NAMED_TOKENS if name in self.named}
        self.added: dict[int, AddedToken] = {}
        if "added_tokens_decoder" in self._config:
            self._read_decoder(f"{config}: added_tokens_decoder")
        else:
            self._read_added(directory / "added_tokens.json")

    def _read_special(self, path: str, values: dict[str, Any]) -> None:
        for name in NAMED_TOKENS:
            if values.get(name) is not None:
                self.named[name] = _special_token(f"{path}: {name}", values[name])
        extra: list[tuple[str, Any]] = []
        for name, value in values.items():
            is_token = isinstance(value, str) or (isinstance(value, dict) and "content" in value)
            if name.endswith("_token") and name not in NAMED_TOKENS and is_token:
                extra.append((name, value))
        for name in _EXTRA:
            more = values.get(name)
            if isinstance(more, dict):
                extra += [(f"{name}.{key}", value) for key, value in more.items()]
            elif isinstance(more, list):
                extra += [(f"{name}[{index}]", value) for index, value in enumerate(more)]
            elif more is not None:
                raise CheckpointError(f"{path}: {name}", more, "a list or an object of tokens")
        known = {token.content for token in self.extra}
        for name, value in extra:
            token = _special_token(f"{path}: {name}", value)
            if token.content not in known:
                self.extra.append(token)

    def _read_decoder(self, where: str) -> None:
        tokens = self._config["added_tokens_decoder"]
        if not isinstance(tokens, dict):
            raise CheckpointError(where, tokens, "an object of tokens by id")
        for key, value in tokens.items():
            if not (key.isascii() and key.isdigit() and len(key) < 10) or not isinstance(
                value, dict
            ):
                raise CheckpointError(where, {key: value}, "an object of tokens by id")
            self.added[int(key)] = _token(f"{where}[{key!r}]", value)

    def _read_added(self, path: Path) -> None:
        special = {token.content for token in [*self.named.values(), *self.extra]}
        for content, index in _read(path).items():
            if type(index) is not int or not 0 <= index < 2**31 or not content:
                raise CheckpointError(str(path), {content: index}, "an object of ids by token")
            is_special = content in special
            self.added[index] = AddedToken(content, normalized=not is_special, special=is_special)

    @functools.cached_property
    def templates(self) -> dict[str, str]:
        """The chat templates by name; that of a model with one is "default".

        Raises CheckpointError for an invalid template.
        """
        where = f"{self._directory / 'tokenizer_config.json'}: chat_template"
        templates = _named_templates(where, self._config.get("chat_template"))
        path = self._directory / "chat_template.jinja"
        if os.path.isfile(path):
            templates["default"] = read_text(path)
        for path in sorted(self._directory.glob("additional_chat_templates/*.jinja")):
            templates[path.stem] = read_text(path)
        return templates


def _named_templates(where: str, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        pairs = [(entry.get("name"), entry.get("template")) for entry in value]
    elif isinstance(value, dict):
        pairs = list(value.items())
    else:
        pairs = [(None, None)]
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in pairs):
        raise CheckpointError(where, value, "a template, or a list of {'name': , 'template': }")
    return {str(name): str(text) for name, text in pairs}


def _max_length(config: str, value: Any) -> int:
    if value is None:
        return _UNLIMITED
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{config}: model_max_length", value, "a number above 0")
    return int(value)


def _special_token(field: str, value: Any) -> AddedToken:
    if isinstance(value, str):
        value = {"content": value}
    if not isinstance(value, dict):
        raise CheckpointError(field, value, "a token: a string, or an object with 'content'")
    return _token(field, {**value, "special": True})


def _token(field: str, value: dict[str, Any]) -> AddedToken:
    content = value.get("content")
    if not isinstance(content, str) or not content:
        raise CheckpointError(f"{field}: content", content, "a string that is not empty")
    flags = {name: value[name] for name in _FLAGS if value.get(name) is not None}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise CheckpointError(f"{field}: {name}", flag, "true or false")
    return AddedToken(content, **flags)


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) if os.path.isfile(path) else {}
