"""Closes connections whose client does not send a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Base: Any = AutoHTTPProtocol
_BUSY = object()


def protocol_class(read_seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which by itself waits for the head of a request without end."""

    class TimedProtocol(_Base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            """Looks at the connection every so many seconds."""
            super().connection_made(transport)
            self._idle_after: object = _BUSY
            self._timer = self.loop.call_later(read_seconds, self._look)
            self._look_at()

        def connection_lost(self, exc: Exception | None) -> None:
            """Looks at it no more."""
            self._timer.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            """Closes a connection on which no request has begun since the last time."""
            before = self._idle_after
            self._look_at()
            if self._idle_after is before and before is not _BUSY:
                self.transport.close()
            else:
                self._timer = self.loop.call_later(read_seconds, self._look)

        def _look_at(self) -> None:
            is_busy = self.cycle is not None and not self.cycle.response_complete
            self._idle_after = _BUSY if is_busy else self.cycle

    return TimedProtocol
