"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.server.params import under_names
from forerun.server.prompts import chat_prompt
from forerun.server.protocol import DetokenizeRequest, TokenizeRequest
from forerun.server.serving import Serving


def tokenize(serving: Serving, body: TokenizeRequest) -> dict[str, Any]:
    """The token ids of a prompt or of a conversation."""
    serving.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidArgumentError("prompt", body.prompt, "either prompt or messages")
    if body.prompt is not None:
        adds_special = body.add_special_tokens is not False
        with under_names({"text": "prompt"}):
            tokens = serving.tokenizer.encode(body.prompt, add_special_tokens=adds_special)
    else:
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        tokens = chat_prompt(serving, body, tools)
    found = {
        "count": len(tokens),
        "max_model_len": serving.llm.limits.max_model_len,
        "tokens": tokens,
    }
    if body.return_token_strs:
        found["token_strs"] = serving.tokenizer.convert_ids_to_tokens(tokens)
    return found


def detokenize(serving: Serving, body: DetokenizeRequest) -> dict[str, Any]:
    """The text of token ids."""
    serving.check_model(body.model)
    serving.check_tokens("tokens", body.tokens)
    return {"prompt": serving.tokenizer.decode(body.tokens)}
