"""Parameters of OpenAI's and vLLM's requests that have one meaning here, or no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.util.checks import Problems
from forerun.vllm_fields.field import Field, Fields, all_fixed, fixed, no_effect

_TEXT_ONLY = "models read and write text"
_NOT_STORED = "answers are not stored"

_BOTH: dict[str, Field] = {
    "use_beam_search": fixed(False, "search with LLM.beam_search"),
    "length_penalty": fixed(1.0, "it is a parameter of beam search"),
    "truncate_prompt_tokens": fixed(None, "prompts are not cut"),
    "logits_processors": fixed(None, "a server runs no code of its clients"),
    "kv_transfer_params": fixed(None, "there is no cache elsewhere"),
    "repetition_detection": fixed(None, "repetitions end no text; see repetition_penalty"),
    "thinking_token_budget": fixed(None, "reasoning is limited by max_tokens alone", -1),
    **no_effect("texts are made of the tokens' own bytes", spaces_between_special_tokens=True),
    **no_effect(
        "nothing here depends on it",
        user=None,
        safety_identifier=None,
        prompt_cache_key=None,
        prompt_cache_retention=None,
        guided_decoding_backend=None,
    ),
}
CHAT: Fields = {
    **_BOTH,
    **all_fixed("give tools and tool_choice", functions=None, function_call=None),
    **all_fixed(_TEXT_ONLY, audio=None),
    "modalities": fixed(None, _TEXT_ONLY, ["text"]),
    **all_fixed("the server looks nothing up", web_search_options=None),
    "store": fixed(None, _NOT_STORED, False),
    "service_tier": fixed(None, "all requests are served alike; see priority", "auto", "default"),
    "verbosity": fixed(None, "ask for it in a message", "medium"),
    "chat_template": fixed(None, "the server's own: forerun serve --chat-template"),
    "echo": fixed(False, "answers do not repeat the last message"),
    "add_special_tokens": fixed(False, "the chat template writes the special tokens"),
    **no_effect(_NOT_STORED, metadata=None),
    **no_effect(_TEXT_ONLY, mm_processor_kwargs=None, media_io_kwargs=None),
}
COMPLETION: Fields = {
    **_BOTH,
    "prediction": fixed(None, "chats have it: /v1/chat/completions"),
    "best_of": fixed(None, "all n completions are returned", 1),
    "suffix": fixed(None, "texts are continued, not filled in", ""),
    "prompt_embeds": fixed(None, "prompts are text or token ids"),
}


def without_neutral(fields: Fields, given: Any) -> Any:
    """A body without the parameters that have one meaning here.

    Raises:
        InvalidArgumentError: one of them asks for something else.
    """
    if not isinstance(given, Mapping):
        return given
    problems = Problems()
    problems.errors = [
        InvalidArgumentError(name, value, fields[name].expected())
        for name, value in given.items()
        if name in fields and not fields[name].accepts(value)
    ]
    problems.raise_all()
    return {name: value for name, value in given.items() if name not in fields}
