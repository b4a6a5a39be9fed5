"""The server, running in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.run import listen
from forerun.server.settings import ServerSettings

# Not adaptive: what is drafted must not depend on how busy the machine is.
SUFFIX = {"method": "suffix", "num_speculative_tokens": 4, "adaptive": False}


@contextmanager
def running_server(
    model: Path, mount: str = "", options: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[str]:
    """Serves a model, below the path `mount`; yields the server's address.

    `options` are AsyncLLM's.
    """
    chosen_options = {"speculative_config": SUFFIX, "num_threads": 1, **(options or {})}
    chosen = ServerSettings(port=0, **settings)
    listener = listen(chosen)
    listener.listen()  # requests may come before the server does
    starting: Future[uvicorn.Server] = Future()

    async def serve() -> None:
        async with AsyncLLM(model, **chosen_options) as llm:
            app: Any = make_app(llm, chosen)
            if mount:
                app = Starlette(routes=[Mount(mount, app)])
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
            starting.set_result(server)
            await server.serve([listener])

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if not starting.done():
                starting.set_exception(error)

    thread = threading.Thread(target=run)
    with listener:
        thread.start()
        server = starting.result()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
