"""Runs an app of the server until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from forerun.errors import InvalidArgumentError
from forerun.server.connections import protocol_class
from forerun.server.drain import Drain
from forerun.server.settings import ServerSettings

_LOGGER = logging.getLogger("forerun.server")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How long cancelled requests and idle connections may take to close, in seconds.
_CLOSE_SECONDS = 1


def listen(settings: ServerSettings) -> socket.socket:
    """The socket of a server; before the model is loaded, which may take much longer to fail."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InvalidArgumentError("host", settings.host, f"an address ({error})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise InvalidArgumentError(
            "port", where, f"an address and a port that this process may listen at ({error})"
        ) from error
    return listener


class Server(uvicorn.Server):
    """Drains at the first SIGTERM or SIGINT, and ends at once at the second."""

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        drain_seconds: float,
        on_start: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._drain_seconds = drain_seconds
        self._on_start = on_start
        self._end: asyncio.Task[None] | None = None
        self.has_cut_off = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals in the event loop, and in the main thread, where they come."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Lets running requests finish; called again, it does not wait for them."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_task(self._finish())
        else:
            self.should_exit = self.force_exit = True

    async def _finish(self) -> None:
        if num_running := self._drain.num_running:
            _LOGGER.info(
                "waiting up to %g s for %d running requests", self._drain_seconds, num_running
            )
        num_left = await self._drain.finish(self._drain_seconds)
        self.has_cut_off = num_left > 0
        if num_left:
            _LOGGER.warning("%d requests were cut off after %g s", num_left, self._drain_seconds)
        self.should_exit = True


def run(
    app: FastAPI, settings: ServerSettings, listener: socket.socket, on_start: Callable[[], None]
) -> bool:
    """Serves an app that `operations.install` prepared; returns when it has ended.

    `on_start` is called when the server accepts connections. False: it did not wait for all
    requests, and threads may still work for them.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=protocol_class(settings.read_seconds),
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        ssl_keyfile=settings.ssl_keyfile,
        ssl_certfile=settings.ssl_certfile,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    server = Server(config, app.state.drain, settings.drain_seconds, on_start)
    server.run(sockets=[listener])
    return not (server.force_exit or server.has_cut_off)


def address_of(settings: ServerSettings, listener: socket.socket) -> str:
    """The URL at which a client on this machine reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    scheme = "https" if settings.ssl_certfile else "http"
    port = listener.getsockname()[1]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def example_call(url: str, model: str, needs_key: bool) -> str:
    """A line for a shell that asks the server something."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    key = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    return (
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d {shlex.quote(json.dumps(body))}"
    )
