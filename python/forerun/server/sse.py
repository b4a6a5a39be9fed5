"""Server-sent events, and the end of a request whose client has gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from forerun.server.errors import ApiError, to_api_error

_T = TypeVar("_T")
_LOGGER = logging.getLogger("forerun.server")
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_PATIENCE_SECONDS = 10.0
_COMMENT = b": waiting for the first token\n\n"
_DONE = b"data: [DONE]\n\n"


class ClientGoneError(ApiError):
    """The client closed the connection before its answer was complete."""

    def __init__(self) -> None:
        # nginx's status for it; no one reads it but the log.
        super().__init__(499, "the client closed the connection", code="client_closed_request")


# Line ends for str.splitlines, with which many clients read a stream's lines.
_LINE_ENDS = str.maketrans({char: f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"})


def event(body: Any) -> bytes:
    """One event, on one line for every reader of lines."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return b"data: " + text.encode("utf-8", "backslashreplace") + b"\n\n"


async def stream_events(
    request: Request, chunks: AsyncGenerator[dict[str, Any], None]
) -> StreamingResponse:
    """An answer of one event for each chunk.

    What fails before the answer has begun is raised, so that it can be answered with a status; a
    later failure is an event of its own. The answer begins with the first chunk, or after some
    seconds, with comments until that comes: clients and proxies do not wait for it without end.

    Raises:
        ClientGoneError: the client disconnected before the answer had begun.
    """
    first = asyncio.ensure_future(anext(chunks))
    try:
        await while_connected(request, asyncio.wait({first}, timeout=_PATIENCE_SECONDS))
        if first.done():
            first.result()
    except BaseException:
        await _cancel(first)
        raise

    async def events() -> AsyncIterator[bytes]:
        try:
            while not first.done():
                yield _COMMENT
                await asyncio.wait({first}, timeout=_PATIENCE_SECONDS)
            yield event(first.result())
            async for chunk in chunks:
                yield event(chunk)
                # Where more chunks are ready, a client that has gone is noticed before the next.
                await asyncio.sleep(0)
        except Exception as error:
            answer = to_api_error(error)
            if answer.status == 500:  # there is no status left to tell the server's log
                _LOGGER.error("a stream failed", exc_info=error)
            yield event(answer.body())
        finally:
            await _cancel(first)
            await chunks.aclose()
        yield _DONE

    return StreamingResponse(events(), headers=_HEADERS, media_type="text/event-stream")


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """What `work` returns; cancels it and raises ClientGoneError when the client disconnects."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        await _cancel(task, watcher)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
