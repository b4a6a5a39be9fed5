"""A limit on the size of a request's body."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.server.refusals import refuse


class BodyLimit:
    """Reads a body whole, up to a limit, before the app sees the request."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = None if self._announces_more(scope) else await self._read(receive)
        except ClientDisconnect:
            return
        if body is None:
            await refuse(
                send,
                413,
                f"The request's body has more than {self._max_bytes} bytes, the most that this "
                "server reads.",
                "request_too_large",
                # The rest of the body is not read.
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
