"""Closes connections whose client neither sends a request nor reads its answer."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Base: Any = AutoHTTPProtocol
_BUSY = object()


def protocol_class(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which by itself waits for its client without end."""

    class TimedProtocol(_Base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            """Looks at the connection every so many seconds."""
            super().connection_made(transport)
            self._state = self._find_state()
            self._timer = self.loop.call_later(seconds, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            """Looks at it no more."""
            self._timer.cancel()
            super().connection_lost(exc)

        def resume_writing(self) -> None:
            """Notes that the client reads."""
            self._state = _BUSY
            super().resume_writing()

        def _look(self) -> None:
            """Ends a connection whose client has done nothing since the last time."""
            before, self._state = self._state, self._find_state()
            if before is not _BUSY and self._state == before:
                self.transport.abort()  # close() waits until all is sent
            else:
                self._timer = self.loop.call_later(seconds, self._look)

        def _find_state(self) -> object:
            """What changes if the client acts; _BUSY while the server has to."""
            is_busy = self.cycle is not None and not self.cycle.response_complete
            if is_busy and not self.flow.write_paused:
                return _BUSY
            return self.cycle, self.transport.get_write_buffer_size()

    return TimedProtocol
