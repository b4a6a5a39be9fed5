"""Times a model in the engine on a GPU: its steps, its speculation, its prompts.

    python bench/gpu/time_engine.py MODEL [--bandwidth BYTES_PER_SECOND] [--tiny]

MODEL is a directory, or the name of a shape of random_checkpoint.py, which is written to --cache
first. Prints lines of JSON, one a figure, and adds them to --figures. A drafter here replays what
plain decoding wrote, wrong in a given share of its tokens, and the ids are compared with those of
plain decoding.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from device_bandwidth import measure_bandwidth
from figures import FULL, HOST, PLAIN, TINY, Report, Sizes, prompt_rate, step_by_one
from random_checkpoint import SHAPES, num_layer_weights, write_random_checkpoint

from forerun import _core

ACCEPTANCES = (0.6, 0.8, 0.9)
NUM_DRAFT_TOKENS = 4
LONGEST_MATCH = 900  # that long the drafter's matches never are: it stays silent


@dataclass
class Decoded:
    """One request: its ids, and what came of its steps after the prompt's."""

    ids: list[int]
    step_seconds: list[float]
    host_seconds: float  # outside the forward passes and the waits for verdicts
    num_drafted: int
    num_accepted: int

    @property
    def tokens_per_second(self) -> float:
        return (len(self.ids) - 1) / sum(self.step_seconds)


class Bench:
    """One engine for one request at a time."""

    def __init__(self, model: Path, sizes: Sizes, device: str) -> None:
        options = _core.EngineOptions()
        options.model, options.device, options.dtype = str(model), device, "bfloat16"
        options.max_num_seqs = 1
        options.max_num_batched_tokens = max(*sizes.prompts, *sizes.rows)
        options.max_model_len = sizes.max_len
        silent = _core.NgramOptions()
        silent.prompt_lookup_min = silent.prompt_lookup_max = LONGEST_MATCH
        speculative = _core.SpeculativeOptions()
        speculative.method, speculative.adaptive = silent, False
        speculative.num_speculative_tokens = max(sizes.rows) - 1
        options.speculative = speculative
        self.sizes = sizes
        self.engine = _core.Engine(options)
        self.vocab_size = self.engine.limits.vocab_size

    def prompt(self, num_tokens: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.integers(0, self.vocab_size, num_tokens, dtype=np.int32)

    def decode(
        self,
        num_tokens: int,
        prediction: Sequence[int] = (),
        num_drafted: int = 0,
        max_steps: int | None = None,
    ) -> Decoded:
        """Greedy, after the same prompt each time."""
        params = _core.SamplingParams()
        params.temperature, params.ignore_eos, params.max_tokens = 0.0, True, num_tokens
        params.max_draft_tokens = num_drafted
        given = _core.SubmitOptions(prediction=_core.Prediction(list(prediction)))
        engine, ids, seconds = self.engine, [], []
        request = engine.submit(self.prompt(self.sizes.context), params, options=given)
        while not ids:
            ids += [token for update in engine.step() for token in update.new_tokens]
        before = engine.metrics()
        while engine.has_unfinished() and len(seconds) != max_steps:
            begin = time.perf_counter()
            updates = engine.step()
            seconds.append(time.perf_counter() - begin)
            ids += [token for update in updates for token in update.new_tokens]
        after = engine.metrics()
        engine.cancel(request)
        while engine.has_unfinished():
            engine.step()
        on_device = after.model_seconds + after.verify_seconds
        on_device -= before.model_seconds + before.verify_seconds
        drafts, earlier = after.spec_decode, before.spec_decode
        return Decoded(
            ids,
            seconds,
            sum(seconds) - on_device,
            drafts.num_draft_tokens - earlier.num_draft_tokens,
            drafts.num_accepted_tokens - earlier.num_accepted_tokens,
        )

    def prefill_seconds(self, num_tokens: int, seed: int) -> float:
        """From the first step of a prompt to its first token, with nothing cached."""
        engine = self.engine
        engine.reset_caches()
        params = _core.SamplingParams()
        params.temperature, params.max_tokens = 0.0, 1
        engine.submit(self.prompt(num_tokens, seed), params)
        begin = time.perf_counter()
        while engine.has_unfinished():
            engine.step()
        return time.perf_counter() - begin


def replay(ids: Sequence[int], share_right: float, vocab_size: int, seed: int) -> list[int]:
    """A prediction of ids in which each is drafted right with that probability.

    A wrong token comes before the right one, which the verification then emits: the prediction is
    found again after it, and goes on.
    """
    rng = random.Random(seed)
    prediction = []
    for token in ids:
        if rng.random() >= share_right:
            prediction.append((token + 1 + rng.randrange(vocab_size - 1)) % vocab_size)
        prediction.append(token)
    return prediction


def time_decoding(bench: Bench, plain: Decoded, bandwidth: float, report: Report) -> None:
    """Tokens a second of plain decoding, and of drafts of set acceptance."""
    sizes = bench.sizes
    runs = [bench.decode(sizes.num_decoded) for _ in range(sizes.num_rounds)]
    speed = statistics.median(run.tokens_per_second for run in runs)
    floor = bench.engine.limits.num_bytes_per_token / bandwidth
    report.add(PLAIN, speed, "tokens/s", share=round(speed * floor, 3))
    host = statistics.median(run.host_seconds / len(run.step_seconds) for run in runs)
    report.add(HOST, 1e6 * host, "us")
    for share_right in ACCEPTANCES:
        what = f"{NUM_DRAFT_TOKENS} drafts, {share_right} right"
        runs = []
        for seed in range(sizes.num_rounds):
            prediction = replay(plain.ids, share_right, bench.vocab_size, seed)
            runs.append(bench.decode(sizes.num_decoded, prediction, NUM_DRAFT_TOKENS))
            report.compare(what, runs[-1].ids, plain.ids)
        median = statistics.median(run.tokens_per_second for run in runs)
        num_steps = sum(len(run.step_seconds) for run in runs)
        per_step = sum(len(run.ids) - 1 for run in runs) / num_steps
        report.add(what, median, "tokens/s", tokens_per_step=round(per_step, 2))
        report.add(f"{what}, by plain", median / speed, "x")


def time_steps(bench: Bench, plain: Decoded, bandwidth: float, report: Report) -> None:
    """Steps of so many rows, none of whose draft tokens is accepted: the context hardly grows."""
    sizes = bench.sizes
    seconds: dict[int, list[float]] = {rows: [] for rows in sizes.rows}
    wrong = replay(plain.ids, 0.0, bench.vocab_size, seed=1)
    for _, rows in itertools.product(range(sizes.num_rounds), sizes.rows):
        run = bench.decode(sizes.num_known, wrong, rows - 1, sizes.num_steps)
        report.compare(f"{rows} rows", run.ids, plain.ids)
        if (run.num_drafted, run.num_accepted) != ((rows - 1) * sizes.num_steps, 0):
            report.problems.append(f"{rows} rows: {run.num_drafted} draft tokens were verified")
        seconds[rows] += run.step_seconds
    one = statistics.median(seconds[1])
    floor = bench.engine.limits.num_bytes_per_token / bandwidth
    for rows in sizes.rows:
        median = statistics.median(seconds[rows])
        name = "row" if rows == 1 else "rows"
        report.add(f"step of {rows} {name}", 1e3 * median, "ms", share=round(floor / median, 3))
        if rows > 1:
            report.add(step_by_one(rows), median / one, "x")


def time_prompts(bench: Bench, config: dict[str, Any], report: Report) -> None:
    """Of the layers' products: what attention and the head compute is not counted."""
    for num_tokens in bench.sizes.prompts:
        bench.prefill_seconds(num_tokens, seed=0)
        times = [
            bench.prefill_seconds(num_tokens, seed=1 + i) for i in range(bench.sizes.num_rounds)
        ]
        seconds = statistics.median(times)
        rate = 2 * num_layer_weights(config) * num_tokens / seconds
        report.add(f"prompt of {num_tokens}", 1e3 * seconds, "ms")
        report.add(prompt_rate(num_tokens), rate / 1e12, "TFLOP/s")


def measure(model: Path, sizes: Sizes, device: str, bandwidth: float, report: Report) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    begin = time.perf_counter()
    bench = Bench(model, sizes.within(config["max_position_embeddings"]), device)
    report.add("load", time.perf_counter() - begin, "s")
    report.add("bandwidth that floors count with", bandwidth / 1e9, "GB/s")
    plain = bench.decode(sizes.num_known)
    time_decoding(bench, plain, bandwidth, report)
    time_steps(bench, plain, bandwidth, report)
    time_prompts(bench, config, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a directory, or one of " + ", ".join(SHAPES))
    parser.add_argument("--cache", type=Path, default=Path("build/gpu/models"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--bandwidth", type=float, help="bytes per second; default: measured")
    parser.add_argument("--figures", type=Path, help="a file for the same lines")
    parser.add_argument("--tiny", action="store_true", help="a few tokens: tries this script")
    args = parser.parse_args()
    model = Path(args.model)
    if args.model in SHAPES:
        model = write_random_checkpoint(SHAPES[args.model], args.cache / args.model)
    report = Report("forerun", model.name, args.figures)
    bandwidth = args.bandwidth or measure_bandwidth()
    measure(model, TINY if args.tiny else FULL, args.device, bandwidth, report)
    if report.problems:
        raise SystemExit("\n".join(report.problems))


if __name__ == "__main__":
    main()
