"""Forks, interpreter exits and garbage collection while an AsyncLLM has requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, gc, os, sys, threading, time
import forerun
llm = forerun.AsyncLLM({model!r}, num_threads=2)
greedy = forerun.SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
endless = forerun.SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
def delay(ids, logits):
    time.sleep(0.002)
    return logits
slow = endless.clone()
slow.logits_processors = [delay]

def child_is_fine(run):
    pid = os.fork()
    if pid == 0:
        run()
        sys.exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status

def use():
    try:
        asyncio.run(llm.generate([1], greedy))
    except forerun.EngineBusyError:
        return
    os._exit(1)

{body}
"""

ENDS = {
    "exit_never_used": "",
    "exit_after_use": "asyncio.run(llm.generate([1], greedy))",
    "exit_with_an_open_stream": """
async def main():
    global stream
    stream = llm.stream([1], endless)
    await anext(stream)
asyncio.run(main())
""",
    "exit_while_hooks_run": """
async def main():
    global streams
    streams = [llm.stream([i], slow) for i in range(8)]
    await anext(streams[0])
asyncio.run(main())
""",
    "exit_in_a_callback": """
async def main():
    stream = llm.stream([1], slow)
    async for _ in stream:
        sys.exit(0)
asyncio.run(main())
""",
    "drop_the_model_with_open_streams": """
async def main():
    global llm
    streams = [llm.stream([i], slow) for i in range(8)]
    await anext(streams[0])
    del llm
    gc.collect()
    await anext(streams[1])
    del streams
    gc.collect()
asyncio.run(main())
gc.collect()
""",
    "drop_the_stream_in_a_cycle": """
async def main():
    stream = llm.stream([1], endless)
    await anext(stream)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()
    for _ in range(500):
        await asyncio.sleep(0.01)
        if llm.metrics().num_held_blocks == 0:
            break
    assert llm.metrics().num_held_blocks == 0
asyncio.run(main())
""",
    # The last reference goes in the thread that the loop would wait for.
    "collect_the_model_in_its_own_thread": """
def drop(ids, logits):
    if len(ids) == 3:
        held.clear()
        gc.collect()
        dropped.set()
    return logits
held, dropped = [llm], threading.Event()
params = forerun.SamplingParams(max_tokens=400, ignore_eos=True, logits_processors=[drop])
async def main():
    held.append(held[0].stream([1], params))
    await anext(held[1])
del llm
asyncio.run(main())
assert dropped.wait(30)
for _ in range(500):
    gc.collect()
    if not any("_stop" in thread.name for thread in threading.enumerate()):
        break
    time.sleep(0.01)
""",
    "fork_and_exit": "child_is_fine(lambda: None)",
    "fork_and_drop": """
def drop():
    global llm
    del llm
    gc.collect()
child_is_fine(drop)
""",
    "fork_and_use": "child_is_fine(use)\nasyncio.run(llm.generate([1], greedy))",
    "fork_in_a_step": """
async def main():
    streams = [llm.stream([i], slow) for i in range(4)]
    await anext(streams[0])
    def run():
        for stream in streams:
            stream.close()
        try:
            llm.stream([1], greedy)
        except forerun.EngineBusyError:
            os._exit(0)
    child_is_fine(run)
    for stream in streams:
        await anext(stream)
asyncio.run(main())
""",
    "fork_in_a_step_and_exit": """
async def main():
    stream = llm.stream([1], endless)
    await anext(stream)
    child_is_fine(lambda: os._exit(0))
    child_is_fine(stream.close)
asyncio.run(main())
""",
    # The child shares its parent's epoll.
    "fork_and_close_the_model_in_the_child": """
async def main():
    stream = llm.stream([1], slow)
    await anext(stream)
    child_is_fine(lambda: (llm.close(), os._exit(0)))
    for _ in range(20):
        await asyncio.wait_for(anext(stream), 20)
    stream.close()
asyncio.run(main())
""",
    # The second failure is reported while the event loop holds the GIL and takes the first.
    "two_failed_steps_at_once": """
failed = threading.Semaphore(0)
def fail(ids, logits):
    failed.release()
    raise KeyboardInterrupt("on purpose")
failing = forerun.SamplingParams(max_tokens=9, logits_processors=[fail])
async def main():
    sys.setswitchinterval(30)
    streams = []
    for i in range(2):
        streams.append(llm.stream([i], failing))
        failed.acquire()
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            pass
    llm._take()
    for stream in streams:
        try:
            await anext(stream)
        except KeyboardInterrupt:
            continue
        raise AssertionError("no failure")
asyncio.run(main())
""",
    "close_twice_and_exit": "llm.close()\nllm.close()",
}


@pytest.mark.parametrize("name", ENDS)
def test_a_process_ends_cleanly(tiny_dir: Path, name: str) -> None:
    script = SCRIPT.format(model=str(tiny_dir), body=ENDS[name])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
