"""docs/vllm_compatibility.md: `python -m forerun.vllm_fields.page > docs/vllm_compatibility.md`."""

from __future__ import annotations

from forerun.vllm_fields import NOT_IN_VLLM, OWNERS, REQUIRED, Field, Kind

_INTRODUCTION = """\
# vLLM's names

*For users of vLLM who want to know what a field does here. Written by
`python -m forerun.vllm_fields.page` from the tables in `python/forerun/vllm_fields`, which configs
and parameters are checked with; a test compares the two.*

Every field of vLLM 0.33's offline API is known. vLLM's default is always accepted, and where it is
a config of vLLM's, so are None and an empty dict. What other values do:

- **runs**: Forerun honours the field.
- **one meaning**: the values listed mean what holds here; others are refused with the reason.
- **no effect**: every value is accepted, because nothing depends on it; the log mentions it.

All mistakes of a call are listed in one `InvalidArgumentError` (its `problems`).
"""
_TITLES = {"LLM": "LLM and EngineArgs", "prompt": "Prompts: TextPrompt and TokensPrompt"}


def page() -> str:
    """The page's text."""
    parts = [_INTRODUCTION]
    for owner, fields in OWNERS.items():
        parts.append(f"## {_TITLES.get(owner, owner)}\n\n| field | vLLM's default | Forerun |")
        parts.append("|---|---|---|")
        parts += [_row(name, field) for name, field in fields.items()]
        parts.append("")
    return "\n".join(parts)


def _row(name: str, field: Field) -> str:
    default = repr(field.default)
    if field.default is not REQUIRED and field.default is not NOT_IN_VLLM:
        default = f"`{default}`"
    does = f"runs: {field.note}"
    if field.kind is Kind.FIXED:
        also = " or ".join(f"`{value!r}`" for value in field.also)
        does = f"one meaning{f', also {also}' if also else ''}: {field.note}"
    elif field.kind is Kind.NO_EFFECT:
        does = f"no effect: {field.note}"
    return f"| `{name}` | {default} | {does} |"


if __name__ == "__main__":
    print(page(), end="")
