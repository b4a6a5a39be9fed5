"""The command `forerun bench`."""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.errors import InvalidArgumentError
from forerun.tools.cli_options import (
    add_engine,
    add_model,
    add_sampling,
    add_url,
    check_remote,
    load,
    model_name,
    sampling_params,
    speculative_configs_of,
)
from forerun.tools.cli_weights import weight_options

if TYPE_CHECKING:
    from forerun.tools.bench import Case


def add_bench(commands: Any) -> None:
    """The command `forerun bench`."""
    bench = commands.add_parser(
        "bench",
        help="compare the speed of drafting methods",
        description="Runs the same prompts with each method, one request at a time and in turns, "
        "and prints medians. Each method has its own copy of the model in memory. The exit status "
        "is 1 if a method wrote other tokens than the first. With --url, which needs a server of "
        "Forerun's, its drafts are compared with plain decoding: 'forerun bench --url URL "
        "PROMPTS.jsonl'.",
    )
    add_model(bench)
    bench.add_argument(
        "prompts",
        nargs="?",
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
    bench.add_argument(
        "--profile",
        action="store_true",
        help="instead, show where the time of a forward pass goes, beside how fast this machine "
        "reads and computes",
    )
    bench.add_argument("--output", metavar="FILE.json", help="write all numbers here")
    bench.add_argument("--plot", metavar="FILE.png", help="draw a picture (needs the extra 'plot')")
    add_sampling(bench, max_tokens=128)
    add_engine(bench, with_method=False)
    add_url(bench)
    bench.set_defaults(run=functools.partial(_bench, bench), optional="prompts")


_OF_PROFILE = {
    *("model", "profile", "rounds", "output", "revision", "dtype", "quantization"),
    *("kv_cache_dtype", "num_threads", "max_model_len"),
}


def _bench(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from forerun.tools import bench, report

    check_remote(options, with_method=False)
    if options.profile:
        return _profile(parser, options)
    if options.url is not None and options.prompts is None:  # the one argument given is the file
        options.model, options.prompts = None, options.model
    if options.prompts is None:
        raise InvalidArgumentError("prompts", None, "a JSONL file after MODEL")
    if options.rounds < 1:
        raise InvalidArgumentError("rounds", options.rounds, "an integer of at least 1")
    for name in ("output", "plot"):
        _check_writable(name, getattr(options, name))
    measure = _measure_local if options.url is None else _measure_server
    result = measure(options, lambda: bench.read_cases(options.prompts, options.limit))
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        report.draw(result, options.plot)
    return 0 if all(summary["same_tokens"] for summary in result["methods"].values()) else 1


def _profile(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from forerun.tools import profile

    for name, value in vars(options).items():
        if name not in _OF_PROFILE and value != parser.get_default(name):
            raise InvalidArgumentError(name, value, "nothing with --profile")
    _check_writable("output", options.output)
    passes = profile.profile_passes(
        options.model,
        report=lambda each: print(profile.pass_table(each) + "\n"),
        rounds=options.rounds,
        revision=options.revision,
        num_threads=options.num_threads,
        max_model_len=options.max_model_len,
        **weight_options(options),
    )
    print(profile.LEGEND)
    if options.output:
        text = json.dumps([profile.as_dict(each) for each in passes], indent=2)
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    return 0


def _measure_local(
    options: argparse.Namespace, read_cases: Callable[[], list[Case]]
) -> dict[str, Any]:
    from forerun.tools import bench, report

    params = sampling_params(options)
    if options.plot:
        if not options.plot.lower().endswith((".png", ".svg", ".pdf")):
            raise InvalidArgumentError("plot", options.plot, "a .png, .svg or .pdf file")
        report.new_figure(options.plot)
    methods = list(bench.METHODS) + ["model"] * bool(options.speculative_model)
    if options.methods is not None:
        methods = [method.strip() for method in options.methods.split(",")]
    configs = speculative_configs_of(options, methods)
    cases = read_cases()
    llms = {method: load(options, config) for method, config in configs.items()}
    result = bench.compare(
        llms, cases, params, rounds=options.rounds, model_name=model_name(options.model)
    )
    print(report.bench_table(result))
    bandwidth = result["read_bandwidth_bytes_per_second"]
    reads = f"; this process reads {bandwidth / 1e9:.1f} GB/s" if bandwidth else ""
    print(
        f"\n{result['model_name']}: median of {options.rounds} round(s), "
        f"{report.machine(result)}; weights: {report.formats(result['weight_bytes'])}, "
        f"{result['weight_bytes_per_token'] / 1e6:.0f} MB per token; "
        f"KV cache: {result['kv_cache_dtype']}{reads}"
    )
    return result


def _measure_server(
    options: argparse.Namespace, read_cases: Callable[[], list[Case]]
) -> dict[str, Any]:
    from forerun.tools import report
    from forerun.tools.bench_server import compare_on_server
    from forerun.tools.remote import RemoteModel, request_fields

    fields = request_fields(sampling_params(options), None)
    for name in ("methods", "plot"):
        if getattr(options, name) is not None:
            raise InvalidArgumentError(name, getattr(options, name), "nothing with --url")
    cases = read_cases()
    model = RemoteModel(options.url, options.model, options.api_key)
    result = compare_on_server(model, cases, fields, rounds=options.rounds)
    print(report.bench_table(result))
    print(f"\n{model.name} at {options.url}: median of {options.rounds} round(s)")
    return result


def _check_writable(name: str, path: str | None) -> None:
    """Finds out before the measurement that its result has nowhere to go."""
    if path is not None and (
        os.path.isdir(Path(path)) or not os.path.isdir(Path(path).absolute().parent)
    ):
        raise InvalidArgumentError(name, path, "a file in an existing directory")
