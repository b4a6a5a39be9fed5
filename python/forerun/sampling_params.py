"""What a request asks for, under vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forerun import _core
from forerun.checks import (
    check_bool,
    check_int,
    check_number,
    check_one_of,
    check_str,
    checked_keywords,
)
from forerun.errors import InvalidArgumentError

# vLLM's options that are not supported yet, with the value that asks for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0.0, 0),
    "frequency_penalty": (0.0, 0),
    "repetition_penalty": (1.0, 1),
    "logprobs": (None,),
    "prompt_logprobs": (None,),
    "logit_bias": (None,),
    "bad_words": (None,),
    "allowed_token_ids": (None,),
    "skip_special_tokens": (True,),
    "detokenize": (True,),
}


@checked_keywords
@dataclass(kw_only=True)
class SamplingParams:
    """What one request asks for. Wrong values raise InvalidArgumentError at once.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 or -1 keeps all.
        top_p: keep the most probable tokens that together reach this probability.
        min_p: drop tokens below this fraction of the most probable token's probability.
        seed: makes sampling repeatable; the same seed gives the same tokens with and without
            speculation. None derives one from the engine's seed and the request.
        max_tokens: the most tokens to generate; None is up to the model's length.
        min_tokens: end-of-sequence and stop tokens cannot appear before this many.
        stop: strings that end the text; they are cut off unless include_stop_str_in_output.
        stop_token_ids: tokens that end the text, besides the model's own.
        ignore_eos: go on beyond the model's end-of-sequence tokens.
        speculative: False decodes this request without drafts.
        max_draft_tokens: the most tokens drafted for this request in one step.

    The rest are vLLM's names for what is not supported yet; only their neutral values are valid.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    speculative: bool = True
    max_draft_tokens: int | None = None

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        """Checks every field."""
        self._to_core(max_model_len=2**31 - 1)

    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None or isinstance(self.stop, str):
            return [] if self.stop is None else [self.stop]
        if not isinstance(self.stop, Sequence):
            raise InvalidArgumentError("stop", self.stop, "a string or a list of strings")
        return [check_str("stop", stop) for stop in self.stop]

    def _to_core(self, max_model_len: int) -> _core.SamplingParams:
        for name, neutral in _NEUTRAL.items():
            check_one_of(name, getattr(self, name), neutral, "anything else is not supported yet")
        core = _core.SamplingParams()
        core.temperature = check_number("temperature", self.temperature)
        core.top_k = check_int("top_k", self.top_k)
        core.top_p = check_number("top_p", self.top_p)
        core.min_p = check_number("min_p", self.min_p)
        if self.seed is not None:
            core.seed = check_int("seed", self.seed, least=0, most=2**64 - 1)
        core.max_tokens = (
            max_model_len if self.max_tokens is None else check_int("max_tokens", self.max_tokens)
        )
        core.min_tokens = check_int("min_tokens", self.min_tokens)
        core.stop = self.stop_strings()
        core.stop_token_ids = self._stop_token_ids()
        for name in ("ignore_eos", "include_stop_str_in_output", "speculative"):
            setattr(core, name, check_bool(name, getattr(self, name)))
        if self.max_draft_tokens is not None:
            core.max_draft_tokens = check_int("max_draft_tokens", self.max_draft_tokens)
        _core.check_sampling_params(core)
        return core

    def _stop_token_ids(self) -> list[int]:
        if self.stop_token_ids is None:
            return []
        if isinstance(self.stop_token_ids, str) or not hasattr(self.stop_token_ids, "__iter__"):
            raise InvalidArgumentError("stop_token_ids", self.stop_token_ids, "a list of token ids")
        return [check_int("stop_token_ids", token) for token in self.stop_token_ids]
