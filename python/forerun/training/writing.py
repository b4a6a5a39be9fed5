"""What writes examples: requests in, texts out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class WriteRequest:
    """A text to go on from.

    Attributes:
        prompt: token ids.
        temperature: 0 takes the most probable token each time.
        min_p: tokens below this share of the most probable one's probability are not drawn.
        max_tokens: where the text ends if nothing else ends it.
        seed: of the draws, for writers that draw for each text alone.
    """

    prompt: list[int]
    temperature: float
    min_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Written:
    """Token ids after a prompt, and whether they came to an end by themselves."""

    token_ids: list[int]
    is_finished: bool


@dataclass(frozen=True)
class TurnEnd:
    """What ends a user's turn: a token, a text, or neither; the model's own end does not count.

    A writer may go on after the text; what it wrote is to be cut there.
    """

    token_id: int | None = None
    text: str = ""


class Writer(Protocol):
    """Goes on from prompts."""

    def write(self, requests: list[WriteRequest], seed: int, end: TurnEnd | None) -> list[Written]:
        """Texts in the order of the requests; the same call gives the same texts.

        Args:
            requests: one at least.
            seed: of the draws, for writers that draw for all texts together.
            end: what ends the texts; None where the model's own end does.
        """
        ...


class EngineWriter:
    """Forerun's own engine, on the CPU."""

    def __init__(self, model: Path, num_threads: int, has_tokenizer: bool) -> None:
        """Loads the model."""
        from forerun.llm import LLM

        self._llm = LLM(
            model,
            skip_tokenizer_init=not has_tokenizer,
            max_num_seqs=64,
            num_threads=num_threads,
        )

    def write(self, requests: list[WriteRequest], seed: int, end: TurnEnd | None) -> list[Written]:
        """Each text is drawn with its own seed."""
        from forerun.sampling_params import SamplingParams

        ends: dict[str, Any] = {}
        if end is not None:
            if end.token_id is not None:
                ends = {"stop_token_ids": [end.token_id]}
            elif end.text:
                ends = {"stop": [end.text]}
            else:
                ends = {"ignore_eos": True}
        params = [
            SamplingParams(
                temperature=request.temperature,
                min_p=request.min_p,
                max_tokens=request.max_tokens,
                seed=request.seed,
                **ends,
            )
            for request in requests
        ]
        inputs: list[Any] = [{"prompt_token_ids": request.prompt} for request in requests]
        outputs = [o.outputs[0] for o in self._llm.generate(inputs, params, use_tqdm=False)]
        return [Written(list(o.token_ids), o.finish_reason == "stop") for o in outputs]
