"""What a request asks for, under vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forerun import _core
from forerun.checks import (
    check_bool,
    check_int,
    check_number,
    check_str,
    checked_keywords,
)
from forerun.errors import InvalidArgumentError
from forerun.logits_processors import LogitsProcessor, check_processors
from forerun.structured_outputs import StructuredOutputsParams

_MAX_N = 16384  # as in vLLM
_PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")
_SWITCHES = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "speculative")


@checked_keywords
@dataclass(kw_only=True)
class SamplingParams:
    """What one request asks for. Wrong values raise InvalidArgumentError at once.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 or -1 keeps all.
        top_p: keep the most probable tokens that together reach this probability.
        min_p: drop tokens below this fraction of the most probable token's probability.
        n: how many completions to sample for the prompt.
        seed: makes sampling repeatable; the same seed gives the same tokens with and without
            speculation. None derives one from the engine's seed and the request. Completion i of n
            takes seed + i.
        max_tokens: the most tokens to generate; None is up to the model's length.
        min_tokens: end-of-sequence and stop tokens cannot appear before this many.
        stop: strings that end the text; they are cut off unless include_stop_str_in_output. They
            may name special tokens, as "<|im_end|>", also where skip_special_tokens omits those.
        stop_token_ids: tokens that end the text, besides the model's own.
        ignore_eos: go on beyond the model's end-of-sequence tokens.
        allowed_token_ids: nothing else can be sampled.
        bad_words: words that cannot be written, neither at the beginning of a text nor behind a
            space: the last token of each is ruled out where the ones before it have been sampled.
        logit_bias: numbers from -100 to 100 that are added to tokens' logits.
        repetition_penalty: divides positive logits and multiplies negative ones of tokens in the
            prompt or the output; above 0, and 1 is off.
        frequency_penalty: subtracted from a token's logit for each time the output has it; from -2
            to 2.
        presence_penalty: subtracted once from the logit of every token in the output; from -2 to 2.
        logprobs: how many most probable tokens to report at each position, besides the sampled one;
            -1 reports the whole vocabulary. Of the model's own logits, before all of the above.
        prompt_logprobs: the same for the tokens of the prompt.
        structured_outputs: what the text must be, as StructuredOutputsParams or a dict of its
            fields.
        logits_processors: functions of (output_token_ids, logits), called one after the other for
            every token. Each changes the logits, a float32 array, in place or returns others. They
            see drafted tokens as output and may be called again for a position, so they must depend
            on what they are given alone. Slow.
        skip_special_tokens: leave special tokens out of the text.
        detokenize: False leaves texts empty.
        speculative: False decodes this request without drafts.
        max_draft_tokens: the most tokens drafted for this request in one step.
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
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    logits_processors: Sequence[LogitsProcessor] | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        """Checks every field."""
        self._check_shape()
        self._to_core(max_model_len=2**31 - 1)

    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, Sequence):
            raise InvalidArgumentError("stop", self.stop, "a string or a list of strings")
        return [check_str("stop", stop) for stop in stops]

    def _check_shape(self) -> None:
        """Checks what the engine does not see."""
        check_int("n", self.n, least=1, most=_MAX_N)
        if self.n > 1 and self.temperature == 0:
            raise InvalidArgumentError("n", self.n, "1 with temperature=0: all would be the same")
        check_bool("detokenize", self.detokenize)
        if not self.detokenize and self.stop_strings():
            raise InvalidArgumentError("detokenize", False, "True where there are stop strings")
        if isinstance(self.structured_outputs, Mapping):
            self.structured_outputs = StructuredOutputsParams(**self.structured_outputs)
        elif not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise InvalidArgumentError(
                "structured_outputs",
                self.structured_outputs,
                "StructuredOutputsParams, a dict of its fields, or None",
            )
        if self.logits_processors is not None:
            check_processors(self.logits_processors)
        if self.bad_words is None:
            return
        if isinstance(self.bad_words, str) or not isinstance(self.bad_words, Sequence):
            raise InvalidArgumentError("bad_words", self.bad_words, "a list of strings")
        for word in self.bad_words:
            if not check_str("bad_words", word).strip():
                raise InvalidArgumentError("bad_words", word, "words of at least one character")

    def _to_core(
        self, max_model_len: int, completion: int = 0, bad_words: Sequence[list[int]] = ()
    ) -> _core.SamplingParams:
        """What the engine is asked for one of the completions."""
        core = _core.SamplingParams()
        for name in ("temperature", "top_p", "min_p", *_PENALTIES):
            setattr(core, name, check_number(name, getattr(self, name)))
        core.top_k = check_int("top_k", self.top_k)
        if self.seed is not None:
            seed = check_int("seed", self.seed, least=0, most=2**64 - 1)
            core.seed = (seed + completion) % 2**64
        core.max_tokens = (
            max_model_len if self.max_tokens is None else check_int("max_tokens", self.max_tokens)
        )
        core.min_tokens = check_int("min_tokens", self.min_tokens)
        core.stop = self.stop_strings()
        if self.stop_token_ids is not None:
            core.stop_token_ids = _token_ids("stop_token_ids", self.stop_token_ids)
        if self.allowed_token_ids is not None:
            core.allowed_token_ids = _token_ids("allowed_token_ids", self.allowed_token_ids)
        core.logit_bias = self._logit_bias()
        core.bad_words = list(bad_words)
        for name in _SWITCHES:
            setattr(core, name, check_bool(name, getattr(self, name)))
        for name in ("max_draft_tokens", "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                setattr(core, name, check_int(name, getattr(self, name)))
        if completion > 0:
            core.prompt_logprobs = None  # the first completion reports them
        _core.check_sampling_params(core)
        return core

    def _logit_bias(self) -> dict[Any, float]:
        if self.logit_bias is None:
            return {}
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidArgumentError("logit_bias", self.logit_bias, "a dict of id: number")
        return {
            check_int("logit_bias", token): check_number("logit_bias", bias)
            for token, bias in self.logit_bias.items()
        }


def _token_ids(field: str, tokens: Any) -> list[int]:
    if isinstance(tokens, str | bytes) or not hasattr(tokens, "__iter__"):
        raise InvalidArgumentError(field, tokens, "a list of token ids")
    return [check_int(field, token) for token in tokens]
