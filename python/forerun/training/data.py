"""Examples to train on: what a target answers, and to what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.training.options import TrainOptions

if TYPE_CHECKING:
    from forerun.llm import LLM
    from forerun.tokenizer import Tokenizer

_BATCH = 192  # examples that the target writes together
_MOST_QUESTION_TOKENS = 160
_USER_MARK = "\u241e"  # stands where the user's words are when a template is taken apart


@dataclass(frozen=True)
class Example:
    """Token ids; the answer, from num_prompt_tokens on, is what is learned."""

    tokens: tuple[int, ...]
    num_prompt_tokens: int

    @property
    def is_held_out(self) -> bool:
        """One in forty, by content, so that a longer run holds out the same ones."""
        digest = hashlib.sha256(np.array(self.tokens, np.int32).tobytes()).digest()
        return digest[0] * 256 + digest[1] < 65536 // 40


def load_examples(options: TrainOptions) -> list[Example]:
    """The examples of a run, written by the target first where no data is given."""
    file = options.data
    if file is None:
        file = options.out / "data.jsonl"
        write_examples(options, file)
    examples = list(read_examples(options, file))
    if not any(not example.is_held_out for example in examples):
        raise InvalidArgumentError("data", str(file), "at least one example with an answer")
    return examples


def read_examples(options: TrainOptions, file: Path) -> Iterator[Example]:
    """Examples of a file of JSON lines, cut to options.max_length tokens."""
    tokenizer: Tokenizer | None = None
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number >= options.num_examples:
                return
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise CheckpointError(f"{file.name}:{number + 1}", str(error), "JSON") from error
            if tokenizer is None and not _is_token_ids(entry):
                from forerun.tokenizer import Tokenizer as Loaded

                tokenizer = Loaded(options.model)
            prompt, answer = _ids_of(entry, tokenizer, f"{file.name}:{number + 1}")
            tokens = (prompt + answer)[: options.max_length]
            # Every position that is trained needs a row.
            if prompt and len(tokens) - len(prompt) > options.num_steps + 1:
                yield Example(tuple(tokens), len(prompt))


def _is_token_ids(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), list) for key in ("prompt", "answer")
    )


def _ids_of(entry: Any, tokenizer: Tokenizer | None, where: str) -> tuple[list[int], list[int]]:
    if _is_token_ids(entry):
        return list(entry["prompt"]), list(entry["answer"])
    assert tokenizer is not None
    if isinstance(entry, dict) and isinstance(entry.get("messages"), list):
        messages = entry["messages"]
        if len(messages) >= 2 and messages[-1].get("role") == "assistant":
            prompt = tokenizer.render_chat(messages[:-1])
            return (
                tokenizer.encode(prompt, add_special_tokens=False),
                tokenizer.encode(messages[-1]["content"], add_special_tokens=False),
            )
    if isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("prompt", "answer")):
        return (
            tokenizer.encode(entry["prompt"]),
            tokenizer.encode(entry["answer"], add_special_tokens=False),
        )
    raise CheckpointError(
        where, str(entry)[:80], "'prompt' and 'answer', or 'messages' that end with the assistant's"
    )


def write_examples(options: TrainOptions, file: Path) -> None:
    """Lets the target write questions and answers, until the file has options.num_examples."""
    from forerun.llm import LLM

    num_done = sum(1 for _ in file.open()) if file.is_file() else 0
    if num_done >= options.num_examples:
        return
    llm = LLM(options.model, max_num_seqs=64)
    bar = tqdm(total=options.num_examples, initial=num_done, desc="Writing", unit=" examples")
    with bar, file.open("a", encoding="utf-8") as out:
        while num_done < options.num_examples:
            for prompt, answer in _write_batch(llm, options, num_done):
                if num_done < options.num_examples:
                    out.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
                    num_done += 1
                    bar.update()
            out.flush()


def _write_batch(
    llm: LLM, options: TrainOptions, number: int
) -> Iterator[tuple[list[int], list[int]]]:
    from forerun.sampling_params import SamplingParams

    tokenizer = llm.get_tokenizer()
    before, after = _user_turn(tokenizer)
    seed = options.seed * 1_000_003 + number
    start = tokenizer.encode(before, add_special_tokens=not before)
    ask = [
        SamplingParams(
            temperature=1.0,
            top_p=0.98,
            max_tokens=_MOST_QUESTION_TOKENS,
            seed=seed + i,
            stop=[after] if after else None,
        )
        for i in range(_BATCH)
    ]
    starts: list[Any] = [{"prompt_token_ids": start}] * _BATCH
    written = [output.outputs[0] for output in llm.generate(starts, ask, use_tqdm=False)]
    questions = sorted({out.text.strip() for out in written if len(out.text.strip()) > 8})
    if after:
        prompts = [llm.render_chat([{"role": "user", "content": q}]) for q in questions]
    else:
        prompts = [{"prompt_token_ids": tokenizer.encode(q)} for q in questions]
    # Two answers in three are the most probable ones, as most are in use.
    params = [
        SamplingParams(
            temperature=0.0 if i % 3 else 0.8,
            seed=seed + i,
            max_tokens=max(8, options.max_length - len(prompt["prompt_token_ids"])),
        )
        for i, prompt in enumerate(prompts)
    ]
    for prompt, output in zip(prompts, llm.generate(prompts, params, use_tqdm=False), strict=True):
        yield list(prompt["prompt_token_ids"]), list(output.outputs[0].token_ids)


def _user_turn(tokenizer: Tokenizer) -> tuple[str, str]:
    """What a chat template writes before and behind the user's words; empty without a template."""
    if tokenizer.chat_template is None:
        return "", ""
    text = tokenizer.render_chat(
        [{"role": "user", "content": _USER_MARK}], add_generation_prompt=False
    )
    before, _, after = text.partition(_USER_MARK)
    return before, after.strip()


def draft_vocabulary(examples: list[Example], size: int, always: list[int]) -> list[int]:
    """The `size` most frequent tokens of the answers (of equals the lowest), ascending."""
    counts: dict[int, int] = {}
    for example in examples:
        for token in example.tokens[example.num_prompt_tokens :]:
            counts[token] = counts.get(token, 0) + 1
    for token in always:
        counts[token] = len(examples) + max(counts.values(), default=0)
    most = sorted(counts, key=lambda token: (-counts[token], token))[:size]
    unused = (token for token in range(10**9) if token not in counts)
    while len(most) < size:
        most.append(next(unused))
    return sorted(most)
