"""The prompts of conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.server.params import under_names
from forerun.server.protocol import ChatRequest, TokenizeRequest
from forerun.server.serving import Serving

_KEY = re.compile(r"""\[(?:'([^']*)'|"([^"]*)")\]""")


def chat_prompt(
    serving: Serving, body: ChatRequest | TokenizeRequest, tools: list[dict[str, Any]]
) -> list[int]:
    """The token ids of a body's messages, with these tools, as the chat template has them."""
    template = serving.tokenizer.get_chat_template(serving.settings.chat_template, tools or None)
    messages = body.messages or []
    if "developer" not in template:  # a role newer than most templates, and the same
        messages = [
            {**message, "role": "system"} if message.get("role") == "developer" else message
            for message in messages
        ]
    given_variables = body.chat_template_kwargs or {}
    variables = {**serving.settings.default_chat_template_kwargs, **given_variables}
    names = {}
    if body.reasoning_effort is not None and "reasoning_effort" not in given_variables:
        variables["reasoning_effort"] = body.reasoning_effort
        names["chat_template_kwargs.reasoning_effort"] = "reasoning_effort"
    continues = bool(body.continue_final_message)
    given = body.add_generation_prompt
    with under_names(names), _as_paths():
        return serving.llm.render_chat(
            messages,
            chat_template=serving.settings.chat_template,
            add_generation_prompt=not continues if given is None else given,
            continue_final_message=continues,
            tools=tools or None,
            documents=body.documents,
            chat_template_kwargs=variables,
        )["prompt_token_ids"]


@contextmanager
def _as_paths() -> Iterator[None]:
    """Errors in the block name fields as paths in JSON, and not as Python's expressions."""
    try:
        yield
    except InvalidArgumentError as error:
        problems = [
            InvalidArgumentError(_path(each.field), each.value, each.expected)
            for each in error.problems
        ]
        raise InvalidArgumentError.of_all(problems) from None


def _path(field: str) -> str:
    """`messages[0].content` for `messages[0]['content']`; a key that is wrong is its object."""
    return _KEY.sub(lambda match: f".{match[1] or match[2] or ''}", field.removesuffix(" key"))
