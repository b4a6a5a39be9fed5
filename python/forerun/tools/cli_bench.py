"""The command `forerun bench`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.tools.cli_options import (
    add_engine,
    add_model,
    add_sampling,
    load,
    model_name,
    sampling_params,
    speculative_configs_of,
)


def add_bench(commands: Any) -> None:
    """The command `forerun bench`."""
    bench = commands.add_parser(
        "bench",
        help="compare the speed of drafting methods",
        description="Runs the same prompts with each method, one request at a time and in turns, "
        "and prints medians. Each method has its own copy of the model in memory. The exit status "
        "is 1 if a method wrote other tokens than the first.",
    )
    add_model(bench)
    bench.add_argument(
        "prompts",
        metavar="PROMPTS.jsonl",
        help='a line per prompt: {"prompt": "text"}, or {"turns": ["text", ...], "category": '
        '"name"} for chats',
    )
    bench.add_argument(
        "--methods",
        metavar="LIST",
        help="default: none,ngram,suffix, and model where there is a --speculative-model",
    )
    bench.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    bench.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="repetitions (default: %(default)s)"
    )
    bench.add_argument("--output", metavar="FILE.json", help="write all numbers here")
    bench.add_argument("--plot", metavar="FILE.png", help="draw a picture (needs the extra 'plot')")
    add_sampling(bench, max_tokens=128)
    add_engine(bench, with_method=False)
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from forerun.tools import bench, report

    params = sampling_params(options)
    if options.rounds < 1:
        raise InvalidArgumentError("rounds", options.rounds, "an integer of at least 1")
    for name in ("output", "plot"):
        _check_writable(name, getattr(options, name))
    if options.plot:
        if not options.plot.lower().endswith((".png", ".svg", ".pdf")):
            raise InvalidArgumentError("plot", options.plot, "a .png, .svg or .pdf file")
        report.new_figure(options.plot)
    methods = list(bench.METHODS) + ["model"] * bool(options.speculative_model)
    if options.methods is not None:
        methods = [method.strip() for method in options.methods.split(",")]
    configs = speculative_configs_of(options, methods)
    cases = bench.read_cases(options.prompts, options.limit)
    llms = {method: load(options, config) for method, config in configs.items()}
    result = bench.compare(
        llms, cases, params, rounds=options.rounds, model_name=model_name(options.model)
    )
    print(report.bench_table(result))
    print(
        f"\n{result['model_name']}: median of {options.rounds} round(s), "
        f"{result['num_threads']} threads, {result['dtype']}, {result['machine']['isa']}; "
        f"this process reads {result['read_bandwidth_bytes_per_second'] / 1e9:.1f} GB/s"
    )
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        report.draw(result, options.plot)
    return 0 if all(summary["same_tokens"] for summary in result["methods"].values()) else 1


def _check_writable(name: str, path: str | None) -> None:
    """Finds out before the measurement that its result has nowhere to go."""
    if path is not None and (
        os.path.isdir(Path(path)) or not os.path.isdir(Path(path).absolute().parent)
    ):
        raise InvalidArgumentError(name, path, "a file in an existing directory")
