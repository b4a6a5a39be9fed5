"""Forerun beside other engines on the same token ids, in turns, in one run.

    python bench/peers/run.py MODEL_DIR --out results.json --rounds 5 --texts \\
        --engine 'forerun int8=forerun:{"quantization": "int8"}' \\
        --engine 'OpenVINO Q4_1=openvino:{"model": "smollm2-q4_1.gguf"}' \\
        --llama 'ik_llama Q8_0=BUILD/bin:smollm2-q8_0.gguf' \\
        --llama 'llama.cpp ngram=BUILD/bin:smollm2-bf16.gguf:--spec-type ngram-mod'

An --engine is NAME=KIND:OPTIONS, a kind of engines.py and the arguments of its constructor; "model"
among them replaces MODEL_DIR. A --text-engine is one that gets the texts alone. A --llama is
NAME=FOLDER:GGUF_FILE for the programs of llama.cpp and what is derived from it, with arguments for
all of them after the file; where arguments of llama-server follow, it gets the texts, and only
them. Engines take turns: every round measures each once, in an order that moves on by one, with new
token ids. Prints the medians; pictures.py draws them.
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
from typing import Any, NamedTuple

from llama import LlamaTools

CONTEXTS = (50, 600, 4000)
PROMPTS = (512, 4096)
CHATS = (1, 2, 4, 8, 16)
CHAT_TOKENS = 50
NUM_DECODED = 64
NUM_ANSWERED = 128  # tokens of the answer to a text

Answer = dict[str, float | None] | None


class Worker:
    """An engine of engines.py in a process of its own."""

    def __init__(
        self, kind: str, model: str, num_threads: int, options: dict[str, Any], texts_only: bool
    ) -> None:
        self.texts_only = texts_only
        self.kind = kind
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

    def measure(self, case: str, size: int, prompts: list[list[int]]) -> Answer:
        """Tokens/s of a case."""
        if self.texts_only and case != "text":
            return None
        if case == "chats":
            return self.ask({"do": "chats", "prompts": prompts, "num_tokens": NUM_DECODED})
        num_tokens = {"decode": NUM_DECODED, "prompt": 1, "text": NUM_ANSWERED}[case]
        answer = self.ask({"do": "decode", "ids": prompts[0], "num_tokens": num_tokens})
        if case == "prompt":
            return {"tokens_per_second": size / float(answer["prompt_seconds"])}
        return answer


class Llama:
    """LlamaTools with the interface of a Worker."""

    def __init__(self, programs: str, model: str, num_threads: int) -> None:
        model, *server_arguments = model.split(":", 1)
        self.tools = LlamaTools(programs, model, num_threads, *server_arguments or [None])

    def measure(self, case: str, size: int, prompts: list[list[int]]) -> Answer:
        """Tokens/s of a case."""
        if case == "text":
            return self.tools.text(prompts[0], NUM_ANSWERED)
        if self.tools.server is not None:
            return None
        if case == "prompt":
            return self.tools.prompt(size)
        if case == "decode":
            return self.tools.decode(size, NUM_DECODED)
        return self.tools.chats(size, CHAT_TOKENS, NUM_DECODED)


def split(argument: str) -> tuple[str, str, str]:
    """NAME=FIRST:SECOND in its three parts."""
    name, _, rest = argument.partition("=")
    first, _, second = rest.partition(":")
    if not (name and first and second):
        raise SystemExit(f"{argument!r} is not NAME=FIRST:SECOND")
    return name, first, second


class Case(NamedTuple):
    """What is measured."""

    kind: str
    name: str  # with the kind: of the result
    prompts: list[list[int]]
    size: int


def cases(arguments: argparse.Namespace, texts: dict[str, list[int]]) -> Iterator[Case]:
    """The cases of a round. Nothing that an engine has kept of an earlier prompt helps it."""
    draw = random.Random()

    def random_ids(size: int) -> list[int]:
        return [draw.randrange(10, arguments.vocab_size) for _ in range(size)]

    for size in arguments.contexts:
        yield Case("decode", str(size), [random_ids(size)], size)
    for size in arguments.prompts:
        yield Case("prompt", str(size), [random_ids(size)], size)
    for size in arguments.chats:
        yield Case("chats", str(size), [random_ids(CHAT_TOKENS) for _ in range(size)], size)
    for name, ids in texts.items():
        yield Case("text", name, [ids], len(ids))


def processor() -> str:
    """The name that Linux has for it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


Rates = dict[str, dict[str, list[float]]]


def add(rates: dict[str, list[float]], case: Case, answer: dict[str, float | None]) -> None:
    """Tokens/s, and the milliseconds of a step of several chats, where they were measured."""
    rate, step = answer.get("tokens_per_second"), answer.get("step_seconds")
    if rate is not None:
        rates[f"{case.kind} {case.name}"].append(rate)
    if step is not None:
        rates[f"step {case.name}"].append(step * 1e3)


def print_table(rates: Rates) -> None:
    """One line per engine, one column per case."""
    columns = list(dict.fromkeys(case for of_engine in rates.values() for case in of_engine))
    print("| engine | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, values in rates.items():
        cells = (f"{statistics.median(values[c]):.4g}" if c in values else "" for c in columns)
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=KIND:OPTIONS")
    parser.add_argument("--text-engine", action="append", default=[], metavar="NAME=KIND:OPTIONS")
    parser.add_argument("--llama", action="append", default=[], metavar="NAME=FOLDER:GGUF")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="*", default=CONTEXTS)
    parser.add_argument("--prompts", type=int, nargs="*", default=PROMPTS)
    parser.add_argument("--chats", type=int, nargs="*", default=CHATS)
    parser.add_argument("--texts", action="store_true", help="the demo's prompts, too")
    parser.add_argument("--vocab-size", type=int, default=49152, help="of the random token ids")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    arguments = parser.parse_args()

    workers: dict[str, Worker] = {}
    llamas: dict[str, Llama] = {}
    for texts_only, given in ((False, arguments.engine), (True, arguments.text_engine)):
        for name, kind, options in map(split, given):
            workers[name] = Worker(
                kind, arguments.model, arguments.threads, json.loads(options), texts_only
            )
    for name, programs, gguf in map(split, arguments.llama):
        llamas[name] = Llama(programs, gguf, arguments.threads)
    texts: dict[str, list[int]] = {}
    if arguments.texts:
        forerun = next((worker for worker in workers.values() if worker.kind == "forerun"), None)
        if forerun is None:
            raise SystemExit("--texts needs an --engine of the kind forerun, which has a tokenizer")
        texts = forerun.ask({"do": "texts"})

    engines: dict[str, Worker | Llama] = {**workers, **llamas}
    rates: Rates = {name: defaultdict(list) for name in engines}
    names = list(engines)
    for number in range(arguments.rounds):
        for case in cases(arguments, texts):
            for offset in range(len(names)):
                name = names[(number + offset) % len(names)]
                answer = engines[name].measure(case.kind, case.size, case.prompts)
                add(rates[name], case, answer or {})
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        if arguments.out:
            results = {"processor": processor(), "rates": rates}
            arguments.out.write_text(json.dumps(results, indent=1))
    print(f"{processor()}, {arguments.threads} threads; tokens/s, medians of {arguments.rounds}")
    print_table(rates)


if __name__ == "__main__":
    main()
