"""Forerun beside other engines on the same token ids, in turns, in one run.

    python bench/peers/run.py MODEL_DIR --out results.json --rounds 5 \\
        --engine 'forerun int8=forerun:{"quantization": "int8"}' \\
        --engine 'OpenVINO Q4_1=openvino:{"model": "smollm2-q4_1.gguf"}' \\
        --llama 'ik_llama Q8_0=BUILD/bin/llama-bench:smollm2-q8_0.gguf'

An --engine is NAME=KIND:OPTIONS, a kind of engines.py and the arguments of its constructor; "model"
among them replaces MODEL_DIR. A --llama is NAME=LLAMA_BENCH:GGUF_FILE for llama.cpp and what is
derived from it; their benchmark has token ids of its own, as many. Engines take turns: every round
measures each once, in an order that moves on by one, with new token ids. Prints the medians;
pictures.py draws them.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONTEXTS = (50, 600, 4000)
PROMPTS = (512, 4096)
CHATS = (1, 2, 4, 8, 16)
CHAT_TOKENS = 50
NUM_DECODED = 64


def _rate(answer: dict[str, Any]) -> float | None:
    rate: float | None = answer["tokens_per_second"]
    return rate


class Worker:
    """An engine of engines.py in a process of its own."""

    def __init__(self, kind: str, model: str, num_threads: int, options: dict[str, Any]) -> None:
        model = options.pop("model", model)
        script = Path(__file__).with_name("engines.py")
        command = [sys.executable, str(script), kind, model, str(num_threads), json.dumps(options)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended: {self.process.args}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def measure(self, case: str, size: int, prompts: list[list[int]]) -> float | None:
        """Tokens/s of a case."""
        if case == "chats":
            request = {"do": "chats", "prompts": prompts, "num_tokens": NUM_DECODED}
            return _rate(self.ask(request))
        num_tokens = NUM_DECODED if case == "decode" else 1
        answer = self.ask({"do": "decode", "ids": prompts[0], "num_tokens": num_tokens})
        if case == "decode":
            return _rate(answer)
        return size / float(answer["prompt_seconds"])


class LlamaBench:
    """llama-bench, which loads its model anew for every measurement."""

    def __init__(self, binary: str, gguf: str, num_threads: int) -> None:
        self.command = [binary, "-m", gguf, "-t", str(num_threads), "-r", "1", "-o", "json"]
        text = subprocess.run([binary, "--help"], capture_output=True, text=True).stdout
        self.has_depth = "--n-depth" in text

    def measure(self, case: str, size: int, prompts: list[list[int]]) -> float | None:
        """Tokens/s of a case; batches are not llama-bench's."""
        del prompts
        if case == "chats":
            return None
        if case == "prompt":
            arguments = ["-p", str(size), "-n", "0"]
        elif self.has_depth:
            arguments = ["-p", "0", "-n", str(NUM_DECODED), "-d", str(size)]
        else:
            arguments = ["-p", "0", "-n", "0", "-gp", f"{size},{NUM_DECODED}"]
        result = subprocess.run(
            self.command + arguments, check=True, capture_output=True, text=True
        ).stdout
        return float(json.loads(result)[-1]["avg_ts"])


def split(argument: str) -> tuple[str, str, str]:
    """NAME=FIRST:SECOND in its three parts."""
    name, _, rest = argument.partition("=")
    first, _, second = rest.partition(":")
    if not (name and first and second):
        raise SystemExit(f"{argument!r} is not NAME=FIRST:SECOND")
    return name, first, second


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """What is measured: a case and its size."""
    yield from (("decode", size) for size in arguments.contexts)
    yield from (("prompt", size) for size in arguments.prompts)
    yield from (("chats", size) for size in arguments.chats)


def processor() -> str:
    """The name that Linux has for it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def print_table(medians: dict[str, dict[str, float]]) -> None:
    """One line per engine, one column per case."""
    columns = list(next(iter(medians.values())))
    print("| engine | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, values in medians.items():
        cells = (f"{values[column]:.0f}" if column in values else "" for column in columns)
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=KIND:OPTIONS")
    parser.add_argument("--llama", action="append", default=[], metavar="NAME=BINARY:GGUF")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="*", default=CONTEXTS)
    parser.add_argument("--prompts", type=int, nargs="*", default=PROMPTS)
    parser.add_argument("--chats", type=int, nargs="*", default=CHATS)
    parser.add_argument("--vocab-size", type=int, default=49152, help="of the random token ids")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    arguments = parser.parse_args()

    engines: dict[str, Worker | LlamaBench] = {}
    for name, kind, options in map(split, arguments.engine):
        engines[name] = Worker(kind, arguments.model, arguments.threads, json.loads(options))
    for name, binary, gguf in map(split, arguments.llama):
        engines[name] = LlamaBench(binary, gguf, arguments.threads)

    draw = random.Random(1)

    def random_ids(size: int) -> list[int]:
        return [draw.randrange(10, arguments.vocab_size) for _ in range(size)]

    rates: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in engines}
    names = list(engines)
    for number in range(arguments.rounds):
        for case, size in cases(arguments):
            # Nothing that an engine has kept of an earlier prompt helps it.
            lengths = [CHAT_TOKENS] * size if case == "chats" else [size]
            prompts = [random_ids(length) for length in lengths]
            for offset in range(len(names)):
                name = names[(number + offset) % len(names)]
                rate = engines[name].measure(case, size, prompts)
                if rate is not None:
                    rates[name][f"{case} {size}"].append(rate)
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    medians = {
        name: {case: statistics.median(values) for case, values in of_engine.items()}
        for name, of_engine in rates.items()
    }
    print(f"{processor()}, {arguments.threads} threads; tokens/s, medians of {arguments.rounds}")
    print_table(medians)
    if arguments.out:
        arguments.out.write_text(json.dumps({"processor": processor(), "rates": rates}, indent=1))


if __name__ == "__main__":
    main()
