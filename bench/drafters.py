"""What drafters are worth on real prompts, by category.

    python bench/drafters.py MODEL PROMPTS.jsonl --drafter NAME=JSON [--drafter ...]

JSON is a speculative_config, as in  eagle3='{"model": "head", "num_speculative_tokens": 4}'.
PROMPTS.jsonl has {"turns": ["text", ...], "category": "name"} lines. Every prompt is one chat of
one turn, greedy, one request at a time, plain and with each drafter in turns. Printed by category:
the mean acceptance length (accepted guesses of a pass, and the token after them, over all passes
behind the prompt's), the speed relative to plain decoding, and whether all ids were the same. The
last lines say what drafting costs, beside a plain step. With --together the prompts of a category
are served at once, which is sooner done and shows no speeds; drafters should not be adaptive then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from typing import Any

from forerun import LLM, SamplingParams
from forerun.bench import read_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--drafter", action="append", required=True, metavar="NAME=JSON")
    parser.add_argument("--limit", type=int, default=10**9, help="prompts of each category")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--together", action="store_true", help="lengths only, in batches of 16")
    options = parser.parse_args()
    configs: dict[str, Any] = {"plain": None}
    for text in options.drafter:
        name, _, config = text.partition("=")
        configs[name] = json.loads(config)
    size = 16 if options.together else 1
    engines = {
        name: LLM(options.model, speculative_config=config, max_num_seqs=size)
        for name, config in configs.items()
    }
    if options.together:
        results = run_together(engines, read_prompts(options.prompts, options.limit), options)
        print_table(results, list(configs), with_speeds=False)
        return
    costs: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 0.0] for name in configs}
    prompts = read_prompts(options.prompts, options.limit)
    results = run(engines, prompts, options.max_tokens, costs)
    print_table(results, list(configs))
    print_costs(costs)


def read_prompts(file: str, limit: int) -> dict[str, list[str]]:
    prompts: dict[str, list[str]] = defaultdict(list)
    for case in read_cases(file):
        if len(prompts[case.category]) < limit:
            prompts[case.category].append(case.turns[0])
    return prompts


def run(
    engines: dict[str, LLM],
    prompts: dict[str, list[str]],
    max_tokens: int,
    costs: dict[str, list[float]],
) -> dict[str, Any]:
    """Per category and engine: seconds, tokens, and of decoding alone target passes and tokens; and
    whether the ids agreed.

    Adds to `costs`, by engine: seconds of drafting, drafts, seconds of the model, steps.
    """
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    results: dict[str, Any] = {}
    for category, texts in prompts.items():
        totals = {name: [0.0, 0, 0, 0] for name in engines}
        same = True
        for text in texts:
            expected = None
            for name, llm in engines.items():
                prompt = llm.render_chat([{"role": "user", "content": text}])
                llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
                before = _cost(llm)
                begin = time.perf_counter()
                output = llm.generate(prompt, params, use_tqdm=False)[0]
                totals[name][0] += time.perf_counter() - begin
                for i, (new, old) in enumerate(zip(_cost(llm), before, strict=True)):
                    costs[name][i] += new - old
                ids = output.outputs[0].token_ids
                totals[name][1] += len(ids)
                # The prompt, which is cached, takes the first pass and brings the first token.
                totals[name][2] += output.metrics.num_target_passes - 1
                totals[name][3] += len(ids) - 1
                expected = ids if expected is None else expected
                same = same and ids == expected
        results[category] = (totals, same)
    return results


def run_together(
    engines: dict[str, LLM], prompts: dict[str, list[str]], options: argparse.Namespace
) -> dict[str, Any]:
    """As run, but without seconds, and with the prompts of a category side by side."""
    params = SamplingParams(temperature=0, max_tokens=options.max_tokens)
    results: dict[str, Any] = {}
    for category, texts in prompts.items():
        totals, answers = {}, []
        for name, llm in engines.items():
            chats = [llm.render_chat([{"role": "user", "content": text}]) for text in texts]
            outputs = llm.generate(chats, params, use_tqdm=False)
            ids = [output.outputs[0].token_ids for output in outputs]
            accepted = sum(o.metrics.spec_decode.num_accepted_tokens for o in outputs)
            # A prompt's last pass brings the first token.
            decoded = sum(len(tokens) - 1 for tokens in ids)
            totals[name] = [1.0, sum(map(len, ids)), decoded - accepted, decoded]
            answers.append(ids)
        results[category] = (totals, all(ids == answers[0] for ids in answers))
    return results


def print_table(results: dict[str, Any], names: list[str], with_speeds: bool = True) -> None:
    print("category".ljust(18) + "".join(f"{name:>22}" for name in names[1:]) + "   same ids")
    lengths: dict[str, list[float]] = defaultdict(list)
    for category, (totals, same) in results.items():
        cells = []
        for name in names[1:]:
            seconds, tokens, passes, decoded = totals[name]
            # Answers of one token take no pass behind the prompt's.
            length = decoded / passes if passes else 1.0
            lengths[name].append(length)
            speed = (tokens / seconds) / (totals["plain"][1] / totals["plain"][0])
            shown = f" {speed:5.2f}x" if with_speeds else ""
            cells.append(f"{length:.2f} tokens{shown}".rjust(22))
        print(category.ljust(18) + "".join(cells) + ("   yes" if same else "   NO"))
    means = "".join(
        f"{statistics.mean(lengths[name]):.2f} tokens".rjust(15).ljust(22) for name in names[1:]
    )
    print("mean".ljust(18) + means)


def _cost(llm: LLM) -> list[float]:
    metrics = llm.metrics()
    drafts = metrics.spec_decode.num_drafts
    return [metrics.draft_seconds, drafts, metrics.model_seconds, metrics.num_steps]


def print_costs(costs: dict[str, list[float]]) -> None:
    plain_step = costs["plain"][2] / costs["plain"][3]
    for name, (draft_seconds, drafts, _, _) in costs.items():
        if drafts:
            print(
                f"{name}: {draft_seconds / drafts * 1e3:.2f} ms of drafting for each draft; a "
                f"plain step takes {plain_step * 1e3:.2f} ms"
            )


if __name__ == "__main__":
    main()
