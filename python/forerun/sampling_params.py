"""What a request asks for, under vLLM's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

from forerun import _core
from forerun.errors import InvalidArgumentError
from forerun.util.checks import (
    Problems,
    check_bool,
    check_core,
    check_dict,
    check_ids,
    check_int,
    check_list,
    check_number,
    check_str,
    copied,
)
from forerun.vllm_fields.arguments import checked_arguments, checked_keywords

if TYPE_CHECKING:
    from forerun.logits_processors import RequestLogitsProcessor
    from forerun.text.structured_outputs import StructuredOutputsParams

_MAX_N = 16384  # as in vLLM
_MAX_LOGPROB_TOKEN_IDS = 128  # as in vLLM
# How many strings, and how many bytes all of them together. Every token is compared with them.
_MAX_STOPS = (64, 4096)
_MAX_BAD_WORDS = (1024, 32768)


class RequestOutputKind(Enum):
    """What each output of a running request holds."""

    CUMULATIVE = 0  # everything so far
    DELTA = 1  # what is new
    FINAL_ONLY = 2  # everything, once the request has finished


class SamplingType(IntEnum):
    """How tokens are chosen."""

    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


def _seed(field: str, value: Any) -> int | None:
    seed = check_int(field, value, least=-1, most=2**64 - 1)
    return None if seed == -1 else seed


def _num_logprobs(field: str, value: Any) -> int | None:
    if value is True or value is False:
        return 1 if value else None
    return check_int(field, value)


def _stops(field: str, value: Any) -> str | list[str]:
    if isinstance(value, str):
        return _bounded(field, [check_str(field, value)], _MAX_STOPS)[0]
    stops = check_list(field, value, "a string or a list of strings")
    return _bounded(field, [check_str(field, stop) for stop in stops], _MAX_STOPS)


def _bounded(field: str, texts: list[str], most: tuple[int, int]) -> list[str]:
    if len(texts) > most[0]:
        raise InvalidArgumentError(field, f"{len(texts)} strings", f"at most {most[0]}")
    num_bytes = sum(len(text.encode()) for text in texts)
    if num_bytes > most[1]:
        raise InvalidArgumentError(field, f"{num_bytes} bytes", f"at most {most[1]} in all")
    return texts


def _logit_bias(field: str, value: Any) -> dict[int, float]:
    biases = {}
    for token, bias in check_dict(field, value, "a dict of id: number").items():
        is_text = isinstance(token, str) and token.isascii() and token.isdigit()
        number = check_int(field, int(token[:20]) if is_text else token, least=0)
        biases[number] = check_number(field, bias)
    return biases


def _bad_words(field: str, value: Any) -> list[str]:
    words = check_list(field, value, "a list of strings")
    for word in words:
        if not check_str(field, word).strip():
            raise InvalidArgumentError(field, word, "words of at least one character")
    return _bounded(field, words, _MAX_BAD_WORDS)


def _scored_ids(field: str, value: Any) -> list[int]:
    tokens = check_ids(field, value)
    if not 0 < len(tokens) <= _MAX_LOGPROB_TOKEN_IDS:
        raise InvalidArgumentError(field, f"{len(tokens)} ids", f"1 to {_MAX_LOGPROB_TOKEN_IDS}")
    return tokens


def _structure(field: str, value: Any) -> StructuredOutputsParams:
    from forerun.text.structured_outputs import StructuredOutputsParams

    if isinstance(value, StructuredOutputsParams):
        return replace(value)
    expected = "StructuredOutputsParams, a dict of its fields, or None"
    given = check_dict(field, value, expected)
    for name in given:
        if not isinstance(name, str):
            raise InvalidArgumentError(field, name, expected)
    return StructuredOutputsParams(**given)


def _processors(field: str, value: Any) -> list[RequestLogitsProcessor]:
    from forerun.logits_processors import check_processors

    return check_processors(field, value)


def _output_kind(field: str, value: Any) -> RequestOutputKind:
    if not isinstance(value, RequestOutputKind):
        raise InvalidArgumentError(field, value, "a RequestOutputKind")
    return value


def _extra_args(field: str, value: Any) -> dict[str, Any]:
    given = check_dict(field, value, "a dict")
    return {check_str(field, name): copied(field, item) for name, item in given.items()}


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), check_number),
    **dict.fromkeys(("repetition_penalty", "frequency_penalty", "presence_penalty"), check_number),
    **dict.fromkeys(("top_k", "max_tokens", "min_tokens", "max_draft_tokens"), check_int),
    **dict.fromkeys(("ignore_eos", "include_stop_str_in_output"), check_bool),
    **dict.fromkeys(("skip_special_tokens", "detokenize"), check_bool),
    **dict.fromkeys(("speculative", "flat_logprobs"), check_bool),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids"), check_ids),
    **dict.fromkeys(("logprobs", "prompt_logprobs"), _num_logprobs),
    "n": lambda field, value: check_int(field, value, least=1, most=_MAX_N),
    "seed": _seed,
    "stop": _stops,
    "logit_bias": _logit_bias,
    "bad_words": _bad_words,
    "structured_outputs": _structure,
    "logits_processors": _processors,
    "logprob_token_ids": _scored_ids,
    "output_kind": _output_kind,
    "extra_args": _extra_args,
}
# Fields that the engine has under the same name, in the same form.
_CORE_FIELDS = (
    *("temperature", "top_k", "top_p", "min_p", "min_tokens", "ignore_eos", "speculative"),
    *("include_stop_str_in_output", "skip_special_tokens", "stop_token_ids", "logit_bias"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "allowed_token_ids"),
    *("max_draft_tokens", "logprobs", "prompt_logprobs", "logprob_token_ids"),
)


@checked_keywords
@dataclass(kw_only=True)
class SamplingParams:
    """What one request asks for. Wrong values raise InvalidArgumentError at once.

    An LLM copies what it is given and checks it again: what is changed later has no effect on
    requests that were submitted.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 or -1 keeps all.
        top_p: keep the most probable tokens that together reach this probability.
        min_p: drop tokens below this fraction of the most probable token's probability.
        n: how many completions to sample for the prompt.
        seed: makes sampling repeatable; the same seed gives the same tokens with and without
            speculation. None derives one from the engine's seed and the request. Completion i of n
            takes seed + i. -1 is None.
        max_tokens: the most tokens to generate; None is up to the model's length.
        min_tokens: end-of-sequence and stop tokens cannot appear before this many.
        stop: strings that end the text; they are cut off unless include_stop_str_in_output. They
            may name special tokens, as "<|im_end|>", also where skip_special_tokens omits those. At
            most 64, of 4,096 bytes in all.
        stop_token_ids: tokens that end the text, besides the model's own.
        ignore_eos: go on beyond the model's end-of-sequence tokens.
        allowed_token_ids: nothing else can be sampled.
        bad_words: words that cannot be written, neither at the beginning of a text nor after a
            space: the last token of each is ruled out where the ones before it have been sampled.
            At most 1,024, of 32,768 bytes in all.
        logit_bias: numbers from -100 to 100 that are added to tokens' logits; ids may be text.
        repetition_penalty: divides positive logits and multiplies negative ones of tokens in the
            prompt or the output; above 0, and 1 is off.
        frequency_penalty: subtracted from a token's logit for each time the output has it; from -2
            to 2.
        presence_penalty: subtracted once from the logit of every token in the output; from -2 to 2.
        logprobs: how many most probable tokens to report at each position, besides the sampled one;
            -1 reports the whole vocabulary. Of the model's own logits, before all of the above.
            True is 1.
        prompt_logprobs: the same for the tokens of the prompt.
        logprob_token_ids: report these tokens at each position, besides the sampled one,
            instead of the most probable ones.
        flat_logprobs: without effect: FlatLogprobs, which reads as a list of dicts, is what
            log-probabilities always come in.
        output_kind: what each output of LLMEngine.step holds.
        extra_args: anything, for logits processors of the engine to read.
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
    logprob_token_ids: Sequence[int] | None = None
    flat_logprobs: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    logits_processors: Sequence[RequestLogitsProcessor] | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True
    extra_args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Checks every field; lists, dicts and generators become lists and dicts of its own."""
        problems = Problems()
        for field in fields(self):
            value = getattr(self, field.name)
            if (value is None and field.default is None) or (
                field.name == "max_tokens" and value is None
            ):
                continue
            setattr(self, field.name, field.default)  # stays, where the value is wrong
            with problems:
                setattr(self, field.name, _CHECKS[field.name](field.name, value))
        with problems:
            if self.n > 1 and self.temperature == 0:
                raise InvalidArgumentError(
                    "n", self.n, "1 with temperature=0: all would be the same"
                )
        with problems:
            if not self.detokenize and self.stop_strings():
                raise InvalidArgumentError("detokenize", False, "True where there are stop strings")
        core = self._core(max_model_len=2**31 - 1)
        check_core(
            problems, lambda: _core.check_sampling_params(core), lambda name: _reset(core, name)
        )
        problems.raise_all()

    @checked_arguments
    def clone(self) -> SamplingParams:
        """A checked copy, lists and dicts included; logits processors are shared."""
        return replace(self)

    @staticmethod
    @checked_arguments
    def from_optional(**options: Any) -> SamplingParams:
        """Parameters from options of which None is the default; biases are clamped."""
        known = {field.name for field in fields(SamplingParams)}
        given = {
            name: value for name, value in options.items() if value is not None or name not in known
        }
        if isinstance(given.get("logit_bias"), Mapping):
            bias = _logit_bias("logit_bias", given["logit_bias"])
            given["logit_bias"] = {token: min(100.0, max(-100.0, x)) for token, x in bias.items()}
        return SamplingParams(**given)

    @property
    def sampling_type(self) -> SamplingType:
        """How tokens are chosen."""
        if self.temperature == 0:
            return SamplingType.GREEDY
        return SamplingType.RANDOM if self.seed is None else SamplingType.RANDOM_SEED

    @property
    def all_stop_token_ids(self) -> set[int]:
        """`stop_token_ids` as a set."""
        return set(self.stop_token_ids or ())

    @checked_arguments
    def update_from_generation_config(
        self, generation_config: Mapping[str, Any], eos_token_id: int | None = None
    ) -> None:
        """Adds a generation config's ends to `stop_token_ids`, but not the model's own end."""
        ends = check_dict("generation_config", generation_config).get("eos_token_id")
        if ends is None or self.ignore_eos:
            return
        field = "generation_config.eos_token_id"
        listed = check_ids(field, [ends] if isinstance(ends, int) else ends)
        self.stop_token_ids = sorted({*self.all_stop_token_ids, *listed} - {eos_token_id})

    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def _to_core(
        self, max_model_len: int, completion: int = 0, bad_words: Sequence[list[int]] = ()
    ) -> _core.SamplingParams:
        """The engine's parameters for one of the completions."""
        core = self._core(max_model_len)
        if self.seed is not None:
            core.seed = (self.seed + completion) % 2**64
        core.bad_words = list(bad_words)
        if completion > 0:
            core.prompt_logprobs = None  # the first completion reports them
        return core

    def _core(self, max_model_len: int) -> _core.SamplingParams:
        core = _core.SamplingParams()
        for name in _CORE_FIELDS:
            value = getattr(self, name)
            if value is not None:
                setattr(core, name, value)
        core.max_tokens = max_model_len if self.max_tokens is None else self.max_tokens
        core.stop = self.stop_strings()
        return core


def _reset(core: _core.SamplingParams, name: str) -> bool:
    default = getattr(_core.SamplingParams(), name, None)
    if not hasattr(core, name) or getattr(core, name) == default:
        return False
    setattr(core, name, default)
    return True
