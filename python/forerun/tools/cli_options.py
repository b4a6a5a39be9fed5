"""Options that several commands of the command line share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.errors import InvalidArgumentError
from forerun.tools.cli_drafters import add_drafter_options, drafter_fields
from forerun.tools.cli_weights import (
    add_device,
    add_gpu_options,
    add_weight_options,
    gpu_options,
    weight_options,
)
from forerun.util.json_files import parse_json

if TYPE_CHECKING:
    from forerun.llm import LLM
    from forerun.outputs import RequestOutput
    from forerun.sampling_params import SamplingParams


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model to run."""
    parser.add_argument("model", metavar="MODEL", help="a directory, a .gguf file or a hub id")


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Options that become SamplingParams."""
    group = parser.add_argument_group("what to generate")
    group.add_argument(
        "--max-tokens", type=int, default=max_tokens, metavar="N", help="default: %(default)s"
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 always takes the most probable token; 1 samples as the model says (default: 0)",
    )
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="the K most probable only")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P")
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1: less of what the prompt and the text have",
    )
    group.add_argument(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="F",
        help="above 0: less of a token for each time the text has it",
    )
    group.add_argument(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="F",
        help="above 0: less of every token that the text has",
    )
    group.add_argument(
        "--logit-bias",
        action="append",
        type=_bias,
        metavar="ID=NUMBER",
        help="make a token more or less probable (-100 to 100)",
    )
    group.add_argument("--bad-word", action="append", metavar="TEXT", help="never write this")
    group.add_argument("--min-tokens", type=int, default=0, metavar="N")
    group.add_argument("--ignore-eos", action="store_true", help="do not stop at the end")
    group.add_argument(
        "--keep-special-tokens", action="store_true", help="show them as part of the text"
    )
    group.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text")


def add_structure(parser: argparse.ArgumentParser) -> None:
    """Options for structured outputs."""
    group = parser.add_argument_group("what the text must be").add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="FILE", help="JSON that follows this schema")
    group.add_argument("--json-object", action="store_true", help="any JSON object")
    group.add_argument("--regex", metavar="REGEX", help="a match of this regular expression")
    group.add_argument("--choice", action="append", metavar="TEXT", help="one of the texts given")
    group.add_argument("--grammar", metavar="FILE", help="a text of this grammar (Lark or GBNF)")


def add_engine(parser: argparse.ArgumentParser, with_method: bool = True) -> None:
    """Options of the engine and of its drafter."""
    group = parser.add_argument_group("how to run")
    if with_method:
        group.add_argument(
            "--method",
            "--spec-method",
            metavar="NAME",
            help="how to draft: none, ngram, suffix, grammar, draft_model, eagle, eagle3, mtp, "
            "mlp_speculator, medusa or hybrid; the text is the same with each (default: suffix, "
            "or the method of --speculative-model)",
        )
        group.add_argument(
            "--speculative-config",
            metavar="JSON",
            help="all fields of speculative_config as in Python, instead of the options for them",
        )
        group.add_argument(
            "--acceptance-method",
            choices=("coupled", "rejection", "block"),
            default="coupled",
            help="when a draft token is accepted: coupled keeps the sampled text of --method none, "
            "rejection and block keep its distribution (default: %(default)s)",
        )
        group.add_argument(
            "--suffix-memory",
            metavar="FILE",
            help="keep outputs in this file, and learn from those of earlier runs (suffix, hybrid)",
        )
        group.add_argument("--stats", action="store_true", help="print speed and acceptance")
    group.add_argument(
        "--num-speculative-tokens",
        "--spec-tokens",
        type=int,
        metavar="N",
        help="the most tokens of a draft",
    )
    group.add_argument(
        "--adaptive",
        action=argparse.BooleanOptionalAction,
        help="shorten drafts that cost more time than they save (default: yes)",
    )
    add_drafter_options(group)
    group.add_argument("--tokenizer", metavar="DIR", help="another tokenizer than the model's")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    add_weight_options(group)
    add_device(group)
    group.add_argument("--num-threads", type=int, default=0, metavar="N", help="0: one per core")
    group.add_argument("--max-model-len", type=int, metavar="N", help="prompt and output together")
    group.add_argument(
        "--kv-cache-memory-bytes", type=int, metavar="N", help="default: what is free, as needed"
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="rows of a step, for which buffers are made: fewer take less memory",
    )
    add_gpu_options(group)


def add_url(parser: argparse.ArgumentParser) -> None:
    """A server to use in place of a model of this process."""
    group = parser.add_argument_group("a running server")
    group.add_argument(
        "--url",
        metavar="URL",
        help="a server with OpenAI's API, such as http://127.0.0.1:8000; MODEL is then its name "
        "there (default: the first that the server has)",
    )
    group.add_argument(
        "--api-key", metavar="KEY", help="for the server (default: that of FORERUN_API_KEY)"
    )


def check_remote(options: argparse.Namespace, with_method: bool) -> None:
    """Refuses options of the engine, which the server has set, and of a server without one."""
    if options.url is None:
        if options.api_key is not None:
            raise InvalidArgumentError("api_key", "a key", "nothing without --url")
        return
    engine = argparse.ArgumentParser()
    add_engine(engine, with_method)
    for name, default in vars(engine.parse_args([])).items():
        value = getattr(options, name)
        if value != default and name != "stats":
            raise InvalidArgumentError(name, value, "nothing with --url: the server has set it")


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """The SamplingParams that the options ask for."""
    from forerun.sampling_params import SamplingParams

    return SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=options.seed,
        stop=options.stop,
        repetition_penalty=options.repetition_penalty,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        logit_bias=dict(options.logit_bias) if options.logit_bias else None,
        bad_words=options.bad_word,
        min_tokens=options.min_tokens,
        ignore_eos=options.ignore_eos,
        skip_special_tokens=not options.keep_special_tokens,
        structured_outputs=structure(options) if "json_schema" in options else None,
    )


def structure(options: argparse.Namespace) -> dict[str, Any] | None:
    """The structured_outputs that the options of `add_structure` ask for."""
    given = {
        "json": _read("json-schema", options.json_schema),
        "json_object": options.json_object or None,
        "regex": options.regex,
        "choice": options.choice,
        "grammar": _read("grammar", options.grammar),
    }
    fields = {name: value for name, value in given.items() if value is not None}
    return fields or None


def _read(field: str, path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(field, path, f"a readable text file: {error}") from error


def _bias(text: str) -> tuple[int, float]:
    token, _, number = text.partition("=")
    return int(token), float(number)


def speculative_configs_of(
    options: argparse.Namespace, methods: Sequence[str]
) -> dict[str, dict[str, Any] | None]:
    """A speculative_config per method name."""
    from forerun.tools.bench import speculative_configs

    return speculative_configs(
        methods,
        options.num_speculative_tokens,
        getattr(options, "acceptance_method", "coupled"),
        drafter_fields(options),
        options.adaptive,
    )


def load(options: argparse.Namespace, config: dict[str, Any] | None) -> LLM:
    """Loads the model."""
    from forerun.llm import LLM

    return LLM(
        options.model,
        tokenizer=options.tokenizer,
        revision=options.revision,
        speculative_config=config,
        **weight_options(options),
        device=options.device,
        num_threads=options.num_threads,
        max_model_len=options.max_model_len,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        max_num_batched_tokens=options.max_num_batched_tokens,
        **gpu_options(options),
        suffix_memory=getattr(options, "suffix_memory", None),
        max_num_seqs=1,
    )


def load_with_method(options: argparse.Namespace) -> LLM:
    """Loads the model with the drafter that the options ask for."""
    given = {"method": options.method, **drafter_fields(options)}
    given |= {name: getattr(options, name) for name in ("num_speculative_tokens", "adaptive")}
    if options.speculative_config is not None:
        for name, value in given.items():
            if value is not None:
                raise InvalidArgumentError(name, value, "nothing with --speculative-config")
        field = "speculative_config"
        config = parse_json(
            options.speculative_config, field, "a JSON object", InvalidArgumentError
        )
        return load(options, config)
    method = options.method or ("model" if options.speculative_model else "suffix")
    return load(options, speculative_configs_of(options, [method])[method])


def model_name(model: str) -> str:
    """What to call a model: its hub id, or the last part of its path."""
    path = Path(model).expanduser()
    if not os.path.exists(path):
        return model
    return path.stem if os.path.isfile(path) else path.resolve().name


def show(text: str) -> None:
    """Writes a piece of text at once."""
    print(text, end="", flush=True)


def print_stats(output: RequestOutput) -> None:
    """Writes speed and acceptance of one request to standard error."""
    metrics = output.metrics
    if metrics is None:
        return
    seconds = metrics.total_seconds - metrics.first_token_seconds
    speed = (metrics.num_generated_tokens - 1) / seconds if seconds > 0 else 0.0
    print(
        f"[{metrics.num_generated_tokens} tokens, {speed:.1f} tokens/s, first token after "
        f"{metrics.first_token_seconds:.2f} s, {metrics.tokens_per_target_pass:.2f} tokens per "
        f"target pass, mean acceptance length {metrics.spec_decode.mean_acceptance_length:.2f}]",
        file=sys.stderr,
    )
