"""Renders Hugging Face chat templates in a sandbox."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from forerun.errors import InvalidArgumentError

if TYPE_CHECKING:
    from jinja2 import Template

# The trailing space tells whether the template trims what it is given.
_END_OF_MESSAGE = "<forerun end of message> "


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    **variables: Any,
) -> str:
    """The prompt for a conversation.

    With `continue_final_message` it ends inside the last message, for the model to go on.
    """
    check_messages(messages)
    if continue_final_message:
        if add_generation_prompt:
            raise InvalidArgumentError(
                "add_generation_prompt", True, "False together with continue_final_message=True"
            )
        messages = [*messages[:-1], _mark_end(messages[-1])]
    compiled = _compile(template)
    try:
        text = compiled.render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **variables
        )
    except Exception as error:  # whatever the template's own code runs into
        raise InvalidArgumentError(
            "chat_template", f"{type(error).__name__}: {error}", "a template for these messages"
        ) from error
    return _cut_at_end(text) if continue_final_message else text


def check_messages(messages: Any) -> None:
    """Raises InvalidArgumentError unless the value is a list of messages."""
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str) and len(messages) > 0
    if not is_list or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise InvalidArgumentError(
            "messages", messages, "a list of dicts with the keys 'role' and 'content'"
        )


def _mark_end(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _END_OF_MESSAGE}
    if isinstance(content, Sequence) and content and isinstance(content[-1].get("text"), str):
        last = {**content[-1], "text": content[-1]["text"] + _END_OF_MESSAGE}
        return {**message, "content": [*content[:-1], last]}
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

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidArgumentError("chat_template", str(error), "a valid Jinja template") from error
