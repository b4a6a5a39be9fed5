"""Suffix trees beside suffix chains of as many nodes, on the same prompts, in turns.

python bench/compare_trees.py MODEL prompts.jsonl --every 4 --max-tokens 64

Prints, per number of nodes, the tokens of a target pass and the speed against plain decoding, and
fails when an id differs from plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from forerun import LLM, SamplingParams
from forerun.tools import bench


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts", help='JSONL: {"prompt": text} or {"turns": [text]}; first turns')
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--every", type=int, default=1, help="take every n-th prompt")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="a prompt's number is seed")
    parser.add_argument("--min-token-prob", type=float, default=0.0)
    parser.add_argument("--max-spec-factor", type=float, default=100.0)
    parser.add_argument("--adaptive", action="store_true", help="let drafts shorten themselves")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def speculative_configs(args: argparse.Namespace) -> dict[str, dict[str, Any] | None]:
    configs: dict[str, dict[str, Any] | None] = {"plain": None}
    for nodes in args.nodes:
        for shape in ("chain", "tree"):
            configs[f"{shape} {nodes}"] = {
                "method": "suffix",
                "num_speculative_tokens": nodes,
                "suffix_decoding_use_tree": shape == "tree",
                "suffix_decoding_min_token_prob": args.min_token_prob,
                "suffix_decoding_max_spec_factor": args.max_spec_factor,
                "adaptive": args.adaptive,
            }
    return configs


def run(args: argparse.Namespace) -> dict[str, bench.Tally]:
    cases = bench.read_cases(args.prompts)[:: args.every][: args.limit]
    configs = speculative_configs(args)
    llms = {
        name: LLM(args.model, speculative_config=config, max_num_seqs=1, max_model_len=4096)
        for name, config in configs.items()
    }
    tallies = {name: bench.Tally() for name in llms}
    for index, name in bench.in_turns(list(llms), len(cases)):
        params = SamplingParams(
            temperature=args.temperature, seed=index, max_tokens=args.max_tokens
        )
        first_turn = bench.Case(cases[index].turns[:1], cases[index].category, cases[index].chat)
        tallies[name].add(bench.run_case(llms[name], first_turn, params)[0])
        print(f"\r{index + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return tallies


def main() -> int:
    args = parse_args()
    tallies = run(args)
    plain = tallies["plain"]
    report = {}
    print("| draft | tokens per pass | nodes per draft | accepted per draft | speed | same ids |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, tally in tallies.items():
        # Without the passes over the prompts, which have no draft.
        passes = tally.num_target_passes - len(tally.token_ids)
        drafts = tally.spec_decode
        same = sum(a == b for a, b in zip(tally.token_ids, plain.token_ids, strict=True))
        report[name] = {
            "tokens_per_pass": tally.num_decoded / max(passes, 1),
            "nodes_per_draft": drafts.num_draft_tokens / max(drafts.num_drafts, 1),
            "accepted_per_draft": drafts.mean_acceptance_length - 1,
            "tokens_per_second": tally.tokens_per_second,
            "speed": tally.tokens_per_second / plain.tokens_per_second,
            "same_ids": same,
        }
        row = report[name]
        print(
            f"| {name} | {row['tokens_per_pass']:.3f} | {row['nodes_per_draft']:.2f} "
            f"| {row['accepted_per_draft']:.3f} | {row['speed']:.2f}x "
            f"| {same} of {len(tally.token_ids)} |"
        )
    print(f"\nplain: {plain.tokens_per_second:.1f} tokens/s")
    if args.output is not None:
        args.output.write_text(json.dumps({"settings": vars(args), "results": report}, default=str))
    return 0 if all(row["same_ids"] == len(plain.token_ids) for row in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
