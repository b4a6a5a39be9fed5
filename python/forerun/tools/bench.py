"""Compares ways of drafting on the same prompts, in one process, in turns."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forerun.errors import InternalError, InvalidArgumentError
from forerun.llm import LLM
from forerun.metrics import SpecDecodeMetrics, total_spec_decode_metrics
from forerun.outputs import RequestOutput, TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.speculative_config import METHODS as ALL_METHODS
from forerun.tools.report import GPU
from forerun.util.json_files import parse_json
from forerun.version import package_version

METHODS = ("none", "ngram", "suffix")
NO_CATEGORY = "no category"
_NO_MODELS = ("ngram", "suffix", "grammar")
_READ_BYTES = 256 << 20


@dataclass(frozen=True)
class Case:
    """One conversation to measure; a plain prompt has one turn and no chat template."""

    turns: list[str]
    category: str = NO_CATEGORY
    chat: bool = True


@dataclass
class Tally:
    """What one method did over some requests."""

    token_ids: list[list[int]] = field(default_factory=list)
    num_tokens: int = 0
    num_decoded: int = 0  # without each first token, which the prompt's pass emits
    decode_seconds: float = 0.0
    prompt_seconds: float = 0.0
    num_target_passes: int = 0
    spec_decode: SpecDecodeMetrics = field(default_factory=lambda: total_spec_decode_metrics([]))

    def add(self, output: RequestOutput) -> None:
        """Counts one finished request."""
        metrics = output.metrics
        if metrics is None or output.error is not None:
            raise InvalidArgumentError(
                "prompts", output.prompt, f"a request without {output.error}"
            )
        self.count(
            output.outputs[0].token_ids,
            decode_seconds=metrics.total_seconds - metrics.first_token_seconds,
            prompt_seconds=metrics.first_token_seconds - metrics.queue_seconds,
            num_target_passes=metrics.num_target_passes,
            spec_decode=metrics.spec_decode,
        )

    def count(
        self,
        token_ids: list[int],
        *,
        decode_seconds: float,
        prompt_seconds: float,
        num_target_passes: int,
        spec_decode: SpecDecodeMetrics,
    ) -> None:
        """Counts what one request generated, and how long it took."""
        self.token_ids.append(token_ids)
        self.num_tokens += len(token_ids)
        self.num_decoded += len(token_ids) - 1
        self.decode_seconds += decode_seconds
        self.prompt_seconds += prompt_seconds
        self.num_target_passes += num_target_passes
        self.spec_decode = total_spec_decode_metrics([self.spec_decode, spec_decode])

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens by the time that decoding took."""
        return self.num_decoded / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def tokens_per_target_pass(self) -> float:
        """Tokens per pass that emitted any, with a draft or without."""
        return self.num_tokens / max(self.num_target_passes, 1)


def speculative_configs(
    methods: Sequence[str],
    num_speculative_tokens: int | None,
    acceptance_method: str = "coupled",
    drafter: Mapping[str, Any] | None = None,
    adaptive: bool | None = None,
) -> dict[str, dict[str, Any] | None]:
    """A speculative_config per method name.

    "none" decodes plainly. "model" is the drafter whose method is detected; it and the methods that
    are models take the fields of `drafter`.
    """
    configs: dict[str, dict[str, Any] | None] = {}
    given = {name: value for name, value in (drafter or {}).items() if value is not None}
    for method in methods:
        if method not in ("none", "model", *ALL_METHODS):
            expected = ", ".join(("none", *ALL_METHODS, "model"))
            raise InvalidArgumentError("method", method, f"one of {expected}")
        config: dict[str, Any] = {
            "method": method,
            "num_speculative_tokens": num_speculative_tokens,
            "acceptance_method": acceptance_method,
        }
        if adaptive is not None:
            config["adaptive"] = adaptive
        if method == "ngram":
            config["num_speculative_tokens"] = num_speculative_tokens or 8
            config |= {"prompt_lookup_max": 5, "prompt_lookup_min": 2}
        elif method == "model":
            if "model" not in given:
                raise InvalidArgumentError("speculative_model", None, "a drafter, for 'model'")
            config |= {**given, "method": None}
        elif method in ALL_METHODS and method not in _NO_MODELS:
            config |= given
        configs[method] = None if method == "none" else config
    if given and all(method in ("none", *_NO_MODELS) for method in methods):
        name, value = next(iter(given.items()))
        name = "speculative_model" if name == "model" else name
        raise InvalidArgumentError(name, value, f"nothing with {', '.join(methods)}")
    return configs


def read_cases(path: str | Path, limit: int | None = None) -> list[Case]:
    """Prompts from a JSONL file: {"prompt": text} or {"turns": [text], "category": name}.

    Raises:
        InvalidArgumentError: the file cannot be read, or a line, which is named, is not a prompt.
    """
    if limit is not None and limit < 1:
        raise InvalidArgumentError("limit", limit, "an integer of at least 1")
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidArgumentError(
            "prompts", str(path), f"a readable JSONL file ({reason})"
        ) from error
    numbered = [(f"{path}:{i}", line) for i, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InvalidArgumentError("prompts", str(path), "a file with at least one prompt")
    return [_read_case(where, line) for where, line in numbered][:limit]


def _read_case(where: str, line: bytes) -> Case:
    expected = '{"prompt": "text"} or {"turns": ["text"], "category": "name"}'
    entry = parse_json(line, where, expected, InvalidArgumentError)
    shown = line.decode()[:60]
    if not isinstance(entry, dict):
        raise InvalidArgumentError(where, shown, expected)
    category = entry.get("category", None)
    if category is None:
        category = NO_CATEGORY
    if not isinstance(category, str) or not category:
        raise InvalidArgumentError(f"{where}: category", category, "a text that is not empty")
    if isinstance(entry.get("prompt"), str) and entry["prompt"]:
        return Case([entry["prompt"]], category, chat=False)
    turns = entry.get("turns")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        return Case(turns, category)
    raise InvalidArgumentError(where, shown, expected)


def run_case(
    llm: LLM, case: Case, params: SamplingParams, on_text: Callable[[str], Any] | None = None
) -> list[RequestOutput]:
    """Generates every turn of a conversation; `on_text` sees the text as it comes."""
    outputs: list[RequestOutput] = []
    messages: list[dict[str, str]] = []
    for turn in case.turns:
        prompt: str | TokensPrompt = turn
        if case.chat and llm.get_tokenizer().chat_template is not None:
            messages.append({"role": "user", "content": turn})
            prompt = llm.render_chat(messages)
        outputs.append(run_prompt(llm, prompt, params, on_text))
        messages.append({"role": "assistant", "content": outputs[-1].outputs[0].text})
    return outputs


def run_prompt(
    llm: LLM,
    prompt: str | TokensPrompt,
    params: SamplingParams,
    on_text: Callable[[str], Any] | None = None,
) -> RequestOutput:
    """Generates for one prompt; `on_text` sees the text as it comes."""
    for delta in llm.stream(prompt, params):
        if on_text is not None:
            on_text(delta.text)
        if delta.output is not None:
            return delta.output
    raise InternalError("a stream ended without an output")


def in_turns(methods: Sequence[str], count: int) -> Iterator[tuple[int, str]]:
    """(index, method) for every index; the method that goes first changes with the index."""
    for index in range(count):
        for offset in range(len(methods)):
            yield index, methods[(index + offset) % len(methods)]


def read_bandwidth(num_threads: int) -> float:
    """Bytes per second that this process reads from memory right now, with all threads."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    parts = np.array_split(np.ones(_READ_BYTES // 4, np.float32), num_threads)
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(lambda part: np.dot(part, part), parts))
        begin = time.perf_counter()
        list(pool.map(lambda part: np.dot(part, part), parts))
        return _READ_BYTES / (time.perf_counter() - begin)


def compare(
    llms: Mapping[str, LLM],
    cases: Sequence[Case],
    params: SamplingParams,
    *,
    rounds: int = 3,
    model_name: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs every case with every method in turns; returns what `forerun bench` writes as JSON.

    `model_name` is what to call the model in the report; by default, as its directory.
    """
    from tqdm import tqdm

    methods = list(llms)
    any_llm = llms[methods[0]]
    tallies: dict[str, list[list[Tally]]] = {method: [] for method in methods}
    limits = any_llm.limits
    is_on_cpu = limits.isa != GPU  # whose memory is not what this process reads
    bandwidths = [read_bandwidth(limits.num_threads)] if is_on_cpu else []
    bar = tqdm(total=rounds * len(cases) * len(methods), desc="Measuring", disable=not progress)
    with bar:
        for llm in llms.values():
            run_case(llm, Case(cases[0].turns[:1], chat=cases[0].chat), params)
        for _ in range(rounds):
            for method, llm in llms.items():
                # Without what "suffix" learned from these very outputs, and without cached prompts.
                llm.reset_caches()
                tallies[method].append([Tally() for _ in cases])
            for index, method in in_turns(methods, len(cases)):
                for output in run_case(llms[method], cases[index], params):
                    tallies[method][-1][index].add(output)
                bar.update()
            if is_on_cpu:
                bandwidths.append(read_bandwidth(limits.num_threads))
    name = model_name or any_llm.directory.name
    return _report(name, llms, cases, tallies, statistics.median(bandwidths) if is_on_cpu else None)


def _report(
    model_name: str,
    llms: Mapping[str, LLM],
    cases: Sequence[Case],
    tallies: Mapping[str, list[list[Tally]]],
    bandwidth: float | None,
) -> dict[str, Any]:
    first = next(iter(llms))
    limits = llms[first].limits
    methods = summarize_methods(cases, tallies)
    if bandwidth is not None:
        for summary in methods.values():
            summary["share_of_roofline"] = summary["tokens_per_target_pass"] and (
                summary["tokens_per_second"]
                / summary["tokens_per_target_pass"]
                * limits.num_bytes_per_token
                / bandwidth
            )
    return {
        "forerun": package_version(),
        "model": str(llms[first].directory),
        "model_name": model_name,
        "machine": {"system": platform.platform(), "isa": limits.isa},
        "num_threads": limits.num_threads,
        "dtype": limits.dtype,
        "kv_cache_dtype": limits.kv_cache_dtype,
        "weight_bytes": limits.weight_bytes,
        "num_cases": len(cases),
        "rounds": len(tallies[first]),
        "read_bandwidth_bytes_per_second": bandwidth,
        "weight_bytes_per_token": limits.num_bytes_per_token,
        "baseline": first,
        "methods": methods,
    }


def summarize_methods(
    cases: Sequence[Case], tallies: Mapping[str, Sequence[Sequence[Tally]]]
) -> dict[str, dict[str, Any]]:
    """By method, in total and by category; the first is what the others are compared with."""
    first = next(iter(tallies))
    categories = list(dict.fromkeys(case.category for case in cases))
    methods = {}
    for method in tallies:
        by_category = {}
        for category in categories:
            chosen = [i for i, case in enumerate(cases) if case.category == category]
            ours, theirs = (
                [[rounds[i] for i in chosen] for rounds in tallies[name]]
                for name in (method, first)
            )
            by_category[category] = summarize(ours, theirs)
        summary = summarize(tallies[method], tallies[first])
        methods[method] = {**summary, "by_category": by_category}
    return methods


def summarize(
    ours: Sequence[Sequence[Tally]], baseline: Sequence[Sequence[Tally]]
) -> dict[str, Any]:
    """Medians over the rounds [round][case], with the speed-up over another method's rounds."""
    speeds = [_speed(tallies) for tallies in ours]
    ratios = [
        speed / base
        for speed, tallies in zip(speeds, baseline, strict=True)
        if (base := _speed(tallies))
    ]
    every = [tally for tallies in ours for tally in tallies]
    drafts = _merge(every).spec_decode
    ids, expected = ([t.token_ids for ts in rounds for t in ts] for rounds in (ours, baseline))
    return {
        "tokens_per_second": statistics.median(speeds),
        "tokens_per_second_of_rounds": speeds,
        "speed_up": statistics.median(ratios) if ratios else None,
        "num_drafts": drafts.num_drafts,
        "mean_acceptance_length": drafts.mean_acceptance_length,
        "acceptance_rate_per_pos": drafts.acceptance_rate_per_pos,
        "acceptance_rate_per_drafted_pos": drafts.acceptance_rate_per_drafted_pos,
        "tokens_per_target_pass": _merge(every).tokens_per_target_pass,
        "prompt_seconds": statistics.median(tally.prompt_seconds for tally in every),
        "num_tokens": sum(tally.num_tokens for tally in every),
        "same_tokens": ids == expected,
    }


def _merge(tallies: Sequence[Tally]) -> Tally:
    return Tally(
        num_tokens=sum(tally.num_tokens for tally in tallies),
        num_target_passes=sum(tally.num_target_passes for tally in tallies),
        spec_decode=total_spec_decode_metrics([tally.spec_decode for tally in tallies]),
    )


def _speed(tallies: Sequence[Tally]) -> float:
    seconds = sum(tally.decode_seconds for tally in tallies)
    return sum(tally.num_decoded for tally in tallies) / seconds if seconds else 0.0
