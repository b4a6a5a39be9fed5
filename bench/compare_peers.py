"""Forerun beside transformers and llama.cpp on the demo's prompts, in turns, in one run.

    python bench/compare_peers.py MODEL_DIR [--llama-bench BINARY --gguf BF16_FILE] [--rounds N]

MODEL_DIR is a converted Hugging Face directory. Prints the medians over the rounds of decoded
tokens/s without prefill, and ratios. llama-bench decodes at the same context lengths; it has no
prompts. transformers is optional.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from forerun import LLM, SamplingParams
from forerun.tools.demo import prompts

NUM_TOKENS = 64


def forerun_rate(llm: LLM, ids: list[int], params: SamplingParams) -> float:
    llm.reset_caches()
    [output] = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
    metrics = output.metrics
    assert metrics is not None
    seconds = metrics.total_seconds - metrics.first_token_seconds
    return (metrics.num_generated_tokens - 1) / seconds


class Transformers:
    """Greedy decoding in bfloat16 with a KV cache."""

    def __init__(self, model: Path, num_threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(num_threads)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16
        ).eval()

    def rate(self, ids: list[int], num_tokens: int) -> float:
        torch = self.torch
        with torch.no_grad():
            out = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            begin = time.perf_counter()
            for _ in range(num_tokens - 1):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
            return (num_tokens - 1) / (time.perf_counter() - begin)


def llama_rate(binary: str, gguf: str, depth: int, num_tokens: int, num_threads: int) -> float:
    command = [binary, "-m", gguf, "-p", "0", "-n", str(num_tokens), "-d", str(depth)]
    command += ["-t", str(num_threads), "-r", "1", "-o", "json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(result[-1]["avg_ts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", help="path of llama.cpp's llama-bench")
    parser.add_argument("--gguf", help="the same model in BF16, for llama-bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-transformers", action="store_true")
    arguments = parser.parse_args()

    configs: dict[str, Any] = {
        "none": None,
        "ngram": {"method": "ngram", "num_speculative_tokens": 5},
        "suffix": {"method": "suffix"},
    }
    llms = {
        name: LLM(arguments.model, dtype="bfloat16", max_model_len=2048, speculative_config=config)
        for name, config in configs.items()
    }
    num_threads = llms["none"].limits.num_threads
    peer = None
    if not arguments.without_transformers:
        peer = Transformers(arguments.model, num_threads)

    for name, (prompt, params) in prompts(llms["none"]).items():
        ids = list(prompt["prompt_token_ids"])
        rates: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for method, llm in llms.items():
                rates.setdefault(method, []).append(forerun_rate(llm, ids, params))
            if peer is not None:
                rates.setdefault("transformers", []).append(peer.rate(ids, NUM_TOKENS // 2))
            if arguments.llama_bench:
                rate = llama_rate(
                    arguments.llama_bench, arguments.gguf, len(ids), NUM_TOKENS, num_threads
                )
                rates.setdefault("llama.cpp", []).append(rate)
        plain = statistics.median(rates["none"])
        print(f"{name}, {len(ids)} prompt tokens")
        for method, values in rates.items():
            median = statistics.median(values)
            print(
                f"  {method:14} {median:7.1f} tokens/s ({min(values):.1f}-{max(values):.1f})"
                f"  x{median / plain:.2f} of plain"
            )


if __name__ == "__main__":
    main()
