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
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
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


# By category, then by engine.
Results = dict[str, dict[str, Tally]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--limit", type=int, default=10**9, help="prompts of each category")
    parser.add_argument("--together", action="store_true", help="lengths only, in batches of 16")
    options = parser.parse_args(arguments)
    engines = load_engines(options, max_num_seqs=16 if options.together else 1)
    prompts = read_prompts(options.prompts, options.limit)
    params = SamplingParams(temperature=0, max_tokens=options.max_tokens)
    if options.together:
        print_table(run_together(engines, prompts, params), with_speeds=False)
        return
    results = run(engines, prompts, params, options.rounds)
    print_table(results)
    print_costs(engines, results)


def make_parser(text: str) -> argparse.ArgumentParser:
    """With what load_engines reads, and the size of what is measured."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--drafter", action="append", required=True, metavar="NAME=JSON")
    parser.add_argument("--quantization", help="the target's")
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--max-tokens", type=positive, default=96)
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, valid: at least 1")
    return number


def load_engines(options: argparse.Namespace, max_num_seqs: int) -> dict[str, LLM]:
    """A plain engine, and one for each NAME=JSON."""
    configs: dict[str, Any] = {"plain": None}
    for text in options.drafter:
        name, _, config = text.partition("=")
        configs[name] = json.loads(config)
    return {
        name: LLM(
            options.model,
            speculative_config=config,
            max_num_seqs=max_num_seqs,
            quantization=options.quantization,
        )
        for name, config in configs.items()
    }


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
