"""Mean acceptance length of the three acceptance methods on a model's own drafts.

    python bench/acceptance_lengths.py MODEL_DIR PROMPTS.jsonl [--limit N] [--temperature T]

Every method samples the first turn of the same prompts with the same seeds and a draft length that
does not adapt. The drafts differ all the same: texts part after the first token that does.
"""

from __future__ import annotations

import argparse

from forerun import LLM, SamplingParams
from forerun.tools.bench import read_cases

METHODS = ("coupled", "rejection", "block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--limit", type=int, default=60, help="prompts, spread over the file")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--draft-method", choices=("ngram", "suffix"), default="suffix")
    parser.add_argument("--num-speculative-tokens", type=int, default=8)
    options = parser.parse_args()

    cases = read_cases(options.prompts)
    cases = cases[:: max(1, len(cases) // options.limit)][: options.limit]
    params = [
        SamplingParams(temperature=options.temperature, max_tokens=options.max_tokens, seed=seed)
        for seed in range(len(cases))
    ]
    print(f"{'method':10} {'mean acceptance length':>23} {'accepted / drafted':>20}")
    for method in METHODS:
        config = {
            "method": options.draft_method,
            "num_speculative_tokens": options.num_speculative_tokens,
            "acceptance_method": method,
            "adaptive": False,
        }
        llm = LLM(options.model, speculative_config=config, max_num_seqs=8)
        prompts = [llm.render_chat([{"role": "user", "content": case.turns[0]}]) for case in cases]
        llm.generate(prompts, params, use_tqdm=False)
        counters = llm.metrics().spec_decode
        print(
            f"{method:10} {counters.mean_acceptance_length:23.3f} "
            f"{counters.num_accepted_tokens:11} / {counters.num_draft_tokens}",
            flush=True,
        )


if __name__ == "__main__":
    main()
