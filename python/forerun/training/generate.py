"""Examples that a target writes itself: answers to given questions, or to its own."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from forerun.errors import InvalidArgumentError
from forerun.training.prompts import read_prompts
from forerun.training.writing import EngineWriter, TurnEnd, Writer, WriteRequest, Written
from forerun.util.json_files import read_json_object

if TYPE_CHECKING:
    from forerun.text.tokenizer import Tokenizer
    from forerun.training.options import TrainOptions

# Questions that are asked for together: enough to fill what writes, few enough to stop in between.
_ROUND = {"cpu": 192}
_USUAL_ROUND = 16384  # of accelerators
_MOST_QUESTION_TOKENS = 160
_LEAST_QUESTION_TOKENS = 4
_EMPTY_ROUNDS = 3  # in a row, until the target is given up
_LEAST_ANSWER_ROOM = 8
_MIN_P = 0.02
# Most answers in use are the most probable ones, so most to learn from are.
_GREEDY_SHARE = 0.6
_TEMPERATURE = 0.7
_MARK = "\u241eforerun\u241e"  # replaces the user's words while a template is taken apart


def write_examples(options: TrainOptions) -> Path:
    """Lets the target write into out/data.jsonl until it has options.num_examples lines.

    Raises:
        InvalidArgumentError: the target writes nothing that could be learned from, or the lines
            that are there were made with other options.
    """
    lines = _Lines(options)
    wanted = options.num_examples or 0
    if lines.count >= wanted:
        return lines.file
    author = Author(options, lines.num_dropped)
    bar = tqdm(total=wanted, initial=lines.count, unit=" examples", disable=None)
    with bar:
        while lines.count < wanted:
            if lines.num_empty_rounds == _EMPTY_ROUNDS:
                raise InvalidArgumentError(
                    "model", str(options.model), "a model that writes; or give data"
                )
            count = lines.count
            entries = list(author.write_round(count, wanted - count, lines.num_empty_rounds))
            lines.add(entries, author.num_dropped)
            bar.update(len(entries))
    return lines.file


class _Lines:
    """The rounds' lines in out/data.jsonl. The settings they follow from are in out/data.json.

    A round is there when the latter counts its lines: what an interrupted one left is cut off.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.file, self._about_file = options.out / "data.jsonl", options.out / "data.json"
        self.count = self.num_dropped = self.num_empty_rounds = 0
        self._made_with = {
            "model": str(options.model.resolve()),
            "prompts": None if options.prompts is None else str(options.prompts.resolve()),
            "max_length": options.max_length,
            "max_answer_tokens": options.max_answer_tokens,
            "seed": options.seed,
        }
        if self.file.is_file() and self.file.stat().st_size > 0:
            self._go_on()
        else:
            self._write_about()
            self.file.touch()

    def _go_on(self) -> None:
        text = self._about_file.read_text(encoding="utf-8") if self._about_file.is_file() else "{}"
        try:
            about = json.loads(text)
            made_with, state = about["made_with"], about["state"]
            self.count, self.num_dropped, self.num_empty_rounds = map(int, state)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(
                "out", f"{self.file} without a whole {self._about_file.name}",
                "an out of this version; such lines can be given as data",
            ) from error  # fmt: skip
        for name, value in self._made_with.items():
            if made_with.get(name) != value:
                theirs = f"{made_with.get(name)}, which {self.file} was made with; or another out"
                raise InvalidArgumentError(name, value, theirs)
        lines = self.file.read_bytes().splitlines(keepends=True)
        self.count = min(self.count, len(lines))
        os.truncate(self.file, sum(map(len, lines[: self.count])))

    def _write_about(self) -> None:
        state = [self.count, self.num_dropped, self.num_empty_rounds]
        text = json.dumps({"made_with": self._made_with, "state": state}, indent=2) + "\n"
        new = self._about_file.with_suffix(".tmp")
        new.write_text(text, encoding="utf-8")
        os.replace(new, self._about_file)

    def add(self, entries: list[dict[str, list[int]]], num_dropped: int) -> None:
        """A round; `num_dropped` is of all rounds so far."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        self.count += len(entries)
        self.num_dropped = num_dropped
        self.num_empty_rounds = 0 if entries else self.num_empty_rounds + 1
        self._write_about()


class Author:
    """Asks and answers in rounds; a round is a function of the seed and what is there before it."""

    def __init__(self, options: TrainOptions, num_dropped: int = 0) -> None:
        """Loads the model, with its tokenizer if it has one, and reads the prompts if any."""
        self._options = options
        self._tokenizer: Tokenizer | None = None
        if (options.model / "tokenizer.json").is_file():
            from forerun.text.tokenizer import Tokenizer

            self._tokenizer = Tokenizer(options.model)
        self._turn = user_turn(self._tokenizer) if self._tokenizer is not None else None
        self._prompts: list[list[int]] | None = None
        if options.prompts is not None:
            longest = options.max_length - _LEAST_ANSWER_ROOM
            config = read_json_object(options.model / "config.json")
            size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
            self._prompts = read_prompts(options.prompts, self._tokenizer, longest, size)
            random.Random(options.seed).shuffle(self._prompts)
        self._writer: Writer = _make_writer(options, self._tokenizer)
        self.num_dropped = num_dropped  # prompts without an answer to learn from

    def write_round(self, done: int, most: int, attempt: int) -> Iterator[dict[str, list[int]]]:
        """Prompts and answers, `most` at most, of which `done` are there already."""
        seed = random.Random(f"{self._options.seed} {done} {attempt}").getrandbits(40)
        draw = random.Random(seed)
        count = _ROUND.get(self._options.device, _USUAL_ROUND)
        if self._prompts is not None:
            first = done + self.num_dropped
            asked = list(self._next_prompts(self._prompts, first, min(count, most)))
        else:
            # Some questions are dropped.
            asked = self._own_prompts(draw, min(count, most + most // 4 + 16))[:most]
        requests = [
            self._request(draw, prompt, temperature, self._answer_room(prompt))
            for prompt, temperature in asked
        ]
        answers = self._write(requests, draw, None)
        for request, answer in zip(requests, answers, strict=True):
            if len(answer.token_ids) >= 2:
                yield {"prompt": request.prompt, "answer": answer.token_ids}
            else:
                self.num_dropped += 1

    def _answer_room(self, prompt: list[int]) -> int:
        room = self._options.max_length - len(prompt)
        return min(room, self._options.max_answer_tokens or room)

    def _next_prompts(
        self, prompts: list[list[int]], first: int, count: int
    ) -> Iterator[tuple[list[int], float]]:
        """The prompts' turns and their temperatures; each gets its most probable answer once."""
        for number in range(first, first + count):
            turn, index = divmod(number, len(prompts))
            is_greedy = turn == int(index % 10 >= 10 * _GREEDY_SHARE)
            yield prompts[index], 0.0 if is_greedy else _TEMPERATURE

    def _own_prompts(self, draw: random.Random, count: int) -> list[tuple[list[int], float]]:
        longest = self._options.max_length - _LEAST_ANSWER_ROOM
        prompts = map(self._prompt, self._questions(draw, count))
        return [
            (prompt, 0.0 if draw.random() < _GREEDY_SHARE else _TEMPERATURE)
            for prompt in prompts
            if len(prompt) <= longest
        ]

    def _questions(self, draw: random.Random, count: int) -> list[list[int]]:
        """Token ids of questions, or of beginnings where there is no chat template."""
        start = self._start()
        most = min(_MOST_QUESTION_TOKENS, self._options.max_length // 2)
        if self._turn is None:
            most = min(most, 16)  # the rest of the text is the answer
        requests = [self._request(draw, start, draw.choice([0.8, 1.0]), most) for _ in range(count)]
        end = self._end_of_turn()
        written = [self._cut(text, end) for text in self._write(requests, draw, end)]
        kept = dict.fromkeys(
            tuple(question.token_ids)
            for question in written
            if len(question.token_ids) >= _LEAST_QUESTION_TOKENS
            and (question.is_finished or self._turn is None)
        )
        return [list(ids) for ids in kept]

    def _cut(self, written: Written, end: TurnEnd) -> Written:
        """Without the text that ends it, and what follows."""
        if self._tokenizer is None or not end.text:
            return written
        whole = self._tokenizer.decode(written.token_ids, skip_special_tokens=False)
        text, found, _ = whole.partition(end.text)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return Written(ids, bool(found))

    def _start(self) -> list[int]:
        if self._turn is not None and self._tokenizer is not None:
            return self._tokenizer.encode(self._turn[0], add_special_tokens=False)
        config = read_json_object(self._options.model / "config.json")
        bos = config.get("bos_token_id")
        return [bos if isinstance(bos, int) else 0]

    def _prompt(self, question: list[int]) -> list[int]:
        if self._turn is None or self._tokenizer is None:
            return self._start() + question
        text = self._tokenizer.decode(question, skip_special_tokens=True).strip()
        return self._tokenizer.encode(
            self._tokenizer.render_chat([{"role": "user", "content": text}]),
            add_special_tokens=False,
        )

    def _request(
        self, draw: random.Random, prompt: list[int], temperature: float, most: int
    ) -> WriteRequest:
        return WriteRequest(prompt, temperature, _MIN_P, most, draw.getrandbits(31))

    def _end_of_turn(self) -> TurnEnd:
        """What ends a question; without a chat template nothing does before its length."""
        if self._turn is None or self._tokenizer is None:
            return TurnEnd()
        after = self._turn[1]
        ids = self._tokenizer.encode(after, add_special_tokens=False)
        if ids and ids[0] in self._tokenizer.special_token_ids:
            return TurnEnd(token_id=ids[0])
        return TurnEnd(text=after)

    def _write(
        self, requests: list[WriteRequest], draw: random.Random, end: TurnEnd | None
    ) -> list[Written]:
        return self._writer.write(requests, draw.getrandbits(31), end) if requests else []


def _make_writer(options: TrainOptions, tokenizer: Tokenizer | None) -> Writer:
    if options.device == "cpu":
        return EngineWriter(options.model, options.num_threads, tokenizer is not None)
    from forerun.training.torch_writer import TorchWriter

    return TorchWriter(options.model, options.device)


def user_turn(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """What a chat template writes before the user's words and right after; None without one."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": _MARK}]
    text = tokenizer.render_chat(messages, add_generation_prompt=False)
    before, mark, after = text.partition(_MARK)
    if not mark:
        return None
    return before, after.strip()
