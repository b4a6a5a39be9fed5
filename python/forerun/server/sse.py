"""Server-sent events, and the end of a request whose client has gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from forerun.server.drain import Drain
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
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def event(body: Any) -> bytes:
    """One event, on one line for every reader of lines."""
    text = _ENCODER.encode(body)
    if not text.isascii():
        text = text.translate(_LINE_ENDS)
    return b"data: " + text.encode("utf-8", "backslashreplace") + b"\n\n"


async def stream_events(
    request: Request, chunks: AsyncGenerator[list[dict[str, Any]], None]
) -> StreamingResponse:
    """An answer of one event for each chunk; those that come together are written together.

    What fails before the answer has begun is raised, so that it can be answered with a status; a
    later failure is an event of its own, and so is the end of the server. The answer begins with
    the first chunk, or after some seconds, with comments until that comes: clients and proxies do
    not wait for it without end.

    Raises:
        ClientGoneError: the client disconnected before the answer had begun.
    """
    drain: Drain = request.app.state.drain
    first = asyncio.ensure_future(_first(chunks, drain))
    try:
        await while_connected(request, asyncio.wait({first}, timeout=_PATIENCE_SECONDS))
        if first.done():
            first.result()
    except BaseException:
        await _close(first, chunks)
        raise

    async def parts() -> AsyncIterator[bytes]:
        try:
            while not first.done():
                yield _COMMENT
                await asyncio.wait({first}, timeout=_PATIENCE_SECONDS)
            drain.watch(asyncio.current_task())
            if ready := first.result():
                yield _events(ready)
            async for ready in chunks:
                yield _events(ready)
            last = _DONE
        except asyncio.CancelledError:
            if not drain.is_over:
                raise
            last = _failure(_shutting_down())
        except Exception as error:
            last = _failure(error)
        finally:
            await _close(first, chunks)
        yield last

    return StreamingResponse(parts(), headers=_HEADERS, media_type="text/event-stream")


async def _first(
    chunks: AsyncGenerator[list[dict[str, Any]], None], drain: Drain
) -> list[dict[str, Any]]:
    """The chunks that come first, if there are any."""
    try:
        drain.watch(asyncio.current_task())
        return await anext(chunks, [])
    except asyncio.CancelledError:
        if drain.is_over:
            raise _shutting_down() from None
        raise


def _events(chunks: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(event(chunk) for chunk in chunks)


def _shutting_down() -> ApiError:
    message = "The server is shutting down, and the answer took too long."
    return ApiError(503, message, code="server_shutting_down", kind="server_error")


def _failure(error: Exception) -> bytes:
    """The end of a stream that failed."""
    answer = to_api_error(error)
    if answer.status == 500:  # there is no status left to tell the server's log
        _LOGGER.error("a stream failed", exc_info=error)
    return event(answer.body()) + _DONE


async def _close(first: asyncio.Future[Any], chunks: AsyncGenerator[Any, None]) -> None:
    await _cancel(first)
    await chunks.aclose()


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
