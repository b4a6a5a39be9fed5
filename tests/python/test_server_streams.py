"""How the events of a stream are written: together where they come together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")

from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import State

from forerun.server import sse
from forerun.server.drain import Drain
from forerun.server.errors import ApiError
from forerun.server.sse import event, stream_events

Chunks = AsyncGenerator[list[dict[str, Any]], None]
CODE = "server_shutting_down"
DONE = b"data: [DONE]\n\n"
FAILURE = ApiError(500, "it failed", code="request_failed")


class Client:
    """The receiving end of a request."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.drain = Drain()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def request(self) -> Request:
        return Request({"type": "http", "app": self}, self.receive)

    @property
    def state(self) -> State:
        """That of the app."""
        return State({"drain": self.drain})


async def in_steps(steps: list[int], error: Exception | None) -> Chunks:
    """So many chunks at once, as the steps of an engine add tokens."""
    numbers = iter(range(sum(steps)))
    for count in steps:
        yield [{"number": next(numbers)} for _ in range(count)]
    if error is not None:
        raise error


async def written(steps: list[int], error: Exception | None) -> list[bytes]:
    """What is written for each step."""
    response = await stream_events(Client().request, in_steps(steps, error))
    return [bytes(part) async for part in response.body_iterator]  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_chunks_of_a_step_are_written_at_once(steps: list[int], fails: bool) -> None:
    parts = asyncio.run(written(steps, FAILURE if fails else None))
    numbers = iter(range(sum(steps)))
    expected = [b"".join(event({"number": next(numbers)}) for _ in range(count)) for count in steps]
    expected.append(event(FAILURE.body()) + DONE if fails else DONE)
    assert parts == expected


def test_a_stream_without_chunks_has_an_end() -> None:
    assert asyncio.run(written([], None)) == [DONE]
    with pytest.raises(ApiError, match="it failed"):
        asyncio.run(written([], FAILURE))


def test_chunks_are_not_made_before_the_client_reads_them() -> None:
    num_made = 0
    is_closed = False

    async def endless() -> Chunks:
        nonlocal num_made, is_closed
        try:
            while True:
                num_made += 1
                yield [{}]
        finally:
            is_closed = True

    async def main() -> None:
        response = await stream_events(Client().request, endless())
        parts = response.body_iterator
        for number in range(1, 4):
            await anext(parts)  # type: ignore[call-overload]
            for _ in range(20):
                await asyncio.sleep(0)
            assert num_made == number
        await parts.aclose()  # type: ignore[union-attr]
        assert is_closed

    asyncio.run(main())


@pytest.mark.parametrize("num_chunks", [0, 2])
def test_a_stream_ends_while_it_waits_when_its_client_has_gone(num_chunks: int) -> None:
    is_closed = False

    async def unfinished() -> Chunks:
        nonlocal is_closed
        try:
            if num_chunks:
                yield [{"number": number} for number in range(num_chunks)]
            await asyncio.Event().wait()
        finally:
            is_closed = True

    async def main() -> None:
        client = Client()
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                client.gone.set()

        if num_chunks == 0:
            client.gone.set()
            with pytest.raises(sse.ClientGoneError):
                await stream_events(client.request, unfinished())
        else:
            response = await stream_events(client.request, unfinished())
            scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
            await response(scope, client.receive, send)  # type: ignore[arg-type]
            events = b"".join(event({"number": number}) for number in range(num_chunks))
            assert [message.get("body") for message in sent] == [None, events]
        await asyncio.sleep(0.01)
        assert is_closed

    asyncio.run(main())


@pytest.mark.parametrize("num_chunks", [0, 2])
def test_a_stream_says_that_the_server_ends(num_chunks: int) -> None:
    is_closed = False

    async def unfinished() -> Chunks:
        nonlocal is_closed
        try:
            if num_chunks:
                yield [{"number": number} for number in range(num_chunks)]
            await asyncio.Event().wait()
        finally:
            is_closed = True

    async def main() -> None:
        client = Client()
        client.drain.enter()
        if num_chunks == 0:  # there is a status to say it
            waiting = asyncio.create_task(stream_events(client.request, unfinished()))
            assert await client.drain.finish(0.01) == 1
            with pytest.raises(ApiError, match="shutting down") as caught:
                await waiting
            assert caught.value.status == 503
            with pytest.raises(ApiError, match="shutting down"):  # prepared until now
                await stream_events(client.request, unfinished())
        else:
            response = await stream_events(client.request, unfinished())
            parts = response.body_iterator
            await anext(parts)  # type: ignore[call-overload]
            assert await client.drain.finish(0.01) == 1
            (last,) = [bytes(part) async for part in parts]  # type: ignore[arg-type]
            error, done, end = last.split(b"\n\n")
            assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == CODE
            assert (done, end) == (b"data: [DONE]", b"")
        assert is_closed

    asyncio.run(main())
