"""Limits how many requests run, and ends a server without cutting them off."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from forerun.server.refusals import refuse, route_path


class Drain:
    """Counts running requests, and knows whether new ones are refused.

    Belongs to one event loop: nothing here may be called from another thread.
    """

    def __init__(self) -> None:
        self.num_running = 0
        self.is_draining = False
        self.is_over = False
        self._streams: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """A request begins."""
        self.num_running += 1
        self._idle.clear()

    def leave(self) -> None:
        """A request has ended."""
        self.num_running -= 1
        if self.num_running == 0:
            self._idle.set()

    def watch(self, stream: asyncio.Task[None] | None) -> None:
        """Cancels the running task when the time to finish is over, or if it is already."""
        assert stream is not None
        if self.is_over:
            stream.cancel()
        else:
            self._streams.add(stream)
            stream.add_done_callback(self._streams.discard)

    async def finish(self, seconds: float) -> int:
        """Refuses new requests and waits for running ones; returns how many still run.

        Streams that do are cancelled, and have then to say so to their clients.
        """
        self.is_draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            self.is_over = True
            for stream in self._streams:
                stream.cancel()
            return self.num_running
        return 0


class DrainCheck:
    """Answers 503 while the server drains or is full, so that clients go elsewhere.

    /metrics alone goes on being served while it drains, and /health too while it is full.
    """

    def __init__(self, app: ASGIApp, drain: Drain, max_requests: int) -> None:
        self._app = app
        self._drain = drain
        self._max_requests = max_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) == "/metrics":
            await self._app(scope, receive, send)
            return
        if self._drain.is_draining:
            await refuse(
                send,
                503,
                "The server is shutting down.",
                "server_shutting_down",
                {"connection": "close", "retry-after": "1"},
            )
            return
        if self._drain.num_running >= self._max_requests and route_path(scope) != "/health":
            await refuse(
                send,
                503,
                f"The server answers {self._max_requests} requests already, the most that it may.",
                "too_many_requests",
                {"retry-after": "1"},
            )
            return
        self._drain.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.leave()
