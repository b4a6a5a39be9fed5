"""Every field of vLLM 0.33's offline API and of Forerun's own, and what Forerun does with each.

Configs, parameters and LLM check what they are given against these tables, and
docs/vllm_compatibility.md is written from them.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.vllm_fields.engine import (
    ENGINE_ARGS,
    PROFILER_CONFIG,
    STRUCTURED_OUTPUTS_CONFIG,
)
from forerun.vllm_fields.field import NOT_IN_VLLM, REQUIRED, Field, Fields, Kind
from forerun.vllm_fields.requests import (
    BEAM_SEARCH_PARAMS,
    METHODS,
    POSITIONAL,
    PROMPT,
    SAMPLING_PARAMS,
    STRUCTURED_OUTPUTS_PARAMS,
)
from forerun.vllm_fields.speculative import SPECULATIVE_CONFIG

__all__ = [
    "ENGINE_ARGS",
    "METHODS",
    "NOT_IN_VLLM",
    "OWNERS",
    "POSITIONAL",
    "REQUIRED",
    "SPECULATIVE_CONFIG",
    "Field",
    "Fields",
    "Kind",
    "field_problems",
    "unknown_name",
]

OWNERS: dict[str, Fields] = {
    "LLM": ENGINE_ARGS,
    "SpeculativeConfig": SPECULATIVE_CONFIG,
    "SamplingParams": SAMPLING_PARAMS,
    "ProfilerConfig": PROFILER_CONFIG,
    "StructuredOutputsConfig": STRUCTURED_OUTPUTS_CONFIG,
    "StructuredOutputsParams": STRUCTURED_OUTPUTS_PARAMS,
    "BeamSearchParams": BEAM_SEARCH_PARAMS,
    "prompt": PROMPT,
    **METHODS,
}
_LOGGER = logging.getLogger("forerun")


def field_problems(owner: str, given: Mapping[str, Any]) -> list[InvalidArgumentError]:
    """What is wrong with some fields as far as the table knows: unknown names and refused values.

    Fields that RUN are not looked at. A value that has no effect is mentioned in the log, unless it
    is vLLM's default.
    """
    fields = OWNERS[owner]
    problems = []
    for name, value in given.items():
        field = fields.get(name) if isinstance(name, str) else None
        if field is None:
            problems.append(unknown_name(owner, name, fields))
        elif not field.accepts(value):
            problems.append(InvalidArgumentError(name, value, field.expected()))
        elif field.kind is Kind.NO_EFFECT and not field.is_default(value):
            _LOGGER.info("%s has no effect: %s", name, field.note)
    return problems


def unknown_name(owner: str, name: Any, known: Iterable[str]) -> InvalidArgumentError:
    """The error for a name that an owner does not have, with a name that was probably meant."""
    text = name if isinstance(name, str) else repr(name)
    others = [other for other, fields in OWNERS.items() if other != owner and name in fields]
    near = difflib.get_close_matches(text, list(known), n=1, cutoff=0.8)
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif others:
        hint = f"{others[0]} has this field"
    else:
        hint = "docs/vllm_compatibility.md lists them"
        for other, fields in OWNERS.items():
            if near := difflib.get_close_matches(text, list(fields), n=1, cutoff=0.8):
                hint = f"did you mean {near[0]!r} of {other}?"
                break
    return InvalidArgumentError(text, "an unknown name", f"an option of {owner}; {hint}")
