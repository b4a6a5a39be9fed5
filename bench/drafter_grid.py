"""Whether a drafter is ever slower than plain decoding: categories, batches and temperatures.

    python bench/drafter_grid.py MODEL PROMPTS.jsonl --drafter NAME=JSON [--drafter ...] \\
        --batches 1 4 16 64 --temperatures 0 1 --rounds 3 --state FILE

JSON is a speculative_config, and PROMPTS.jsonl is as for drafters.py. For every category, batch and
temperature the requests of a batch are served at once by each engine, and the engines take turns of
a few steps, so that a slow moment of the machine meets them all. Printed is plain decoding's time
over the drafter's in all rounds, with the prompts and after the last of them; at the end come the
cells below 0.98. A second plain engine, --drafter again=null, shows what the machine itself does
to a cell. FILE keeps what was measured: another call goes on where the last one stopped, or adds
rounds. Each round has prompts of its own.

A category of its own has texts whose next 50 tokens are a copy and the 50 after that are not.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from drafters import load_engines, make_parser, positive, read_prompts

from forerun import LLM, LLMEngine, RequestOutputKind, SamplingParams

LEAST_SPEED = 0.98  # of plain decoding's

Speed = tuple[float, float]  # relative to plain decoding, with the prompts and after them


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 4, 16, 64], metavar="N")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0], metavar="T")
    parser.add_argument("--categories", nargs="+", help="some of them")
    parser.add_argument(
        "--batch-tokens", type=int, default=1024, help="prompts of a batch, at most"
    )
    parser.add_argument(
        "--batch-outputs", type=int, default=1024, help="outputs of a batch, at most"
    )
    parser.add_argument("--slice-ms", type=float, default=30, help="of an engine's turn")
    parser.add_argument("--state", type=Path, help="where to keep what was measured")
    options = parser.parse_args(arguments)
    engines = load_engines(options, max_num_seqs=max(options.batches))
    Grid(engines, read_prompts(options.prompts, 10**9), options).run()


class Grid:
    """Speeds by category, batch and temperature."""

    def __init__(
        self, engines: dict[str, LLM], prompts: dict[str, list[str]], options: argparse.Namespace
    ) -> None:
        self._engines = engines
        self._prompts = {**prompts, "copies, then not": copies(20)}
        self._options = options
        # By cell and engine: the seconds of each round, and those after its last prompt.
        self._state: dict[str, dict[str, list[list[float]]]] = {}
        if options.state is not None and options.state.exists():
            self._state = json.loads(options.state.read_text())
        for found in self._state.values():
            if list(found) != list(engines):
                raise SystemExit(f"{options.state}: a cell of the engines {', '.join(found)}")

    def run(self) -> None:
        names = [name for name in self._engines if name != "plain"]
        print(" " * 32 + "".join(name.rjust(16) for name in names))
        below = []
        for batch in self._options.batches:
            for temperature in self._options.temperatures:
                found: dict[str, list[Speed]] = defaultdict(list)
                for category in self._options.categories or self._prompts:
                    cell = f"{category}, {batch}, {temperature:g}"
                    speeds = self._cell(cell, category, batch, temperature)
                    self._print(cell, [speeds[name] for name in names])
                    for name in names:
                        found[name].append(speeds[name])
                        if min(speeds[name]) < LEAST_SPEED:
                            below.append((cell, name, speeds[name]))
                self._print(
                    f"geometric mean, {batch}, {temperature:g}",
                    [mean_of(found[name]) for name in names],
                )
        for cell, name, (whole, after) in below:
            print(f"below: {cell}, {name}: {whole:.3f}x, {after:.3f}x")

    def _print(self, title: str, speeds: list[Speed]) -> None:
        cells = "".join(f"{whole:.2f}x {after:.2f}x".rjust(16) for whole, after in speeds)
        print(title.ljust(32) + cells, flush=True)

    def _cell(self, cell: str, category: str, batch: int, temperature: float) -> dict[str, Speed]:
        found = self._state.setdefault(cell, {name: [] for name in self._engines})
        for turn in range(len(found["plain"]), self._options.rounds):
            for name, run in self._run(category, batch, temperature, turn).items():
                found[name].append([run.seconds, run.decode_seconds])
            if self._options.state is not None:
                self._options.state.write_text(json.dumps(self._state, indent=1))
        seconds = {
            name: [sum(column) for column in zip(*rounds, strict=True)]
            for name, rounds in found.items()
        }
        plain_whole, plain_after = seconds["plain"]
        return {
            name: (plain_whole / whole, plain_after / after if after else 1.0)
            for name, (whole, after) in seconds.items()
        }

    def _run(self, category: str, batch: int, temperature: float, turn: int) -> dict[str, BatchRun]:
        texts = self._prompts[category]
        chosen = [texts[(turn * batch + i) % len(texts)] for i in range(batch)]
        runs = {
            name: self._start(llm, chosen, temperature, turn) for name, llm in self._engines.items()
        }
        take_turns(list(runs.values()), 1e-3 * self._options.slice_ms, random.Random(turn))
        return runs

    def _start(self, llm: LLM, texts: list[str], temperature: float, turn: int) -> BatchRun:
        batch = len(texts)
        llm.reset_caches()
        most = max(self._options.batch_tokens // batch, 48)
        max_tokens = min(max(self._options.batch_outputs // batch, 24), self._options.max_tokens)
        chats = [llm.render_chat([{"role": "user", "content": text}]) for text in texts]
        prompts = [shorten(chat["prompt_token_ids"], most) for chat in chats]
        params = [
            SamplingParams(
                temperature=temperature,
                max_tokens=max_tokens,
                seed=turn * batch + i,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            for i in range(batch)
        ]
        return BatchRun(llm, prompts, params)


class BatchRun:
    """The requests of a batch in one engine, as far as its turns have brought them."""

    def __init__(self, llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> None:
        self._engine = LLMEngine(llm)
        for i, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
            self._engine.add_request(str(i), {"prompt_token_ids": prompt}, own)
        self._in_prompt = {str(i) for i in range(len(prompts))}
        self._last_prompt = 0.0
        self.seconds = 0.0

    @property
    def is_done(self) -> bool:
        return not self._engine.has_unfinished_requests()

    @property
    def decode_seconds(self) -> float:
        """Of what comes after the last prompt."""
        return self.seconds - self._last_prompt

    def advance(self, seconds: float) -> None:
        """Runs whole steps for that long, or to the end."""
        begin = time.perf_counter()
        before = self.seconds
        while not self.is_done and self.seconds - before < seconds:
            outputs = self._engine.step()
            self.seconds = before + time.perf_counter() - begin
            if self._in_prompt:
                self._in_prompt -= {output.request_id for output in outputs}
                self._last_prompt = self.seconds


def take_turns(runs: list[BatchRun], seconds: float, draw: random.Random) -> None:
    """Runs all to their ends in short slices, so that a slow moment of the machine meets all."""
    while any(not run.is_done for run in runs):
        draw.shuffle(runs)
        for run in runs:
            run.advance(seconds)


def mean_of(speeds: Sequence[Speed]) -> Speed:
    whole, after = (statistics.geometric_mean(column) for column in zip(*speeds, strict=True))
    return whole, after


def shorten(tokens: list[int], most: int) -> list[int]:
    """Without those in the middle: a chat's ends belong to its template."""
    return tokens if len(tokens) <= most else tokens[: most // 2] + tokens[most // 2 - most :]


def copies(count: int) -> list[str]:
    """Texts of records: half of a record is the same in all, the other half is random words."""
    draw = random.Random(0)
    words = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "iris")
    same = (
        "The parties agree that every delivery is inspected on arrival, that defects are reported "
        "in writing within ten working days, and that the supplier replaces or repairs what was "
        "found defective at its own expense without undue delay."
    )
    return [
        "\n".join(
            f"Record {n}. {same} Notes: {' '.join(draw.choices(words, k=40))}." for n in range(1, 5)
        )
        + "\nContinue the list with four more records of the same form."
        for _ in range(count)
    ]


if __name__ == "__main__":
    main()
