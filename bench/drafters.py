"""What drafters are worth on real prompts, by category.

    python bench/drafters.py MODEL PROMPTS.jsonl --drafter NAME=JSON [--drafter ...]

JSON is a speculative_config, as in  eagle3='{"model": "head", "num_speculative_tokens": 4}'.
PROMPTS.jsonl has {"turns": ["text", ...], "category": "name"} lines. Every prompt is one chat of
one turn, greedy, one request at a time, plain and with each drafter in turns, --rounds times over;
the fastest counts, and no text is remembered from one request to the next. Printed by category:
the mean acceptance length (accepted draft tokens of a pass, and one more token, over all passes
after the prompt's), the speed relative to plain decoding with the prompt and after it, and
whether all ids were the same. The last lines say what drafting costs, beside a plain step.
With --together the prompts of a category are served at once, which is sooner done and shows no
speeds; drafters should not be adaptive then.

    python bench/drafters.py MODEL PROMPTS.jsonl --drafter ... --batches 1 4 16 64 \
        --temperatures 0 1 --rounds 3 --state FILE

measures whether a drafter is ever slower than plain decoding: for every category, batch and
temperature the requests of a batch at once, with each engine in turns. Printed are the medians of
plain decoding's time over the drafter's, with the prompts and after the last of them, and at the
end all that are below 0.98. FILE keeps what was measured: a second call goes on where the first
one stopped. A category of its own has texts whose next 50 tokens are a copy and the 50 after that
are not.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forerun import LLM, SamplingParams
from forerun.outputs import RequestOutput
from forerun.tools.bench import read_cases


@dataclass
class Tally:
    """What an engine did for the prompts of a category."""

    ids: list[list[int]] = field(default_factory=list)
    whole_seconds: float = 0.0
    decode_seconds: float = 0.0
    num_decoded: int = 0  # without the first tokens, which the prompts' passes bring
    num_accepted: int = 0

    def add(self, rounds: Sequence[RequestOutput]) -> None:
        """Counts a prompt: its tokens once, and the fastest round."""
        metrics = [output.metrics for output in rounds if output.metrics is not None]
        self.ids += [list(output.outputs[0].token_ids) for output in rounds]
        self.num_decoded += len(self.ids[-1]) - 1
        self.num_accepted += metrics[0].spec_decode.num_accepted_tokens
        self.whole_seconds += min(m.total_seconds - m.queue_seconds for m in metrics)
        self.decode_seconds += min(m.total_seconds - m.first_token_seconds for m in metrics)

    @property
    def acceptance_length(self) -> float:
        """Answers of one token take no pass after the prompt's."""
        num_passes = self.num_decoded - self.num_accepted
        return self.num_decoded / num_passes if num_passes else 1.0


LEAST_SPEED = 0.98  # of plain decoding's

# By category, then by engine.
Results = dict[str, dict[str, Tally]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--drafter", action="append", required=True, metavar="NAME=JSON")
    parser.add_argument("--limit", type=int, default=10**9, help="prompts of each category")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--together", action="store_true", help="lengths only, in batches of 16")
    parser.add_argument("--quantization", help="the target's")
    grid = parser.add_argument_group("whether a drafter is ever slower")
    grid.add_argument("--batches", type=int, nargs="+", metavar="N")
    grid.add_argument("--temperatures", type=float, nargs="+", default=[0.0], metavar="T")
    grid.add_argument("--categories", nargs="+", help="some of them")
    grid.add_argument("--batch-tokens", type=int, default=1024, help="prompts of a batch, at most")
    grid.add_argument("--batch-outputs", type=int, default=1024, help="outputs of a batch, at most")
    grid.add_argument("--state", type=Path, help="where to keep what was measured")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"rounds: got {options.rounds}, valid: at least 1")
    configs: dict[str, Any] = {"plain": None}
    for text in options.drafter:
        name, _, config = text.partition("=")
        configs[name] = json.loads(config)
    size = max(options.batches) if options.batches else 16 if options.together else 1
    engines = {
        name: LLM(
            options.model,
            speculative_config=config,
            max_num_seqs=size,
            quantization=options.quantization,
        )
        for name, config in configs.items()
    }
    prompts = read_prompts(options.prompts, options.limit)
    if options.batches:
        Grid(engines, prompts, options).run()
        return
    params = SamplingParams(temperature=0, max_tokens=options.max_tokens)
    if options.together:
        print_table(run_together(engines, prompts, params), with_speeds=False)
        return
    results = run(engines, prompts, params, options.rounds)
    print_table(results)
    print_costs(engines, results)


class Grid:
    """Speeds by category, batch and temperature."""

    def __init__(
        self, engines: dict[str, LLM], prompts: dict[str, list[str]], options: argparse.Namespace
    ) -> None:
        self._engines = engines
        self._prompts = {**prompts, "copies, then not": copies(20)}
        self._options = options
        self._state: dict[str, dict[str, list[float]]] = {}
        if options.state is not None and options.state.exists():
            self._state = json.loads(options.state.read_text())

    def run(self) -> None:
        names = [name for name in self._engines if name != "plain"]
        print(" " * 28 + "".join(name.rjust(16) for name in names))
        for batch in self._options.batches:
            for temperature in self._options.temperatures:
                for category in self._options.categories or self._prompts:
                    cell = f"{category}, {batch}, {temperature:g}"
                    if cell not in self._state:
                        self._state[cell] = self._measure(category, batch, temperature)
                        if self._options.state is not None:
                            self._options.state.write_text(json.dumps(self._state, indent=1))
                    pairs = [self._state[cell][name] for name in names]
                    cells = "".join(
                        f"{whole:.2f}x {after:.2f}x".rjust(16) for whole, after in pairs
                    )
                    print(cell.ljust(28) + cells, flush=True)
        for cell, speeds in self._state.items():
            for name, pair in speeds.items():
                if min(pair) < LEAST_SPEED:
                    print(f"below: {cell}, {name}: {pair[0]:.3f}x, {pair[1]:.3f}x")

    def _measure(self, category: str, batch: int, temperature: float) -> dict[str, list[float]]:
        speeds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        texts = self._prompts[category]
        for turn in range(self._options.rounds):
            chosen = [texts[(turn * batch + i) % len(texts)] for i in range(batch)]
            names = list(self._engines)
            random.Random(turn).shuffle(names)
            seconds = {name: self._time(name, chosen, temperature, turn) for name in names}
            for name in names:
                pairs = zip(seconds["plain"], seconds[name], strict=True)
                whole, after = (plain / own for plain, own in pairs)
                speeds[name].append((whole, after))
        return {
            name: [statistics.median(column) for column in zip(*found, strict=True)]
            for name, found in speeds.items()
        }

    def _time(
        self, name: str, texts: list[str], temperature: float, turn: int
    ) -> tuple[float, float]:
        """Seconds of a batch, and of what comes after its last prompt."""
        llm, batch = self._engines[name], len(texts)
        llm.reset_caches()
        most = max(self._options.batch_tokens // batch, 48)
        max_tokens = min(max(self._options.batch_outputs // batch, 24), self._options.max_tokens)
        chats = [llm.render_chat([{"role": "user", "content": text}]) for text in texts]
        ids = [chat["prompt_token_ids"] for chat in chats]
        cut = [{"prompt_token_ids": shorten(prompt, most)} for prompt in ids]
        params = [
            SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=turn * batch + i)
            for i in range(batch)
        ]
        begin = time.perf_counter()
        outputs = llm.generate(cut, params, use_tqdm=False)
        whole = time.perf_counter() - begin
        metrics = [output.metrics for output in outputs if output.metrics is not None]
        last_prompt = max(m.first_token_seconds for m in metrics)
        return whole, max(m.total_seconds for m in metrics) - last_prompt


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


def read_prompts(file: str, limit: int) -> dict[str, list[str]]:
    prompts: dict[str, list[str]] = defaultdict(list)
    for case in read_cases(file):
        if len(prompts[case.category]) < limit:
            prompts[case.category].append(case.turns[0])
    return prompts


def run(
    engines: dict[str, LLM], prompts: dict[str, list[str]], params: SamplingParams, rounds: int
) -> Results:
    results: Results = {}
    for category, texts in prompts.items():
        results[category] = {name: Tally() for name in engines}
        for text in texts:
            outputs: dict[str, list[RequestOutput]] = {name: [] for name in engines}
            for _ in range(rounds):
                for name, llm in engines.items():
                    llm.reset_caches()
                    outputs[name] += generate(llm, [text], params)
            for name, of_rounds in outputs.items():
                results[category][name].add(of_rounds)
    return results


def run_together(
    engines: dict[str, LLM], prompts: dict[str, list[str]], params: SamplingParams
) -> Results:
    results: Results = {}
    for category, texts in prompts.items():
        results[category] = {name: Tally() for name in engines}
        for name, llm in engines.items():
            for output in generate(llm, texts, params):
                results[category][name].add([output])
    return results


def generate(llm: LLM, texts: list[str], params: SamplingParams) -> list[RequestOutput]:
    chats = [llm.render_chat([{"role": "user", "content": text}]) for text in texts]
    return llm.generate(chats, params, use_tqdm=False)


def print_table(results: Results, with_speeds: bool = True) -> None:
    lengths: dict[str, list[float]] = defaultdict(list)
    for i, (category, tallies) in enumerate(results.items()):
        plain = tallies["plain"]
        drafters = {name: tally for name, tally in tallies.items() if name != "plain"}
        if i == 0:
            header = "".join(f"{name:>28}" for name in drafters)
            print("category".ljust(16) + header + "   same ids")
        cells = ""
        for name, tally in drafters.items():
            lengths[name].append(tally.acceptance_length)
            cell = f"{tally.acceptance_length:.2f} tokens"
            if with_speeds:
                whole = plain.whole_seconds / tally.whole_seconds
                decode = plain.decode_seconds / tally.decode_seconds
                cell += f" {whole:5.2f}x {decode:5.2f}x"
            cells += cell.rjust(28)
        same = all(tally.ids == plain.ids for tally in drafters.values())
        print(category.ljust(16) + cells + ("   yes" if same else "   NO"), flush=True)
    means = "".join(f"{statistics.mean(found):.2f} tokens".rjust(28) for found in lengths.values())
    print("mean".ljust(16) + means)


def print_costs(engines: dict[str, LLM], results: Results) -> None:
    plain = [tallies["plain"] for tallies in results.values()]
    step = sum(t.decode_seconds for t in plain) / max(sum(t.num_decoded for t in plain), 1)
    for name, llm in engines.items():
        metrics = llm.metrics()
        if num_drafts := metrics.spec_decode.num_drafts:
            seconds = metrics.draft_seconds / num_drafts
            print(
                f"{name}: {seconds * 1e3:.2f} ms of drafting for each draft; a plain token takes "
                f"{step * 1e3:.2f} ms"
            )


if __name__ == "__main__":
    main()
