"""What /openapi.json says of the parameters of a request."""

from __future__ import annotations

from typing import Any

from forerun.server.parameters import CHAT, COMPLETION
from forerun.vllm_fields.field import Field, Fields, Kind
from forerun.vllm_fields.requests import SAMPLING_PARAMS

_OWN = {
    "add_generation_prompt": "The prompt ends where the model's message begins; the default.",
    "add_special_tokens": "Those that the tokenizer puts around a text; the default.",
    "allowed_tools": "The only functions that may be called.",
    "cache_salt": "Only requests with the same one share cached prefixes and past outputs.",
    "chat_template_kwargs": "Variables of the chat template, such as enable_thinking.",
    "content": "A text, or parts of type text.",
    "continue_final_message": "The model continues the last message instead of answering it.",
    "description": "What the model is told of it.",
    "documents": "Passed to the chat template.",
    "echo": "The texts begin with the prompt.",
    "function": "The function.",
    "guided_choice": "The text is one of these.",
    "guided_grammar": "The text follows a grammar in Lark's or GBNF's notation.",
    "guided_json": "The text is JSON of this schema.",
    "guided_json_object": "The text is a JSON object.",
    "guided_regex": "The text matches this expression.",
    "guided_whitespace_pattern": "The whitespace of guided_json, as an expression.",
    "include_reasoning": "False leaves reasoning out of the answer.",
    "json_schema": "With type=json_schema: the schema.",
    "logprobs": "Log-probabilities: of a chat, whether they are reported; of a completion, of how "
    "many most probable tokens beside the sampled one.",
    "max_completion_tokens": "The most tokens to generate, reasoning too.",
    "max_tokens": "The most tokens to generate.",
    "messages": "The conversation so far: role, content (a text or parts of type text), and what "
    "the chat template reads besides.",
    "mode": "required: one of the functions has to be called.",
    "model": "One of the names in /v1/models.",
    "name": "Its name.",
    "parallel_tool_calls": "False: at most one call in an answer, where a grammar forces calls.",
    "parameters": "A JSON schema of its arguments.",
    "prediction": "A text that is probably the answer, from which tokens are drafted.",
    "priority": "Lower values run first; needs --scheduling-policy priority.",
    "prompt": "A text or token ids, or several of either.",
    "reasoning_effort": "A variable of the chat template.",
    "request_id": "Names the answer; the default is the X-Request-Id.",
    "response_format": "What the text must be.",
    "return_token_ids": "The answer has the token ids of prompt and output.",
    "return_token_strs": "The answer has the tokens as the tokenizer has them, too.",
    "return_tokens_as_token_ids": "Log-probabilities name tokens as token_id:N.",
    "schema": "The schema.",
    "stream": "The answer comes as server-sent events, one for each token.",
    "stream_options": "What a stream reports besides.",
    "strict": "Of a tool: its calls follow the schema. A response_format always does.",
    "structured_outputs": "What the text must be: json, regex, choice, grammar or json_object.",
    "tokens": "Token ids.",
    "tool_choice": "Whether tools are called: none, auto, required, this one, or only these.",
    "tools": "Functions that the model may call.",
    "top_logprobs": "With logprobs: of how many most probable tokens.",
    "type": "What kind it is.",
    "vllm_xargs": "Read by logits processors of the server.",
}
_WITHOUT_FIELD: dict[str, Fields] = {"ChatRequest": CHAT, "CompletionRequest": COMPLETION}


def describe(schema: dict[str, Any], model: type) -> None:
    """Adds descriptions to the schema of a body, and the parameters that it has no field for."""
    for name, found in schema.get("properties", {}).items():
        if name in _OWN:
            found.setdefault("description", _OWN[name])
        elif name in SAMPLING_PARAMS:
            found.setdefault("description", SAMPLING_PARAMS[name].note)
    for name, field in _WITHOUT_FIELD.get(model.__name__, {}).items():
        schema["properties"].setdefault(name, _neutral(field))


def _neutral(field: Field) -> dict[str, Any]:
    if field.kind is Kind.FIXED:
        return {"enum": [field.default, *field.also], "description": f"{field.note}."}
    return {"description": f"Without effect: {field.note}."}
