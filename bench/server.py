"""A server with OpenAI's API, measured as its clients see it.

    python bench/server.py overhead MODEL_DIR [--batches 1 32] [--rounds 5]
    python bench/server.py load NAME=URL [NAME=URL ...] [--rate 2] [--requests 100]

`overhead` starts `forerun serve` and runs the same prompts there and with LLM.generate in this
process, in turns; it ends with an error unless both give the same ids. `load` sends each server the
same chats at the same times: a Poisson process. Any server of OpenAI's API will do.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import shlex
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11

from forerun import LLM, SamplingParams
from forerun.tools.bench import read_cases
from forerun.tools.remote import RemoteModel

Body = dict[str, Any]

QUESTIONS = (
    "Name three colours of the rainbow.",
    "Write a short poem about the sea.",
    "Explain what a hash table is to a child.",
    "List the planets of the solar system, one a line.",
    "Write a Python function that reverses a string.",
    "What is the difference between a virus and a bacterium?",
    "Translate into French: I would like a cup of tea.",
    "Give me a recipe for pancakes.",
)


@dataclass
class Answer:
    """What came of one request, and when: seconds on the client's clock."""

    begin: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    events: list[tuple[float, Any]] = field(default_factory=list)

    @property
    def token_times(self) -> list[float]:
        """When each piece of text came; servers send one for a token."""
        return [at for at, event in self.events if any(_texts(event))]

    @property
    def token_ids(self) -> list[int]:
        """The generated ids, from a server that sends them."""
        choices = (choice for _, event in self.events for choice in event["choices"])
        return [token for choice in choices for token in choice["token_ids"]]

    @property
    def num_tokens(self) -> int:
        """As the server counts them."""
        usage = [event["usage"] for _, event in self.events if event.get("usage")]
        return int(usage[-1]["completion_tokens"])

    @property
    def end(self) -> float:
        """When its last event came."""
        return self.events[-1][0]


def _texts(event: Any) -> Iterator[str]:
    for choice in event.get("choices", ()):
        delta = choice.get("delta", choice)
        for name in ("text", "content", "reasoning_content"):
            if delta.get(name):
                yield delta[name]


def post(url: str, path: str, body: Body) -> Answer:
    """One request over a connection of its own.

    What comes is only noted here, and read when all is over: the client shares its processors with
    the server, and a socket that blocks costs it the least.
    """
    address = urlsplit(url)
    is_tls = address.scheme == "https"
    data = json.dumps(body).encode()
    headers = [
        ("host", address.netloc),
        ("content-type", "application/json"),
        ("content-length", str(len(data))),
        ("connection", "close"),
    ]
    sender = h11.Connection(h11.CLIENT)
    request = sender.send(h11.Request(method="POST", target=address.path + path, headers=headers))
    assert request is not None
    answer = Answer(time.perf_counter())
    with ExitStack() as stack:
        connection = stack.enter_context(
            socket.create_connection((address.hostname, address.port or (443 if is_tls else 80)))
        )
        if is_tls:
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(connection, server_hostname=address.hostname)
            connection = stack.enter_context(wrapped)
        connection.sendall(request + data)
        while piece := connection.recv(1 << 16):
            answer.pieces.append((time.perf_counter(), piece))
    return answer


def read(answer: Answer, is_stream: bool) -> Answer:
    """Fills in the events of an answer from its bytes."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "any")]))
    connection.send(h11.EndOfMessage())
    status, text = 0, b""
    for at, piece in [*answer.pieces, (0.0, b"")]:
        connection.receive_data(piece)
        while isinstance(event := connection.next_event(), (h11.Response, h11.Data)):
            if isinstance(event, h11.Response):
                status = event.status_code
                continue
            text += bytes(event.data)
            if is_stream and status == 200:
                *lines, text = text.replace(b"\r\n", b"\n").split(b"\n")
                events = [line[6:] for line in lines if line.startswith(b"data: ")]
                answer.events += [(at, json.loads(each)) for each in events if each != b"[DONE]"]
    if status != 200 or (is_stream and not answer.events):
        sys.exit(f"the server answered {status}: {text.decode(errors='replace')[:500]}")
    if not is_stream:
        answer.events = [(answer.pieces[-1][0], json.loads(text))]
    return answer


# Overhead beside LLM.generate.


@contextmanager
def served(model: str, options: Sequence[str]) -> Iterator[str]:
    """`forerun serve` in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "forerun", "serve", model, "--port", "0", *options]
    command += ["--log-level", "warning", "--no-log-requests"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        try:
            yield line.split()[1].removesuffix("/v1/chat/completions")
        finally:
            process.terminate()


def random_prompts(llm: LLM, count: int, rng: random.Random) -> list[list[int]]:
    """Prompts that no cache knows."""
    return [[rng.randrange(llm.limits.vocab_size) for _ in range(32)] for _ in range(count)]


def time_server(
    url: str, prompts: list[list[int]], num_tokens: int, *, is_stream: bool, salt: str
) -> tuple[float, list[list[int]]]:
    """Tokens/s of requests that come at once, and what they generated."""
    body = {"max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": is_stream, "return_token_ids": True, "cache_salt": salt}
    with ThreadPoolExecutor(len(prompts)) as pool:
        bodies = [{**body, "prompt": prompt} for prompt in prompts]
        answers = list(pool.map(functools.partial(post, url, "/v1/completions"), bodies))
    for answer in answers:
        read(answer, is_stream)
    begin, end = min(each.begin for each in answers), max(each.end for each in answers)
    return len(prompts) * num_tokens / (end - begin), [each.token_ids for each in answers]


def time_llm(llm: LLM, prompts: list[list[int]], num_tokens: int) -> tuple[float, list[list[int]]]:
    """The same with LLM.generate."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    begin = time.perf_counter()
    outputs = llm.generate(given, params, use_tqdm=False)
    rate = len(prompts) * num_tokens / (time.perf_counter() - begin)
    return rate, [list(output.outputs[0].token_ids) for output in outputs]


def overhead(options: argparse.Namespace) -> None:
    rng = random.Random(1)
    # Both decode plainly: how well drafts fit is not what is measured.
    llm = LLM(options.model, max_num_seqs=max(options.batches))
    serve = ["--spec-method", "none", "--max-num-seqs", str(max(options.batches))]
    serve += shlex.split(options.serve)
    ways = ("LLM.generate", "server", "server, streamed")
    print(
        "| requests | " + " | ".join(ways) + " | overhead | streamed |\n|--:|--:|--:|--:|--:|--:|"
    )
    with served(options.model, serve) as url:
        for batch in options.batches:
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(-1, options.rounds):  # the first one warms up
                prompts = random_prompts(llm, batch, rng)
                order = [ways[(number + i) % len(ways)] for i in range(len(ways))]
                ids = {}
                for way in order:
                    if way == ways[0]:
                        rate, ids[way] = time_llm(llm, prompts, options.tokens)
                    else:
                        stream = way == ways[2]
                        salt = f"{number} {stream}"  # what the other has computed is not found
                        rate, ids[way] = time_server(
                            url, prompts, options.tokens, is_stream=stream, salt=salt
                        )
                    llm.reset_caches()
                    if number >= 0:
                        rates[way].append(rate)
                if any(found != ids[ways[0]] for found in ids.values()):
                    sys.exit("the server gave other ids than LLM.generate")
            # Of each round by itself: what else the machine does changes from round to round.
            extra = [
                statistics.median(
                    1 - rate / alone for rate, alone in zip(rates[way], rates[ways[0]], strict=True)
                )
                for way in ways[1:]
            ]
            medians = [statistics.median(values) for values in rates.values()]
            cells = [f"{value:.1f}" for value in medians] + [f"{value:.1%}" for value in extra]
            print(f"| {batch} | " + " | ".join(cells) + " |", flush=True)


# Latency under load.


def chats(options: argparse.Namespace) -> list[Body]:
    """The bodies of a run, none of which finds what another has left.

    A number at its beginning keeps each prompt out of prefix caches, in any server.
    """
    questions = QUESTIONS
    if options.prompts is not None:
        questions = tuple(case.turns[0] for case in read_cases(options.prompts))
    begin = options.seed * 1_000_000
    return [
        {
            "messages": [{"role": "user", "content": f"({begin + number}) {question}"}],
            "max_tokens": options.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            # Answers of one are not what another drafts from.
            "cache_salt": str(begin + number),
        }
        for number, question in zip(
            range(options.requests), itertools.cycle(questions), strict=False
        )
    ]


def run_load(url: str, bodies: Sequence[Body], starts: Sequence[float]) -> list[Answer]:
    """Sends each body at its time, however many are still running."""
    begin = time.perf_counter()

    def one(body: Body, start: float) -> Answer:
        time.sleep(max(0.0, begin + start - time.perf_counter()))
        return post(url, "/v1/chat/completions", body)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(one, bodies, starts))


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def report_load(name: str, answers: Sequence[Answer]) -> str:
    """A row of the table: milliseconds, but for tokens/s; "-" where no text came to measure."""
    first, gaps, mean_gaps = [], [], []
    for answer in answers:
        times = answer.token_times
        if not times:
            continue
        first.append(times[0] - answer.begin)
        gaps += [after - before for before, after in itertools.pairwise(times)]
        mean_gaps.append((times[-1] - times[0]) / max(answer.num_tokens - 1, 1))
    seconds = max(each.end for each in answers) - min(each.begin for each in answers)
    rate = sum(each.num_tokens for each in answers) / seconds
    cells = [name]
    for values in (first, gaps, mean_gaps):
        found = quantiles(values) if values else None
        cells += [f"{1000 * value:.1f}" for value in found] if found else ["-", "-"]
    return "| " + " | ".join(cells) + f" | {rate:.1f} |"


def load(options: argparse.Namespace) -> None:
    servers = dict(each.split("=", 1) for each in options.servers)
    rng = random.Random(options.seed)
    starts = list(
        itertools.accumulate(rng.expovariate(options.rate) for _ in range(options.requests))
    )
    print(
        "| server | first token p50 | p99 | between tokens p50 | p99 | mean of a request p50 | p99 "
        "| tokens/s |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name, url in servers.items():
        url = url.rstrip("/").removesuffix("/v1")
        model = RemoteModel(url).name
        bodies = [{**body, "model": model} for body in chats(options)]
        warm_up = run_load(url, [{**bodies[0], "max_tokens": 4}], [0])
        read(warm_up[0], is_stream=True)
        answers = run_load(url, bodies, starts)
        print(report_load(name, [read(answer, is_stream=True) for answer in answers]), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    beside = commands.add_parser("overhead")
    beside.add_argument("model")
    beside.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    beside.add_argument("--tokens", type=int, default=128, help="of each request")
    beside.add_argument("--rounds", type=int, default=5)
    beside.add_argument("--serve", default="", help="options of `forerun serve`, in one text")
    beside.set_defaults(run=overhead)
    under = commands.add_parser("load")
    under.add_argument("servers", nargs="+", metavar="NAME=URL")
    under.add_argument("--rate", type=float, default=2, help="requests a second, on average")
    under.add_argument("--requests", type=int, default=100)
    under.add_argument("--tokens", type=int, default=64, help="of each answer")
    under.add_argument("--prompts", help="a JSONL file, as for `forerun bench`")
    under.add_argument("--seed", type=int, default=1)
    under.set_defaults(run=load)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
