"""Many streams at once whose clients leave at any time: nothing leaks, nothing is left running."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest
import server_models

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

NUM_STREAMS = 64
# Bounded, so that what the drafter keeps of past outputs does not look like a leak.
DRAFTS = '{"method": "suffix", "suffix_decoding_max_cached_requests": 100}'


class Served:
    """`forerun serve` as a process of its own."""

    def __init__(self, model: Path, errors: IO[str]) -> None:
        command = [sys.executable, "-m", "forerun", "serve", str(model), "--port", "0"]
        command += ["--max-num-seqs", "16", "--speculative-config", DRAFTS, "--no-log-requests"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[1].removesuffix("/v1/chat/completions")
        self.proc = Path(f"/proc/{self.process.pid}")

    def metric(self, name: str) -> float:
        lines = httpx2.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        (line,) = (line for line in lines if line.startswith((f"{name} ", f"{name}{{")))
        return float(line.split()[-1])

    def resident_bytes(self) -> int:
        pages = int((self.proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> dict[str, float]:
        """By thread."""
        found = {}
        for task in (self.proc / "task").iterdir():
            found[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    log = tmp_path / "errors.txt"  # unlike a pipe it is never full
    with log.open("w") as errors:
        served = Served(server_models.write_model(tmp_path)[0], errors)
        yield served
        served.process.terminate()
        served.process.communicate(timeout=60)
    assert served.process.returncode == 0
    assert log.read_text() == ""


async def stream(client: httpx2.AsyncClient, rng: random.Random) -> None:
    """One stream, read to its end or left after some of its parts."""
    body: dict[str, Any] = {"prompt": "x" * rng.randint(1, 60), "stream": True, "seed": 1}
    body |= {"max_tokens": rng.randint(1, 120), "n": rng.choice([1, 1, 1, 3])}
    num_read = rng.choice([0, 1, 5, 50, 10**6])
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        ends = False
        async for line in response.aiter_lines():
            ends |= line == "data: [DONE]"
            num_read -= 1
            if num_read <= 0:
                return
        assert ends


async def run_load(served: Served, seconds: float) -> list[int]:
    """Keeps so many streams open; returns how much memory the server had, again and again."""
    end = time.monotonic() + seconds
    sizes = []

    async def keep_streaming(client: httpx2.AsyncClient, number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            await stream(client, rng)

    async def watch() -> None:
        while time.monotonic() < end:
            sizes.append(served.resident_bytes())
            await asyncio.sleep(seconds / 100)

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=served.url, timeout=300, limits=limits) as client:
        streams = (keep_streaming(client, number) for number in range(NUM_STREAMS))
        await asyncio.gather(watch(), *streams)
    return sizes


def check_nothing_is_left(served: Served) -> None:
    end = time.monotonic() + 60
    while served.metric("vllm:num_requests_running") + served.metric("vllm:num_requests_waiting"):
        assert time.monotonic() < end, "requests are stuck"
        time.sleep(0.05)
    assert served.metric("forerun:num_held_blocks") == 0
    free, cached = (
        served.metric("forerun:num_free_blocks"),
        served.metric("forerun:num_cached_blocks"),
    )
    assert free + cached == served.metric("forerun:num_total_blocks")
    assert served.metric("vllm:generation_tokens_total") > 0


def check_it_sleeps(served: Served, seconds: float) -> None:
    """The main thread may look at its clock now and then; the others use no processor at all.

    A kernel may wake a thread for its own reasons, and connections take a while to close: one of
    a few periods has to be without, which no thread that polls has.
    """
    used: dict[str, float] = {}
    for _ in range(5):
        before = served.processor_seconds()
        time.sleep(seconds)
        after = served.processor_seconds()
        used = {thread: after[thread] - before.get(thread, 0) for thread in after}
        main = used.pop(str(served.process.pid))
        if not any(used.values()) and main < 0.01 * seconds:
            return
    raise AssertionError(f"threads do not sleep: main {main} s, others {used}")


def test_nothing_is_left_of_streams_whose_clients_leave(served: Served) -> None:
    asyncio.run(run_load(served, seconds=3))
    check_nothing_is_left(served)
    check_it_sleeps(served, seconds=2)


@pytest.mark.long
def test_memory_stays_flat_under_streams_for_minutes(served: Served) -> None:
    minutes = float(os.environ.get("FORERUN_LOAD_MINUTES", "10"))
    sizes = asyncio.run(run_load(served, 60 * minutes))
    check_nothing_is_left(served)
    check_it_sleeps(served, seconds=10)
    # Caches fill at first.
    third = len(sizes) // 3
    assert max(sizes[2 * third :]) <= max(sizes[third : 2 * third]) + (4 << 20)
