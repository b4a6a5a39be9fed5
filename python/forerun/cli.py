"""The command line: forerun generate | chat | bench | convert | inspect | selftest | train."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.cli_drafters import add_drafter_options, add_selftest, drafter_fields
from forerun.cli_train import add_train
from forerun.errors import CheckpointError, ForerunError, InvalidArgumentError
from forerun.version import package_version

if TYPE_CHECKING:
    from forerun.llm import LLM
    from forerun.outputs import RequestOutput
    from forerun.sampling_params import SamplingParams

_DESCRIPTION = """\
Generates text from language models with speculative decoding: guesses several tokens ahead,
checks all guesses in one pass of the model, and so writes the same text faster.

MODEL is a Hugging Face model directory, a .gguf file (converted once into a cache), or the id of
a model on the Hugging Face hub (downloaded once)."""

_EXAMPLES = """\
examples:
  forerun generate MODEL "Once upon a time" --max-tokens 100
  forerun chat MODEL
  forerun bench MODEL prompts.jsonl --plot speed.png
  forerun convert model.gguf model-directory
  forerun inspect checkpoint-directory
  forerun selftest MODEL DRAFTER
  forerun train eagle3 --model MODEL --out head-directory

'forerun COMMAND --help' says more about a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    _tolerate_encodings()
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except ForerunError as error:
        print(f"forerun: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; say nothing at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _tolerate_encodings() -> None:
    """Shows what a terminal cannot write as `?`, and leaves wrong input to the checks of text."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "forerun",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=package_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    generate = commands.add_parser(
        "generate", help="continue a text", description="Continues a text; shows it as it is made."
    )
    _add_model(generate)
    generate.add_argument("prompt", nargs="?", help="the text; standard input where it is left out")
    _add_sampling(generate, max_tokens=256)
    _add_structure(generate)
    _add_engine(generate)
    generate.set_defaults(run=_generate)

    chat = commands.add_parser(
        "chat",
        help="talk with a model",
        description="Talks with a model that has a chat template. /reset starts anew, /quit ends; "
        "Ctrl-C stops an answer.",
    )
    _add_model(chat)
    chat.add_argument("--system", metavar="TEXT", help="how the model should behave")
    _add_sampling(chat, max_tokens=1024)
    _add_structure(chat)
    _add_engine(chat)
    chat.set_defaults(run=_chat)

    _add_bench(commands)

    convert = commands.add_parser(
        "convert",
        help="turn a .gguf file into a model directory",
        description="Writes the model of a GGUF file (Llama or Gemma 3 family, any quantization) "
        "as a Hugging Face directory in bfloat16.",
    )
    convert.add_argument("gguf", metavar="FILE.gguf")
    convert.add_argument("directory", metavar="OUT_DIR", help="a new or empty directory")
    convert.set_defaults(run=_convert)

    inspect = commands.add_parser(
        "inspect",
        help="tell what a checkpoint directory holds",
        description="Tells from tensors and config what a directory is: a language model, or a "
        "drafter of which method, for which target, and what its config leaves open. Reads no "
        "weights.",
    )
    inspect.add_argument("path", metavar="PATH", help="a directory with config.json and weights")
    inspect.add_argument("--method", metavar="NAME", help="fail unless it can serve as this")
    inspect.add_argument("--target", metavar="DIR", help="fail unless it fits this model")
    inspect.set_defaults(run=_inspect)

    add_selftest(commands)
    add_train(commands)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="compare the speed of drafting methods",
        description="Runs the same prompts with each method, one request at a time and in turns, "
        "and prints medians. Each method has its own copy of the model in memory.",
    )
    _add_model(bench)
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
    bench.add_argument("--plot", metavar="FILE.png", help="draw a picture (needs matplotlib)")
    _add_sampling(bench, max_tokens=128)
    _add_engine(bench, with_method=False)
    bench.set_defaults(run=_bench)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a directory, a .gguf file or a hub id")


def _add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
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
    group.add_argument("--ignore-eos", action="store_true", help="go on where the model would end")
    group.add_argument(
        "--keep-special-tokens", action="store_true", help="show them as part of the text"
    )
    group.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text")


def _add_structure(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the text must be").add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="FILE", help="JSON that follows this schema")
    group.add_argument("--json-object", action="store_true", help="any JSON object")
    group.add_argument("--regex", metavar="REGEX", help="a match of this regular expression")
    group.add_argument("--choice", action="append", metavar="TEXT", help="one of the texts given")
    group.add_argument("--grammar", metavar="FILE", help="a text of this grammar (Lark or GBNF)")


def _structure(options: argparse.Namespace) -> dict[str, Any] | None:
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


def _add_engine(parser: argparse.ArgumentParser, with_method: bool = True) -> None:
    group = parser.add_argument_group("how to run")
    if with_method:
        group.add_argument(
            "--method",
            metavar="NAME",
            help="how to guess ahead: none, ngram, suffix, grammar, draft_model, eagle, eagle3, "
            "mtp, mlp_speculator, medusa or hybrid; the text is the same with each (default: "
            "suffix, or what --speculative-model is)",
        )
        group.add_argument(
            "--acceptance-method",
            choices=("coupled", "rejection", "block"),
            default="coupled",
            help="when a guess is accepted: rejection and block sample other texts than --method "
            "none would, equally likely ones (default: %(default)s)",
        )
        group.add_argument("--stats", action="store_true", help="print speed and acceptance")
    group.add_argument(
        "--num-speculative-tokens", type=int, metavar="N", help="the most tokens to guess at once"
    )
    add_drafter_options(group)
    group.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    group.add_argument("--num-threads", type=int, default=0, metavar="N", help="0: one per core")
    group.add_argument("--max-model-len", type=int, metavar="N", help="prompt and output together")


def _configs(
    options: argparse.Namespace, methods: Sequence[str]
) -> dict[str, dict[str, Any] | None]:
    from forerun.bench import speculative_configs

    return speculative_configs(
        methods,
        options.num_speculative_tokens,
        getattr(options, "acceptance_method", "coupled"),
        drafter_fields(options),
    )


def _load(options: argparse.Namespace, config: dict[str, Any] | None) -> LLM:
    from forerun.llm import LLM

    return LLM(
        options.model,
        speculative_config=config,
        dtype=options.dtype,
        num_threads=options.num_threads,
        max_model_len=options.max_model_len,
        max_num_seqs=1,
    )


def _load_with_method(options: argparse.Namespace) -> LLM:
    method = options.method or ("model" if options.speculative_model else "suffix")
    return _load(options, _configs(options, [method])[method])


def _params(options: argparse.Namespace) -> SamplingParams:
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
        structured_outputs=_structure(options) if "json_schema" in options else None,
    )


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _print_stats(output: RequestOutput) -> None:
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


def _generate(options: argparse.Namespace) -> int:
    from forerun.bench import run_prompt

    params = _params(options)
    prompt = options.prompt if options.prompt is not None else sys.stdin.read()
    llm = _load_with_method(options)
    _show(prompt)
    output = run_prompt(llm, prompt, params, _show)
    print()
    if options.stats:
        _print_stats(output)
    return 0


def _chat(options: argparse.Namespace) -> int:
    params = _params(options)
    llm = _load_with_method(options)
    if llm.get_tokenizer().chat_template is None:
        raise InvalidArgumentError("model", options.model, "a model with a chat template")
    system = [{"role": "system", "content": options.system}] if options.system else []
    messages = list(system)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        if line in ("/quit", "/exit"):
            return 0
        if line == "/reset":
            messages = list(system)
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append(
                {"role": "assistant", "content": _answer(options, llm, messages, params)}
            )


def _answer(
    options: argparse.Namespace, llm: LLM, messages: list[dict[str, str]], params: SamplingParams
) -> str:
    """Streams one answer; Ctrl-C stops it and keeps what there is."""
    text = ""
    try:
        with llm.stream(llm.render_chat(messages), params) as stream:
            for delta in stream:
                text += delta.text
                _show(delta.text)
                if delta.output is not None and options.stats:
                    print()
                    _print_stats(delta.output)
    except KeyboardInterrupt:
        pass
    print()
    return text


def _bench(options: argparse.Namespace) -> int:
    from forerun import bench, report

    params = _params(options)
    if options.rounds < 1:
        raise InvalidArgumentError("rounds", options.rounds, "an integer of at least 1")
    if options.plot and not options.plot.lower().endswith((".png", ".svg", ".pdf")):
        raise InvalidArgumentError("plot", options.plot, "a .png, .svg or .pdf file")
    methods = list(bench.METHODS) + ["model"] * bool(options.speculative_model)
    if options.methods is not None:
        methods = [method.strip() for method in options.methods.split(",")]
    configs = _configs(options, methods)
    cases = bench.read_cases(options.prompts, options.limit)
    llms = {method: _load(options, config) for method, config in configs.items()}
    result = bench.compare(llms, cases, params, rounds=options.rounds)
    print(report.bench_table(result))
    print(
        f"\nmedian of {options.rounds} round(s), {result['num_threads']} threads, "
        f"{result['dtype']}, {result['machine']['isa']}; this process reads "
        f"{result['read_bandwidth_bytes_per_second'] / 1e9:.1f} GB/s"
    )
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        report.draw(result, options.plot)
    return 0 if all(summary["same_tokens"] for summary in result["methods"].values()) else 1


def _convert(options: argparse.Namespace) -> int:
    from forerun.convert import convert

    print(convert(options.gguf, options.directory))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from forerun.inspection import fit_problems, inspect

    found = inspect(Path(options.path), options.method)
    print(found)
    if options.target is None:
        return 0
    from forerun.vocabulary_bridge import find_bridge

    target = inspect(Path(options.target))
    problems, bridge = fit_problems(found, target), None
    try:
        bridge = find_bridge(found, target) if found.method == "target" else None
    except CheckpointError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"  does not fit {options.target}: {problem}")
    if not problems:
        print(f"  fits {options.target}")
    if bridge is not None and not problems:
        size = len(bridge.draft_ids)
        print(f"  by the {len(bridge.shared_ids)} tokens that it shares with the target's {size}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
