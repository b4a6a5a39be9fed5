"""Examples to train on: read from JSON lines, told apart by content, put into batches."""

from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.util.json_files import parse_json

if TYPE_CHECKING:
    from forerun.text.tokenizer import Tokenizer
    from forerun.training.options import TrainOptions

# The first prediction is of an answer's second token.
_LEAST_ANSWER = 2
# Examples whose lengths fall into one bucket may share a batch.
_BUCKET = 24


@dataclass(frozen=True)
class Example:
    """Token ids. What is learned is the answer: the tokens from num_prompt_tokens on."""

    tokens: tuple[int, ...]
    num_prompt_tokens: int

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def key(self) -> str:
        """A name for the content."""
        ids = np.array([self.num_prompt_tokens, *self.tokens], np.int64)
        return hashlib.sha256(ids.tobytes()).hexdigest()[:32]

    def is_held_out(self, share: float) -> bool:
        """Whether it belongs to the held-out share; decided by the content alone."""
        return int(self.key[:8], 16) < share * 2**32


class Corpus:
    """The examples of a file of JSON lines, which may grow."""

    def __init__(self, options: TrainOptions, file: Path, vocab_size: int) -> None:
        """Reads nothing yet."""
        self._options, self._file, self._vocab_size = options, file, vocab_size
        self._offset = 0
        self._num_lines = 0
        self._examples: list[Example] = []
        self._seen: set[str] = set()

    def refresh(self) -> int:
        """Reads what the file has gained, whole lines only; returns the number of examples."""
        limit = self._options.num_examples
        with self._file.open("rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n") or (limit is not None and self._num_lines >= limit):
                    break
                self._offset += len(line)
                self._num_lines += 1
                if line.strip():
                    self._add(line, f"{self._file.name}:{self._num_lines}")
        return len(self._examples)

    def _add(self, line: bytes, where: str) -> None:
        entry = parse_json(line, where, "a JSON object")
        prompt, answer = self._ids_of(entry, where)
        tokens = (prompt + answer)[: self._options.max_length]
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            raise CheckpointError(
                where, f"token {max(tokens)}", f"token ids below {self._vocab_size}"
            )
        example = Example(tuple(tokens), len(prompt))
        if prompt and len(tokens) - len(prompt) >= _LEAST_ANSWER and example.key not in self._seen:
            self._seen.add(example.key)
            self._examples.append(example)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        from forerun.text.tokenizer import Tokenizer

        return Tokenizer(self._options.model)

    def _ids_of(self, entry: Any, where: str) -> tuple[list[int], list[int]]:
        match entry:
            case {"messages": [_, *_] as messages}:
                return self._ids_of_messages(messages, where)
            case {"prompt": str() | list() as prompt, "answer": str() | list() as answer}:
                return self._ids(prompt, True, where), self._ids(answer, False, where)
        raise CheckpointError(
            where, str(entry)[:80], "'prompt' and 'answer' (texts or token ids), or 'messages'"
        )

    def _ids(self, value: str | list[Any], is_start: bool, where: str) -> list[int]:
        if isinstance(value, str):
            return self._tokenizer.encode(value, add_special_tokens=is_start)
        if not all(type(token) is int for token in value):
            raise CheckpointError(where, str(value)[:80], "token ids")
        return value

    def _ids_of_messages(self, messages: list[Any], where: str) -> tuple[list[int], list[int]]:
        """The last message is the answer, with what the template ends it with."""
        last = messages[-1]
        if not isinstance(last, dict) or last.get("role") != "assistant" or len(messages) < 2:
            raise CheckpointError(where, str(last)[:80], "an assistant's message as the last one")
        render = self._tokenizer.render_chat
        prompt = render(messages[:-1])
        whole = render(messages, add_generation_prompt=False)
        answer = whole[len(prompt) :] if whole.startswith(prompt) else str(last.get("content", ""))
        encode = functools.partial(self._tokenizer.encode, add_special_tokens=False)
        return encode(prompt), encode(answer.rstrip("\n"))

    def train(self, count: int) -> list[Example]:
        """Those of the first `count` examples that are learned."""
        share = self._options.held_out
        return [e for e in self._examples[:count] if not e.is_held_out(share)]

    def held_out(self, count: int, most: int) -> list[Example]:
        """Those of the first `count` that are not, `most` at most."""
        share = self._options.held_out
        return [e for e in self._examples[:count] if e.is_held_out(share)][:most]


def make_batches(
    examples: Sequence[Example], batch_tokens: int, order: random.Random | None = None
) -> list[list[Example]]:
    """Examples of like length together, at most `batch_tokens` with the padding, one at least.

    With an `order`, which examples meet and when is drawn from it.
    """
    draw = order.random if order is not None else lambda: 0.0
    ranked = sorted(examples, key=lambda e: (len(e) // _BUCKET, draw()))
    batches: list[list[Example]] = []
    longest = 0
    for example in ranked:
        longest = max(longest, len(example))
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = len(example)
        batches[-1].append(example)
    if order is not None:
        order.shuffle(batches)
    return batches


def draft_vocabulary(
    examples: Iterable[Example], size: int, vocab_size: int, always: Iterable[int]
) -> list[int]:
    """The `size` most frequent tokens of the answers, ascending; of equals the lower ones.

    It always contains those of `always`; unused tokens fill it up.
    """
    counts: Counter[int] = Counter()
    for example in examples:
        counts.update(example.tokens[example.num_prompt_tokens :])
    kept = set(always)
    if len(kept) > size:
        raise InvalidArgumentError("draft_vocab_size", size, f"at least {len(kept)}")
    ranked = sorted(range(vocab_size), key=lambda t: (t not in kept, -counts[t], t))
    return sorted(ranked[: min(size, vocab_size)])
