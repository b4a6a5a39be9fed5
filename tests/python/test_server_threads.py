"""What takes long for one request of the server does not hold up the others, nor its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")

import httpx2
import server_models
from hypothesis import given
from hypothesis import strategies as st
from server_client import Client, Reply

from forerun import AsyncLLM, QueueFullError, SamplingParams
from forerun.server.app import make_app
from forerun.server.params import has_grammar
from forerun.server.protocol import ChatRequest, CompletionRequest
from forerun.server.serving import Serving
from forerun.server.settings import ServerSettings
from forerun.text.grammar_compiler import GrammarCompiler
from forerun.text.tool_parsers import tool_grammar

USER = [{"role": "user", "content": "x y"}]


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[AsyncLLM]:
    target, _ = server_models.write_model(tmp_path)
    llm = AsyncLLM(target, max_model_len=128, logits_processors=[server_models.FollowsScript])
    yield llm
    llm.close()


def test_requests_do_not_wait_for_grammars_of_others(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, may_go_on = llm.prepare, threading.Event()

    def prepare_slowly(prompts: Any, params: SamplingParams) -> Any:
        if params.structured_outputs is not None:
            assert may_go_on.wait(60)
        return prepare(prompts, params)

    monkeypatch.setattr(llm, "prepare", prepare_slowly)
    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    chats = "/v1/chat/completions"
    grammar = {"messages": USER, "max_tokens": 3, "guided_regex": "[ab]{2}"}

    async def main() -> None:
        slow = [
            asyncio.create_task(client.call("POST", chats, json=grammar))
            for _ in range(2 * len(threading.enumerate()) + 20)
        ]
        await asyncio.sleep(0.2)
        for _ in range(3):
            plain = {"messages": USER, "max_tokens": 3}
            reply = await asyncio.wait_for(client.call("POST", chats, json=plain), 30)
            assert reply.status == 200
        assert not any(task.done() for task in slow)
        may_go_on.set()
        assert {reply.status for reply in await asyncio.gather(*slow)} == {200}

    client.run(main())
    client.close()


def test_nothing_is_compiled_in_the_event_loop(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_now, threads = llm._grammars.compile, []

    def compile_here(structure: Any) -> Any:
        threads.append(threading.current_thread().name)
        return compile_now(structure)

    monkeypatch.setattr(llm._grammars, "compile", compile_here)
    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    body = {"prompt": ["x", "y", "z"], "max_tokens": 3, "guided_regex": "[ab]{2}"}
    assert len(client.complete(**body).json["choices"]) == 3
    assert len(threads) == 1
    assert threads[0].startswith("forerun-compile")
    client.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_client_may_leave_before_its_prompt_is_prepared(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    prepare, may_go_on, num_calls = llm.prepare, threading.Event(), 0

    def prepare_slowly(prompts: Any, params: SamplingParams) -> Any:
        nonlocal num_calls
        num_calls += 1
        assert may_go_on.wait(10)
        return prepare(prompts, params)

    monkeypatch.setattr(llm, "prepare", prepare_slowly)
    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    given = {"prompt": "x"} if path == "/v1/completions" else {"messages": USER}
    body = {**given, "max_tokens": 3, "guided_regex": "[ab]{2}"}
    for _ in range(4):  # two run, and two wait for a thread
        assert client.leave(path, body, 0) == 499
    may_go_on.set()
    assert client.post(path, body).status == 200
    assert num_calls == 3, "what waits for a thread is given up"
    client.close()


def test_the_time_of_a_request_runs_while_its_prompt_is_prepared(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, may_go_on = llm.prepare, threading.Event()

    def prepare_slowly(prompts: Any, params: SamplingParams) -> Any:
        may_go_on.wait(0.8)
        return prepare(prompts, params)

    monkeypatch.setattr(llm, "prepare", prepare_slowly)
    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    endless = {"prompt": "x", "max_tokens": 120, "ignore_eos": True}
    endless["vllm_xargs"] = {"seconds": 0.01}
    reply = client.complete(**endless, timeout=1.0, stream=True)
    if reply.status == 200:  # else the machine was slow
        *chunks, last = reply.chunks
        assert len(chunks) <= 20
        reply = Reply(408, reply.headers, json.dumps(last))
    assert (reply.status, reply.error["code"]) == (408, "deadline_exceeded")
    assert "the timeout of 1 s" in reply.error["message"]
    assert client.complete(prompt="x", timeout=-1).error["param"] == "timeout"
    monkeypatch.setattr(may_go_on, "wait", lambda _: threading.Event.wait(may_go_on, 10))
    reply = client.complete(prompt="x", timeout=0.1)
    assert (reply.status, reply.error["code"]) == (408, "deadline_exceeded")
    assert not may_go_on.is_set(), "a request does not outlast its time in a thread"
    may_go_on.set()
    client.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_parameters_are_not_checked_in_the_event_loop(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    check_now, threads = SamplingParams.__post_init__, []

    def check_here(params: SamplingParams) -> None:
        threads.append(threading.current_thread())
        check_now(params)

    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    monkeypatch.setattr(SamplingParams, "__post_init__", check_here)
    body = {"prompt": "x"} if path == "/v1/completions" else {"messages": USER}
    assert client.post(path, {**body, "max_tokens": 3}).status == 200
    assert threads
    assert threading.current_thread() not in threads
    client.close()


def test_others_go_on_while_many_prompts_are_opened(llm: AsyncLLM) -> None:
    async def main() -> None:
        serving = Serving(llm, ServerSettings())
        params = SamplingParams(max_tokens=2)
        prepared = llm.prepare([[index] for index in range(50)], params)
        num_turns = 0

        async def count() -> None:
            nonlocal num_turns
            while True:
                num_turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        streams = await serving._open(CompletionRequest(prompt="x"), prepared, None)
        assert num_turns >= 50
        counting.cancel()
        for stream in streams:
            await stream.aclose()

    asyncio.run(main())


def test_a_body_that_is_opened_keeps_its_room(tmp_path: Path) -> None:
    """Another body, opened meanwhile, is refused before the first one finds the queue full."""
    target, _ = server_models.write_model(tmp_path)
    slow = SamplingParams(max_tokens=100, ignore_eos=True, extra_args={"seconds": 0.01})
    processors = [server_models.FollowsScript]
    options = {"max_num_seqs": 2, "max_waiting_requests": 4, "logits_processors": processors}
    llm = AsyncLLM(target, max_model_len=128, **options)

    async def main() -> None:
        serving = Serving(llm, ServerSettings())
        body = CompletionRequest(prompt="x")
        first, second = await asyncio.gather(
            serving._open(body, llm.prepare([[1]] * 4, slow), None),
            serving._open(body, llm.prepare([[2]] * 3, slow), None),
            return_exceptions=True,
        )
        assert isinstance(first, list)
        assert isinstance(second, QueueFullError)
        for stream in first:
            await stream.aclose()

    asyncio.run(main())
    llm.close()


def test_threads_that_compile_the_first_grammars_share_a_compiler(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, both = GrammarCompiler.__init__, threading.Barrier(2)

    def make_slowly(compiler: GrammarCompiler, *arguments: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # for a second one
        make(compiler, *arguments)

    monkeypatch.setattr(GrammarCompiler, "__init__", make_slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: llm._grammars, range(2))
    assert first is second


def test_a_body_that_does_not_fit_into_the_queue_starts_nothing(tmp_path: Path) -> None:
    target, _ = server_models.write_model(tmp_path)
    llm = AsyncLLM(target, max_model_len=128, max_num_seqs=2, max_waiting_requests=2)
    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    fits = client.complete(prompt=["x", "y"], n=2, max_tokens=2)
    assert len(fits.json["choices"]) == 4
    num_prompts = llm.metrics().num_prompt_tokens
    never = client.complete(prompt=["x", "y", "z"], n=2, max_tokens=2)
    assert (never.status, never.error["param"]) == (400, "prompt")
    assert "6" in never.error["message"]
    assert llm.metrics().num_prompt_tokens == num_prompts
    client.close()
    llm.close()


SLOW_GRAMMARS = """
import sys, time
from forerun.text.grammar_compiler import GrammarCompiler
from forerun.tools import cli
def compile_slowly(compiler, text):
    print("compiles", flush=True)
    time.sleep(100)
GrammarCompiler._compile = compile_slowly
sys.exit(cli.main(["serve", *sys.argv[1:], "--port", "0", "--max-model-len", "128"]))
"""


@pytest.mark.parametrize(("drain_seconds", "num_signals"), [("90", 40), ("1", 1)])
def test_a_server_that_ends_does_not_wait_for_a_grammar(
    tmp_path: Path, drain_seconds: str, num_signals: int
) -> None:
    target, _ = server_models.write_model(tmp_path)
    options = [str(target), "--drain-seconds", drain_seconds]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_GRAMMARS, *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[1]
    body = {"messages": USER, "guided_regex": "[ab]{2}"}

    def post() -> None:
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.post(url, json=body, timeout=60)

    client = threading.Thread(target=post)
    client.start()
    try:
        assert process.stdout.readline() == "compiles\n"
        for _ in range(num_signals):  # those that come at once are one
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
                break
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()
        client.join()


@given(st.data())
def test_what_compiles_a_grammar_is_known_before(data: st.DataObject) -> None:
    names = st.sampled_from(["a", "b"])
    functions = data.draw(
        st.lists(
            st.fixed_dictionaries({"name": names}, optional={"strict": st.booleans()}),
            min_size=1,
            max_size=3,
        )
    )
    tools = [{"type": "function", "function": each} for each in functions]
    named = {"type": "function", "function": {"name": functions[0]["name"]}}
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    choice = data.draw(st.sampled_from([None, "auto", "none", "required", named, some]))
    parallel = data.draw(st.sampled_from([None, True, False]))
    body = ChatRequest(messages=USER, tools=tools, tool_choice=choice, parallel_tool_calls=parallel)
    grammar = tool_grammar(
        "hermes", tools, choice or "auto", parallel_tool_calls=parallel is not False
    )
    assert has_grammar(body) == (grammar is not None)
