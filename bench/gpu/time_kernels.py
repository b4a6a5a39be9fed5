"""Times the calls of `forerun.kernels` on a GPU, beside their bytes and torch's way of the same.

Prints one JSON: per case the median time of a call from Python to its results, the time that
reading the logits once takes at the bandwidth given, and, where torch has CUDA, the time of the
same in torch. Every answer is checked against the CPU's before it is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from forerun import _core, kernels

NUM_DRAFT_TOKENS = 4
SAMPLED = {"temperature": 0.8, "seed": 7}


@dataclass(frozen=True)
class Case:
    """A call, by the function of `forerun.kernels` and its rule."""

    name: str
    function: str
    rule: dict[str, Any]


CASES = [
    Case("verify greedy", "verify", {}),
    Case("verify coupled", "verify", SAMPLED),
    Case("verify coupled, top_k 50", "verify", {**SAMPLED, "top_k": 50}),
    Case("verify coupled, top_p 0.9", "verify", {**SAMPLED, "top_p": 0.9}),
    Case("verify rejection", "verify", {**SAMPLED, "acceptance_method": "rejection"}),
    Case("verify block", "verify", {**SAMPLED, "acceptance_method": "block"}),
    Case("sample", "sample", SAMPLED),
    Case("top 8", "top", {}),
]


def random_logits(num_rows: int, vocab: int) -> np.ndarray:
    """Peaked rows, as language models have: [num_rows, vocab] float32."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((num_rows, vocab), np.float32)
    logits[np.arange(num_rows), rng.integers(0, vocab, num_rows)] += 12.0
    return logits


def call_of(case: Case, logits: Any, drafts: list[list[int]]) -> Callable[[], Any]:
    rule = kernels.SamplingRule(**case.rule)
    if case.function == "verify":
        return lambda: kernels.verify(logits, drafts, rule).tokens
    if case.function == "sample":
        return lambda: kernels.sample(logits, rule).tokens
    return lambda: kernels.top(logits, 8).tokens


def torch_call(case: Case, logits: np.ndarray) -> Callable[[], Any] | None:
    """What a loop in torch does for the same rows, without the walk along the drafts."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    rows = torch.from_numpy(logits).cuda()
    if case.function == "top":
        return lambda: torch.topk(torch.softmax(rows, -1), 8).indices.cpu()
    if not case.rule:
        return lambda: rows.argmax(-1).cpu()

    def sampled() -> Any:
        scaled = rows / case.rule["temperature"]
        if "top_k" in case.rule:
            least = torch.topk(scaled, case.rule["top_k"]).values[:, -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        if "top_p" in case.rule:
            ordered, ids = scaled.sort(descending=True)
            probs = torch.softmax(ordered, -1)
            ordered[probs.cumsum(-1) - probs >= case.rule["top_p"]] = -torch.inf
            scaled = torch.empty_like(scaled).scatter_(1, ids, ordered)
        return torch.multinomial(torch.softmax(scaled, -1), 1).cpu()

    return sampled


def median_us(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e6, 1)


def time_case(case: Case, shape: tuple[int, int], bandwidth: float, repeats: int) -> dict[str, Any]:
    num_requests, vocab = shape
    logits = random_logits(num_requests * (NUM_DRAFT_TOKENS + 1), vocab)
    best = logits.argmax(1).reshape(num_requests, NUM_DRAFT_TOKENS + 1)
    drafts = best[:, :NUM_DRAFT_TOKENS].tolist()
    array = _core.DeviceArray(logits.tobytes(), "float32", list(logits.shape), [vocab, 1], 0)
    call, expected = call_of(case, array, drafts), call_of(case, logits, drafts)()
    if not np.array_equal(call(), expected):
        raise SystemExit(f"{case.name}, {shape}: the GPU's answer is not the CPU's")
    in_torch = torch_call(case, logits)
    return {
        "case": case.name,
        "requests": num_requests,
        "rows": len(logits),
        "vocab": vocab,
        "us": median_us(call, repeats),
        "floor_us": round(logits.nbytes / bandwidth * 1e6, 1),
        "torch_us": None if in_torch is None else median_us(in_torch, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 128256])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes per second")
    args = parser.parse_args()
    shapes = [(requests, vocab) for vocab in args.vocab for requests in args.requests]
    timings = [
        time_case(case, shape, args.bandwidth, args.repeats) for shape in shapes for case in CASES
    ]
    print(json.dumps(timings))


if __name__ == "__main__":
    main()
