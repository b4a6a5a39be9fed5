"""The prompts of conversations."""

from __future__ import annotations

from typing import Any

from forerun.server.protocol import ChatRequest, TokenizeRequest
from forerun.server.serving import Serving


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
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    continues = bool(body.continue_final_message)
    given = body.add_generation_prompt
    return serving.llm.render_chat(
        messages,
        chat_template=serving.settings.chat_template,
        add_generation_prompt=not continues if given is None else given,
        continue_final_message=continues,
        tools=tools or None,
        documents=body.documents,
        chat_template_kwargs=variables,
    )["prompt_token_ids"]
