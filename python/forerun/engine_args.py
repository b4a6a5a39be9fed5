"""LLM's keywords as one value, which a command line can fill in."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from forerun import _core
from forerun.engine.config import settle_options
from forerun.errors import InvalidArgumentError
from forerun.vllm_fields import ENGINE_ARGS, NOT_IN_VLLM, Field, Kind
from forerun.vllm_fields.arguments import check_constructor
from forerun.vllm_fields.field import Made

# Options without a default that are not JSON.
_TEXTS = ("tokenizer", "revision", "spec_method", "spec_model", "suffix_memory")
_SWITCHES = ("enable_prefix_caching", "enable_chunked_prefill", "async_scheduling")


class _EngineArgs:
    def __post_init__(self) -> None:
        """Checks every field as LLM does."""
        settle_options({name: getattr(self, name) for name in ENGINE_ARGS if name != "model"})

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds an option for each field, such as --max-model-len or --max_model_len."""
        add_engine_options(parser, ENGINE_ARGS)
        return parser

    @staticmethod
    def from_cli_args(args: argparse.Namespace) -> EngineArgs:
        """The fields that parsed arguments have; other arguments are left alone."""
        given = {name: value for name, value in vars(args).items() if name in ENGINE_ARGS}
        return EngineArgs(**given)


def add_engine_options(
    parser: argparse.ArgumentParser, names: Iterable[str], *, lists_all: bool = True
) -> None:
    """Adds an option for each of these fields.

    Args:
        lists_all: the help also lists fields of which every value, or one alone, holds here.
    """
    group = parser.add_argument_group("engine")
    for name in names:
        field = ENGINE_ARGS[name]
        default = _default(name, field)
        note = field.note.replace("%", "%%")
        is_listed = lists_all or field.kind is Kind.RUNS
        how: dict[str, Any] = {"default": default, "help": note if is_listed else argparse.SUPPRESS}
        if isinstance(default, bool) or name in _SWITCHES:
            how["action"] = argparse.BooleanOptionalAction
        elif isinstance(default, str) or name in _TEXTS:
            how["type"] = str
        else:
            how["type"] = _json_or_text
        spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        group.add_argument(*spellings, **how)


def _default(name: str, field: Field) -> Any:
    if field.default is NOT_IN_VLLM:
        return getattr(_core.EngineOptions(), name, None)
    if isinstance(field.default, Made | list | set):
        return None  # means the same, and is never shared
    return field.default


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _fields() -> list[tuple[str, Any, Any]]:
    return [
        (name, Any, dataclasses.field(default=_default(name, field), kw_only=name != "model"))
        for name, field in ENGINE_ARGS.items()
    ]


if TYPE_CHECKING:

    class EngineArgs(_EngineArgs):
        """What LLM is made of: its keywords, under vLLM's names."""

        def __init__(self, model: str = ..., **options: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
else:
    EngineArgs = check_constructor(
        dataclasses.make_dataclass("EngineArgs", _fields(), bases=(_EngineArgs,)), "LLM", ("model",)
    )
    EngineArgs.__module__ = __name__
    EngineArgs.__doc__ = """What LLM is made of: its keywords, under vLLM's names.

    Wrong values raise InvalidArgumentError, which lists all of them. docs/vllm_compatibility.md
    has what each field does.
    """


def fields_of(engine_args: Any) -> dict[str, Any]:
    """The fields of EngineArgs by name; anything else raises InvalidArgumentError."""
    if not isinstance(engine_args, EngineArgs):
        raise InvalidArgumentError("engine_args", engine_args, "EngineArgs")
    return dict(vars(engine_args))
