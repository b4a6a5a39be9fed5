"""Beam search on top of the engine: one token for every beam in each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forerun.engine.progress import check_use_tqdm, progress_bar
from forerun.engine.prompts import ParsedPrompt, parse_prompt, prompt_list
from forerun.engine.requests import check_room
from forerun.errors import InvalidArgumentError, QueueFullError
from forerun.logprobs import FlatLogprobs, Logprob
from forerun.outputs import RequestOutput, TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.text.structured_outputs import StructuredOutputsParams
from forerun.util.checks import check_bool, check_ids, check_int, check_number
from forerun.vllm_fields.arguments import checked_keywords

if TYPE_CHECKING:
    from collections.abc import Callable

    from forerun.llm import LLM
    from forerun.text.grammar_compiler import GrammarState

_MAX_BEAM_WIDTH = 1024


@checked_keywords
@dataclass(kw_only=True)
class BeamSearchParams:
    """Parameters of a beam search.

    Attributes:
        beam_width: how many unfinished texts are kept after each token, and how many are returned.
        max_tokens: the most tokens to generate.
        ignore_eos: go on beyond the model's end-of-sequence tokens.
        temperature: above 0, a token sampled at it is a candidate beside the most probable ones.
        length_penalty: scores are divided by the length to this power; above 1 favours long texts.
        include_stop_str_in_output: keep the end-of-sequence token.
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: what the text must be.
        allowed_token_ids: only these can be chosen.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    allowed_token_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        check_int("beam_width", self.beam_width, least=1, most=_MAX_BEAM_WIDTH)
        check_int("max_tokens", self.max_tokens, least=1)
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            check_bool(name, getattr(self, name))
        check_number("length_penalty", self.length_penalty)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = check_ids("allowed_token_ids", self.allowed_token_ids)
        self.structured_outputs = self._step().structured_outputs

    def _step(self) -> SamplingParams:
        """The parameters of each beam's request in each round."""
        return SamplingParams(
            max_tokens=1,
            temperature=self.temperature,
            ignore_eos=self.ignore_eos,
            structured_outputs=self.structured_outputs,
            allowed_token_ids=self.allowed_token_ids,
            logprobs=2 * self.beam_width,
            skip_special_tokens=False,
        )


@dataclass
class BeamSearchSequence:
    """One beam.

    Attributes:
        tokens: the prompt's and the generated ones.
        logprobs: for each generated token, its candidates.
        cum_logprob: the sum over the generated tokens.
        text: of all tokens, once the search has ended.
        finish_reason: "stop" after an end-of-sequence token, else "length".
        stop_reason: that token.
    """

    tokens: list[int]
    logprobs: list[dict[int, Logprob]]
    lora_request: None = None
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class BeamSearchOutput:
    """The best beams of a prompt, the best first."""

    sequences: list[BeamSearchSequence]


@dataclass
class _Search:
    prompt: ParsedPrompt
    params: BeamSearchParams
    start_grammar: Callable[[], GrammarState] | None
    beams: list[BeamSearchSequence]
    completed: list[BeamSearchSequence] = field(default_factory=list)

    def score(self, beam: BeamSearchSequence) -> float:
        # The end of sequence does not count.
        length = len(beam.tokens)
        length -= beam.finish_reason == "stop" and beam.tokens[-1] == beam.stop_reason
        return float(beam.cum_logprob / length**self.params.length_penalty)

    def advance(self, scored: Sequence[FlatLogprobs], ends: frozenset[int]) -> None:
        """Replaces the beams with their best continuations."""
        grown = []
        for beam, logprobs in zip(self.beams, scored, strict=True):
            entries = self._candidates(beam, logprobs)
            for token, entry in entries.items():
                is_end = token in ends and not self.params.ignore_eos
                kept = [] if is_end and not self.params.include_stop_str_in_output else [token]
                sequence = BeamSearchSequence(
                    tokens=beam.tokens + kept,
                    logprobs=[*beam.logprobs, entries],
                    cum_logprob=beam.cum_logprob + entry.logprob,
                )
                if is_end:
                    sequence.finish_reason, sequence.stop_reason = "stop", token
                    self.completed.append(sequence)
                else:
                    grown.append(sequence)
        self.beams = sorted(grown, key=self.score, reverse=True)[: self.params.beam_width]

    def _candidates(self, beam: BeamSearchSequence, logprobs: FlatLogprobs) -> dict[int, Logprob]:
        if self.start_grammar is None and self.params.allowed_token_ids is None:
            entries: dict[int, Logprob] = logprobs[0]
            return entries
        import numpy as np

        rows = logprobs.rows(0)
        allowed = np.zeros(rows.size, dtype=bool)
        if self.params.allowed_token_ids is None:
            allowed[:] = True
        else:
            allowed[list(self.params.allowed_token_ids)] = True
        if self.start_grammar is not None:
            state = self.start_grammar()
            state.advance(beam.tokens[len(self.prompt.token_ids) :])
            words = np.zeros((rows.size + 31) // 32, dtype=np.uint32)
            state.fill_mask(words.ctypes.data, words.nbytes)
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: rows.size]
            allowed &= bits.astype(bool)
        chosen = rows[allowed[rows["token"]]][: 2 * self.params.beam_width + 1]
        return logprobs.entries(chosen)


def search(
    llm: LLM,
    prompts: Any,
    params: BeamSearchParams,
    use_tqdm: Any,
    concurrency_limit: int | None,
) -> list[BeamSearchOutput]:
    """The best beams of each prompt."""
    if not isinstance(params, BeamSearchParams):
        raise InvalidArgumentError("params", params, "BeamSearchParams")
    check_use_tqdm(use_tqdm)
    tokenizer = llm.get_tokenizer()
    items = prompt_list(prompts)
    structure = params.structured_outputs
    assert not isinstance(structure, Mapping)  # SamplingParams made it one
    start_grammar = llm._grammars.compile(structure) if structure else None
    searches = []
    for index, item in enumerate(items):
        prompt = parse_prompt(f"prompts[{index}]", item, tokenizer.encode)
        if prompt.prediction:
            field = f"prompts[{index}]: prediction"
            expected = "none: a beam search drafts nothing"
            raise InvalidArgumentError(field, f"{len(prompt.prediction)} tokens", expected)
        beam = BeamSearchSequence(list(prompt.token_ids), [])
        searches.append(_Search(prompt, params, start_grammar, [beam]))
    most = len(searches)
    if concurrency_limit is not None:
        most = min(most, check_int("concurrency_limit", concurrency_limit, least=1))
    # The first round of a search has one beam, the others have them all.
    field = "beam_width" if most == 1 else "prompts"
    check_room(llm._engine, most * params.beam_width, field)
    with progress_bar(use_tqdm, len(searches)) as bar:
        for begin in range(0, len(searches), max(most, 1)):
            _run(llm, searches[begin : begin + most], params)
            bar.update(len(searches[begin : begin + most]))
    outputs = []
    for one in searches:
        for beam in one.beams:
            beam.finish_reason = "length"
        best = sorted(one.completed + one.beams, key=one.score, reverse=True)[: params.beam_width]
        for beam in best:
            beam.text = tokenizer.decode(
                beam.tokens, skip_special_tokens=params.skip_special_tokens
            )
        outputs.append(BeamSearchOutput(best))
    return outputs


def _run(llm: LLM, searches: Sequence[_Search], params: BeamSearchParams) -> None:
    step = params._step()
    if params.structured_outputs is not None or params.allowed_token_ids is not None:
        # What is allowed is looked up here, since log-probabilities are the model's alone.
        step.logprobs, step.structured_outputs, step.allowed_token_ids = -1, None, None
    ends = frozenset(llm.limits.eos_token_ids)
    for _ in range(params.max_tokens):
        growing = [
            one
            for one in searches
            if one.beams and len(one.beams[0].tokens) < llm.limits.max_model_len
        ]
        if not growing:
            return
        prompts = [
            TokensPrompt(prompt_token_ids=beam.tokens, cache_salt=one.prompt.cache_salt or None)
            for one in growing
            for beam in one.beams
        ]
        outputs = iter(_generate(llm, prompts, step))
        for one in growing:
            scored = []
            for _beam in one.beams:
                completion = next(outputs).outputs[0]
                assert completion.logprobs is not None
                scored.append(completion.logprobs)
            one.advance(scored, ends)


def _generate(llm: LLM, prompts: list[TokensPrompt], step: SamplingParams) -> list[RequestOutput]:
    while True:
        try:
            return llm.generate(prompts, step, use_tqdm=False)
        except QueueFullError:
            # Other callers have taken the room since the search began: their requests go on first.
            llm._board.run_step()
