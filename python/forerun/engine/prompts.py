"""What callers may give as prompts and conversations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from forerun import _core
from forerun.errors import InvalidArgumentError
from forerun.outputs import TextPrompt, TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.util.checks import (
    Problems,
    check_dict,
    check_int,
    check_list,
    check_name,
    check_number,
    check_str,
    is_integral,
)
from forerun.vllm_fields import field_problems

if TYPE_CHECKING:
    from collections.abc import Callable

Prompt = str | TextPrompt | TokensPrompt | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
_EXPECTED = "a string, token ids, or a dict of either"
_MAX_SALT_LEN = 512  # it is stored with every output of a suffix memory


class ParsedPrompt(NamedTuple):
    """A prompt as the engine takes it."""

    text: str | None
    token_ids: list[int]
    cache_salt: str = ""
    prediction: _core.Prediction | None = None


def prompt_list(prompts: Any) -> list[Any]:
    """One prompt or many, as a list; a flat list of ids is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    items = check_list("prompts", prompts, "a prompt or a list of prompts")
    flat = bool(items) and (is_integral(items[0]) or not isinstance(items[0], Iterable))
    return [items] if flat else items


def conversation_list(messages: Any) -> list[Messages]:
    """One conversation or many, as a list."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        return [messages]  # type: ignore[list-item]  # refused where it is read
    expected = "a conversation, or a list of conversations"
    items: list[Any] = check_list("messages", messages, expected)
    return items if items and isinstance(items[0], Sequence) else [items]


def parse_prompt(where: str, item: Any, encode: Callable[..., list[int]]) -> ParsedPrompt:
    """A prompt's token ids: its own, or those of its text.

    Raises InvalidArgumentError; `where` names the prompt.

    Args:
        encode: Tokenizer.encode.
    """
    text, token_ids, salt, predicted = item, None, "", None
    if isinstance(item, Mapping):
        fields = check_dict(where, item, _EXPECTED)
        problems = Problems()
        for problem in field_problems("prompt", fields):
            field = f"{where}: {problem.field}"
            problems.errors.append(InvalidArgumentError(field, problem.value, problem.expected))
        text, token_ids = fields.get("prompt"), fields.get("prompt_token_ids")
        if fields.get("cache_salt") is not None:
            with problems:
                salt = _cache_salt(f"{where}: cache_salt", fields["cache_salt"])
        predicted = fields.get("prediction")
        if text is None and token_ids is None:
            expected = "the key 'prompt' or 'prompt_token_ids'"
            problems.errors.append(InvalidArgumentError(where, list(fields), expected))
        problems.raise_all()
    elif not isinstance(item, str):
        text, token_ids = None, check_list(where, item, _EXPECTED)
    if text is not None:
        text = check_str(where, text)
    prediction = _prediction(f"{where}: prediction", predicted, encode)
    if token_ids is None:
        assert text is not None
        return ParsedPrompt(text, encode(text), salt, prediction)
    items = check_list(where, token_ids, _EXPECTED)
    ids = [check_int(f"{where}.prompt_token_ids", token) for token in items]
    return ParsedPrompt(text, ids, salt, prediction)


def _prediction(
    where: str, value: Any, encode: Callable[..., list[int]]
) -> _core.Prediction | None:
    """A predicted output; None without a token."""
    if value is None:
        return None
    if isinstance(value, str):
        ids = encode(check_str(where, value), add_special_tokens=False)
    else:
        items = check_list(where, value, "a string or token ids")
        ids = [check_int(where, token) for token in items]
    return _core.Prediction(ids) if ids else None


def _cache_salt(field: str, value: Any) -> str:
    salt = check_name(field, value)
    if len(salt) > _MAX_SALT_LEN:
        expected = f"at most {_MAX_SALT_LEN} characters"
        raise InvalidArgumentError(field, f"{len(salt)} characters", expected)
    return salt


def priority_list(priority: Any, count: int) -> list[int]:
    """A priority for each of `count` prompts, from one for all, one for each, or None."""
    if priority is None or isinstance(priority, int):
        return [0 if priority is None else check_int("priority", priority)] * count
    expected = "an integer, or a list of one for each prompt"
    given = [check_int("priority", item) for item in check_list("priority", priority, expected)]
    if len(given) != count:
        raise InvalidArgumentError("priority", f"{len(given)} of them", f"{count}")
    return given


def deadline_after(timeout: Any) -> _core.Deadline | None:
    """So many seconds from now on, or a deadline as it is; None: never."""
    if timeout is None or isinstance(timeout, _core.Deadline):
        return timeout
    seconds = check_number("timeout", timeout)
    if not seconds > 0:
        raise InvalidArgumentError("timeout", timeout, "seconds above 0, or None")
    return _core.Deadline(seconds)


def params_list(
    params: Any, count: int, default: Callable[[], SamplingParams]
) -> list[SamplingParams]:
    """Parameters for each of `count` prompts, from one for all, one for each, or None.

    Copies, checked again: what the caller changes later has no effect.
    """
    params = default() if params is None else params
    if isinstance(params, SamplingParams):
        return [params.clone()] * count
    expected = "SamplingParams, a list of them, one per prompt, or None"
    given = check_list("sampling_params", params, expected)
    for param in given:
        if not isinstance(param, SamplingParams):
            raise InvalidArgumentError("sampling_params", param, expected)
    if len(given) != count:
        raise InvalidArgumentError("sampling_params", f"{len(given)} of them", f"{count}")
    return [param.clone() for param in given]
