"""Limits on a request's body, and on how many requests run at once."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.server.refusals import refuse

_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})  # no route of these methods reads one


class BodyLimit:
    """Reads a body whole, up to a limit and for a while, before the app sees the request."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        # The rest of a body is not read after a refusal.
        try:
            body = None
            if not self._announces_more(scope):
                body = await asyncio.wait_for(self._read(receive), self._seconds)
        except ClientDisconnect:
            return
        except asyncio.TimeoutError:
            message = f"The request's body did not arrive within {self._seconds:g} s."
            headers = {"connection": "close", "x-should-retry": "false"}
            await refuse(send, 408, message, "request_timeout", headers)
            return
        if body is None:
            await refuse(
                send,
                413,
                f"The request's body has more than {self._max_bytes} bytes, the most that this "
                "server reads.",
                "request_too_large",
                {"connection": "close"},
            )
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    def _announces_more(self, scope: Scope) -> bool:
        """Whether Content-Length, which the HTTP server has checked, is above the limit."""
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        return any(int(length) > self._max_bytes for length in lengths)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None as soon as it is too large."""
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)
