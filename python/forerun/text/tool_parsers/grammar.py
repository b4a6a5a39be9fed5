"""Grammars that make a model write tool calls in the format that the parser reads."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.text.json_schemas import check_depth, without_dead_ends
from forerun.text.structured_outputs import StructuredOutputsParams
from forerun.text.tool_parsers.argument_grammars import (
    Rules,
    gemma_object,
    python_arguments,
    qwen_parameters,
)
from forerun.text.tool_parsers.formats import REASONING, TOOLS, ToolFormat
from forerun.util.checks import check_choice

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_CHOICES = (
    "'none', 'auto', 'required', {'type': 'function', 'function': {'name': ...}} or "
    "{'type': 'allowed_tools', 'allowed_tools': {'mode': 'auto' or 'required', 'tools': [...]}}"
)


def constrains_calls(tool_choice: Any, *, parallel_tool_calls: bool, has_strict: bool) -> bool:
    """Whether calls have a grammar: demanded, of a strict tool, at most one, or of some tools only.

    Args:
        tool_choice, parallel_tool_calls: what `tool_grammar` takes.
        has_strict: a tool has `"strict": True`.
    """
    if tool_choice != "auto":
        return bool(tool_choice != "none")
    return has_strict or not parallel_tool_calls


def demands_calls(tool_choice: Any) -> bool:
    """Whether an output is calls alone, after its reasoning: "required" or a named function."""
    return _mode(tool_choice) not in ("auto", "none")


def tool_grammar(
    tools_format: str,
    tools: Sequence[Any],
    tool_choice: Any,
    *,
    parallel_tool_calls: bool = True,
    answer: StructuredOutputsParams | None = None,
    reasoning_format: str | None = None,
    starts_in_reasoning: bool = False,
    special_tokens: Mapping[str, int] | None = None,
) -> StructuredOutputsParams | None:
    """The constraint on an output that has to call tools, or to call strict ones as they want.

    With "required" or a named function, the output is calls alone, after the reasoning, and exactly
    one of a named function. With "auto", text may be anything, and calls are constrained if a tool
    has `"strict": True`, or if only one call is allowed: their form and, of strict tools, the
    arguments. With a constraint on the answer as well, the output is either calls alone, or the
    answer.

    Args:
        tools: the request's tools, in OpenAI's form.
        tool_choice: OpenAI's: "none", "auto", "required", or a dict that names a function, or
            the allowed ones with "auto" or "required" as their mode.
        parallel_tool_calls: allow more than one call.
        answer: the constraint on an answer in place of calls.
        reasoning_format: the format of the reasoning before the calls.
        starts_in_reasoning: the prompt ends within the reasoning.
        special_tokens: what `special_markers` returns.

    Returns:
        None where nothing is constrained.

    Raises:
        InvalidArgumentError: the choice is none of these or names no tool, a tool's parameters are
            no JSON schema of an object, or llguidance cannot compile the answer's constraint.
    """
    name = check_choice("tool_call_parser", tools_format, tuple(TOOLS))
    is_auto = _mode(tool_choice) == "auto"
    if not is_auto:
        answer = None
    elif answer is None and not constrains_calls(
        tool_choice,
        parallel_tool_calls=parallel_tool_calls,
        has_strict=any(map(_is_strict, tools)),
    ):
        return None
    functions = [_function(index, tool) for index, tool in enumerate(tools)]
    chosen = _chosen(functions, tool_choice)
    if not chosen:
        return None
    rules = Rules(special_tokens or {})
    calls = [_call(rules, name, each, is_auto and not each.get("strict")) for each in chosen]
    rules.add("call", " | ".join(calls))
    has_text = is_auto and answer is None
    is_named = _allowed(tool_choice) is None and not isinstance(tool_choice, str)
    is_parallel = parallel_tool_calls and not is_named
    body = _Composer(rules, TOOLS[name], is_parallel).body(name, has_text)
    if answer is not None:
        body = f"({body} | answer)"
    if reasoning_format is not None:
        format_name = check_choice("reasoning_parser", reasoning_format, tuple(REASONING))
        body = _with_reasoning(rules, format_name, body, starts_in_reasoning)
    answer_rules = "" if answer is None else _answer_rules(answer)
    return StructuredOutputsParams(grammar=f"start: {body}\n{rules.text()}{answer_rules}")


def after_reasoning(
    structure: StructuredOutputsParams,
    reasoning_format: str,
    *,
    starts_in_reasoning: bool,
    special_tokens: Mapping[str, int] | None = None,
) -> StructuredOutputsParams:
    """A constraint on the answer alone: reasoning before it is free.

    Args:
        structure: the constraint on the answer.
        reasoning_format: the format of the reasoning.
        starts_in_reasoning: the prompt ends within the reasoning.
        special_tokens: what `special_markers` returns.

    Raises:
        InvalidArgumentError: llguidance cannot compile the constraint.
    """
    name = check_choice("reasoning_parser", reasoning_format, tuple(REASONING))
    rules = Rules(special_tokens or {})
    body = _with_reasoning(rules, name, "answer", starts_in_reasoning)
    text = f"start: {body}\n{rules.text()}{_answer_rules(structure)}"
    return StructuredOutputsParams(grammar=text)


def _answer_rules(structure: StructuredOutputsParams) -> str:
    try:
        return structure.lark_rules("answer")
    except InvalidArgumentError as error:
        field = f"structured_outputs.{error.field}"
        raise InvalidArgumentError(field, error.value, error.expected) from None


def _is_strict(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return isinstance(function, Mapping) and function.get("strict") is True


def _function(index: int, tool: Any) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        expected = "a dict with 'type': 'function' and a 'function' that has a name"
        raise InvalidArgumentError(f"tools[{index}]", tool, expected)
    parameters = function.get("parameters")
    field = f"tools[{index}].function.parameters"
    schema = {"type": "object", **parameters} if isinstance(parameters, Mapping) else None
    if parameters is not None and (schema is None or schema["type"] != "object"):
        raise InvalidArgumentError(field, parameters, "a JSON schema of an object")
    schema = schema or {"type": "object"}
    # What a function does not name, it does not accept.
    if not {"additionalProperties", "unevaluatedProperties", "patternProperties"} & set(schema):
        schema["additionalProperties"] = False
    return {**function, "parameters": _without_dead_ends(field, schema)}


def _without_dead_ends(field: str, schema: Mapping[str, Any]) -> Any:
    try:
        return _reduced(json.dumps(schema, allow_nan=False))
    except InvalidArgumentError as error:
        raise InvalidArgumentError(field, error.value, error.expected) from None
    except (TypeError, ValueError, RecursionError) as error:
        expected = f"a JSON schema that JSON can write ({type(error).__name__}: {error})"
        raise InvalidArgumentError(field, "a dict that is no JSON", expected) from None


@functools.lru_cache(maxsize=256)  # conversations send the same tools again and again
def _reduced(text: str) -> Any:
    """A schema without what no text satisfies, which nothing may change."""
    from forerun.text.grammar_probes import accepts, schema_error

    schema = json.loads(text)
    check_depth(schema)
    reduced = without_dead_ends(schema, accepts)
    if why := schema_error(reduced):
        raise InvalidArgumentError("json", text, f"what llguidance can compile: {why}")
    return reduced


def _chosen(functions: list[Mapping[str, Any]], choice: Any) -> list[Mapping[str, Any]]:
    """The functions that may be called."""
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        return [] if choice == "none" else functions
    by_name: dict[str, Mapping[str, Any]] = {}
    for function in functions:
        by_name.setdefault(function["name"], function)
    names = dict.fromkeys(_names(choice))
    for name in names:
        if name not in by_name:
            listed = ", ".join(map(repr, by_name))
            raise InvalidArgumentError("tool_choice", name, f"one of the tools: {listed or 'none'}")
    return [by_name[name] for name in names]


def _allowed(choice: Any) -> Mapping[str, Any] | None:
    """The functions that a choice allows, with their mode; None for other kinds of choices."""
    if not isinstance(choice, Mapping) or choice.get("type") != "allowed_tools":
        return None
    allowed = choice.get("allowed_tools")
    return allowed if isinstance(allowed, Mapping) else {}


def _mode(choice: Any) -> Any:
    """Whether calls are demanded: "none", "auto", "required", or what is none of them."""
    allowed = _allowed(choice)
    if allowed is not None:
        return allowed.get("mode")
    return choice if isinstance(choice, str) else "required"


def _names(choice: Any) -> list[str]:
    """The functions that a choice names."""
    allowed = _allowed(choice)
    tools = [choice] if allowed is None else allowed.get("tools")
    is_valid = allowed is None or allowed.get("mode") in ("auto", "required")
    functions = [
        tool.get("function") if isinstance(tool, Mapping) else None
        for tool in (tools if isinstance(tools, list) else ())
    ]
    names = [each.get("name") if isinstance(each, Mapping) else None for each in functions]
    if not is_valid or not names or not all(isinstance(name, str) for name in names):
        raise InvalidArgumentError("tool_choice", choice, _CHOICES)
    return [str(name) for name in names]


def _call(rules: Rules, name: str, function: Mapping[str, Any], is_free: bool) -> str:
    """The rule for a call of one function, without what is around calls."""
    schema = {"type": "object"} if is_free else function["parameters"]
    called = function["name"]
    if not _NAME.fullmatch(called):
        raise InvalidArgumentError("tools", called, "names of letters, digits, '_', '-' and '.'")
    if name in ("gemma4", "functiongemma"):
        parts = [
            rules.literal(f"call:{called}"),
            gemma_object(rules, schema, TOOLS[name].markers[2]),
        ]
    elif name == "qwen3_coder":
        parts = [rules.literal(f"<function={called}>\n"), qwen_parameters(rules, schema)]
        parts.append(rules.literal("</function>"))
    elif name == "pythonic":
        parts = [rules.literal(f"{called}("), python_arguments(rules, schema), rules.literal(")")]
    elif name == "mistral" and "[ARGS]" in rules.special_tokens:
        parts = [rules.literal(called), rules.marker("[ARGS]"), rules.json(schema)]
    else:
        key = "parameters" if name == "llama3_json" else "arguments"
        start = '{"name": ' + rules.json_text(called) + f', "{key}": '
        # Split as JSON is: llguidance's lexer takes the longest literal, and would not find the
        # beginning of an answer in JSON.
        literals = re.findall(r'"[^"]*"|.', start) if name == "llama3_json" else [start]
        parts = [*map(rules.literal, literals), rules.json(schema), rules.literal("}")]
    return rules.add_new("call", " ".join(parts))


class _Composer:
    """Puts calls together as a format does."""

    def __init__(self, rules: Rules, tools_format: ToolFormat, is_parallel: bool) -> None:
        self._rules = rules
        self._format = tools_format
        self._is_parallel = is_parallel

    def _listed(self, separator: str) -> str:
        """One call, or several."""
        literal = self._rules.literal(separator)
        return f"call ({literal} call)*" if self._is_parallel else "call"

    def body(self, name: str, has_text: bool) -> str:
        rules, opening = self._rules, self._format.markers[0]
        if name in ("llama3_json", "pythonic"):
            # An answer that begins like a call is one.
            text = rules.add_new("TEXT", r"/([^{\[<; \t\r\n](.|\n)*)?/")
            calls = self._listed("; ")
            if name == "pythonic":
                calls = f"{rules.literal('[')} {self._listed(', ')} {rules.literal(']')}"
            return f"({calls} | {text})" if has_text else calls
        closing = self._format.markers[1]
        if name in ("gemma4", "functiongemma"):
            unit, separator = ["call", rules.marker(closing)], ""
        elif name == "smollm" or (name == "mistral" and "[ARGS]" not in rules.special_tokens):
            space = f"{rules.literal(' ')}?" if name == "mistral" else ""
            listed = [space, rules.literal("["), self._listed(", "), rules.literal("]")]
            unit, separator = listed + ([rules.marker(closing)] if name == "smollm" else []), None
        elif name == "mistral":
            unit, separator = ["call"], ""
        else:
            unit = [rules.literal("\n"), "call", rules.literal("\n"), rules.marker(closing)]
            separator = "\n"
        rules.add("unit", " ".join(unit))
        may_repeat = self._is_parallel and separator is not None
        if has_text:
            text, until = rules.text_until(opening)
            repeat = "*" if may_repeat else "?"
            return f"({until} unit){repeat} {text}"
        marked = f"{rules.marker(opening)} unit"
        return f"{marked} ({rules.literal(separator or '')} {marked})*" if may_repeat else marked


def _with_reasoning(rules: Rules, name: str, body: str, starts_inside: bool) -> str:
    opening, closing, _, _ = REASONING[name]
    _, until = rules.text_until(closing)
    newlines = rules.add_new("NEWLINES", r"/\n*/")
    rules.add("reasoning", f"{until} {newlines}")
    if starts_inside:
        return f"reasoning {body}"
    return f"({rules.marker(opening)} reasoning)? {body}"
