"""Examples that a target writes itself: its own questions, then its answers to them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from forerun.errors import InvalidArgumentError

if TYPE_CHECKING:
    from forerun.llm import LLM
    from forerun.tokenizer import Tokenizer
    from forerun.training.options import TrainOptions

_ROUND = 192  # questions that are asked for together
_MOST_QUESTION_TOKENS = 160
_LEAST_QUESTION_TOKENS = 4
_EMPTY_ROUNDS = 3  # in a row, until the target is given up
_MARK = "\u241eforerun\u241e"  # stands where the user's words are when a template is taken apart


def write_examples(options: TrainOptions) -> Path:
    """Lets the target write into out/data.jsonl until it has options.num_examples lines.

    Raises:
        InvalidArgumentError: the target writes nothing that could be learned from.
    """
    file = options.out / "data.jsonl"
    done = sum(1 for _ in file.open("rb")) if file.is_file() else 0
    wanted = options.num_examples or 0
    if done >= wanted:
        return file
    from forerun.llm import LLM

    tokenized = (options.model / "tokenizer.json").is_file()
    llm = LLM(
        options.model,
        skip_tokenizer_init=not tokenized,
        max_num_seqs=64,
        num_threads=options.num_threads,
    )
    writer = _Writer(llm, llm.get_tokenizer() if tokenized else None, options)
    empty = 0
    bar = tqdm(total=wanted, initial=done, unit=" examples", disable=None)
    with bar, file.open("a", encoding="utf-8") as out:
        while done < wanted:
            lines = [json.dumps(entry) + "\n" for entry in writer.write_round(done)]
            lines = lines[: wanted - done]
            empty = 0 if lines else empty + 1
            if empty == _EMPTY_ROUNDS:
                raise InvalidArgumentError(
                    "model", str(options.model), "a model that writes; or give data"
                )
            out.write("".join(lines))
            out.flush()
            done += len(lines)
            bar.update(len(lines))
    return file


class _Writer:
    """Asks and answers in rounds; a round is a function of the seed and its first line's number."""

    def __init__(self, llm: LLM, tokenizer: Tokenizer | None, options: TrainOptions) -> None:
        self._llm, self._tokenizer, self._options = llm, tokenizer, options
        self._turn = user_turn(tokenizer) if tokenizer is not None else None
        self._round = 0

    def write_round(self, done: int) -> Iterator[dict[str, list[int]]]:
        seed = random.Random(f"{self._options.seed} {done} {self._round}").getrandbits(40)
        self._round += 1
        draw = random.Random(seed)
        questions = self._questions(draw)
        # Most answers in use are the most probable ones, so most to learn from are.
        prompts = [p for p in map(self._prompt, questions) if len(p) < self._options.max_length - 8]
        params = [
            self._params(draw, 0.0 if draw.random() < 0.6 else 0.7, self._options.max_length - n)
            for n in map(len, prompts)
        ]
        for prompt, answer in zip(prompts, self._generate(prompts, params), strict=True):
            if len(answer) >= 2:
                yield {"prompt": prompt, "answer": answer}

    def _questions(self, draw: random.Random) -> list[list[int]]:
        """Token ids of questions, or of beginnings where there is no chat template."""
        start = self._start()
        most = min(_MOST_QUESTION_TOKENS, self._options.max_length // 2)
        if self._turn is None:
            most = min(most, 16)  # the rest of the text is the answer
        params = [
            self._params(draw, draw.choice([0.8, 1.0]), most, is_question=True)
            for _ in range(_ROUND)
        ]
        written = self._generate([start] * _ROUND, params, finished=self._turn is not None)
        kept = dict.fromkeys(tuple(ids) for ids in written if len(ids) >= _LEAST_QUESTION_TOKENS)
        return [list(ids) for ids in kept]

    def _start(self) -> list[int]:
        if self._turn is not None and self._tokenizer is not None:
            return self._tokenizer.encode(self._turn[0], add_special_tokens=False)
        config = json.loads((self._options.model / "config.json").read_text(encoding="utf-8"))
        bos = config.get("bos_token_id")
        return [bos if isinstance(bos, int) else 0]

    def _prompt(self, question: list[int]) -> list[int]:
        if self._turn is None or self._tokenizer is None:
            return self._start() + question
        text = self._tokenizer.decode(question).strip()
        messages = [{"role": "user", "content": text}]
        return list(self._llm.render_chat(messages)["prompt_token_ids"])

    def _params(
        self, draw: random.Random, temperature: float, most: int, is_question: bool = False
    ) -> Any:
        from forerun.sampling_params import SamplingParams

        ends: dict[str, Any] = {}
        if is_question:
            ends = self._end_of_turn()
        return SamplingParams(
            temperature=temperature,
            top_p=0.98,
            max_tokens=most,
            seed=draw.getrandbits(31),
            **ends,
        )

    def _end_of_turn(self) -> dict[str, Any]:
        """What ends a question; without a chat template nothing does before its length."""
        if self._turn is None or self._tokenizer is None:
            return {"ignore_eos": True}
        behind = self._turn[1]
        ids = self._tokenizer.encode(behind, add_special_tokens=False)
        if ids and ids[0] in self._tokenizer.special_token_ids:
            return {"stop_token_ids": ids[:1]}
        return {"stop": [behind]} if behind else {}

    def _generate(
        self, prompts: list[list[int]], params: list[Any], finished: bool = False
    ) -> list[list[int]]:
        """What follows the prompts; with `finished`, only where it came to an end by itself."""
        if not prompts:
            return []
        inputs: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = [o.outputs[0] for o in self._llm.generate(inputs, params, use_tqdm=False)]
        if finished:
            outputs = [output for output in outputs if output.finish_reason == "stop"]
        return [list(output.token_ids) for output in outputs]


def user_turn(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """What a chat template writes before the user's words and right behind; None without one."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": _MARK}]
    text = tokenizer.render_chat(messages, add_generation_prompt=False)
    before, mark, behind = text.partition(_MARK)
    if not mark:
        return None
    return before, behind.strip()
