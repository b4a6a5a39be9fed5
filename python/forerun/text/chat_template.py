"""Renders Hugging Face chat templates in a sandbox."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forerun.errors import InvalidArgumentError
from forerun.text.chat_messages import detect_format
from forerun.util.checks import check_bool, check_str
from forerun.util.interrupts import pass_on_interrupt

if TYPE_CHECKING:
    from jinja2 import Environment, Template

# The trailing space tells whether the template trims what it is given.
_END_OF_MESSAGE = "<forerun end of message> "


# What `render` gives a template under these names cannot be given as a variable.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")


def render(
    template: str,
    messages: list[dict[str, Any]],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
) -> str:
    """The prompt for a conversation that `chat_messages.read_messages` read.

    With `continue_final_message` it ends inside the last message, for the model to continue.
    """
    check_bool("add_generation_prompt", add_generation_prompt)
    if check_bool("continue_final_message", continue_final_message):
        if add_generation_prompt:
            raise InvalidArgumentError(
                "add_generation_prompt", True, "False together with continue_final_message=True"
            )
        messages = [*messages[:-1], _mark_end(messages[-1])]
    compiled = _compile(template)
    try:
        text = compiled.render(
            {**variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
        )
    except Exception as error:  # of the template's own code
        pass_on_interrupt(error)
        raise InvalidArgumentError(
            "chat_template", f"{type(error).__name__}: {error}", "a template for these messages"
        ) from error
    check_str("chat_template", text)
    return _cut_at_end(text) if continue_final_message else text


@functools.lru_cache(maxsize=16)
def content_format(template: str) -> str:
    """Whether a template reads contents as text ("string") or as a list of parts ("openai")."""
    _compile(template)  # raises for an invalid template
    return detect_format(_environment().parse(template))


@functools.lru_cache(maxsize=16)
def reads_tools(template: str) -> bool:
    """Whether a template reads the tools that it is given."""
    from jinja2 import meta

    _compile(template)  # raises for an invalid template
    return "tools" in meta.find_undeclared_variables(_environment().parse(template))


def _mark_end(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _END_OF_MESSAGE}
    parts: list[Any] = content if isinstance(content, list) else []
    last = parts[-1] if parts else None
    if isinstance(last, dict) and isinstance(last.get("text"), str):
        last = {**last, "text": last["text"] + _END_OF_MESSAGE}
        return {**message, "content": [*parts[:-1], last]}
    raise InvalidArgumentError(
        "messages[-1]['content']", content, "text to go on from (continue_final_message=True)"
    )


def _cut_at_end(text: str) -> str:
    position = text.rfind(_END_OF_MESSAGE.strip())
    if position < 0:
        raise InvalidArgumentError(
            "continue_final_message", True, "False: the chat template drops the final message"
        )
    trimmed = not text.startswith(_END_OF_MESSAGE, position)
    return text[:position].rstrip() if trimmed else text[:position]


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    import jinja2

    try:
        return _environment().from_string(template)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        raise InvalidArgumentError("chat_template", str(error), "a valid Jinja template") from error


@functools.cache
def _environment() -> Environment:
    """The environment that transformers gives chat templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is transparent."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
