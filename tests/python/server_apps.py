"""Small apps around which tests put what every app of the server has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from forerun.metrics import Metric
from forerun.outputs import CompletionOutput, RequestOutput
from forerun.server.access_log import log_output
from forerun.server.operations import install
from forerun.server.settings import ServerSettings
from forerun.server.sse import stream_events


class NoMetrics:
    """An LLM without counters."""

    def get_metrics(self) -> list[Metric]:
        return []


def small_app(llm: Any = None, **settings: Any) -> FastAPI:
    """An app that tells what reached it, and streams as long as it is asked to."""
    app = FastAPI()

    @app.post("/v1/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"x-tenant": request.state.tenant})

    @app.get("/v1/zeros")
    async def zeros(count: int) -> Response:
        return Response(bytes(count))

    @app.get("/v1/output")
    async def output(request: Request) -> str:
        completion = CompletionOutput(0, "text", [1, 2])
        log_output(request, RequestOutput("0", "a", [1, 2, 3], [completion], True))
        return "text"

    @app.get("/v1/stream")
    async def stream(count: int, seconds: float, width: int = 0) -> StreamingResponse:
        async def numbers() -> AsyncIterator[str]:
            for number in range(count):
                yield f"{number:0{width}}\n"
                await asyncio.sleep(seconds)

        return StreamingResponse(numbers())

    @app.get("/v1/events")
    async def events(request: Request) -> Response:
        async def chunks() -> AsyncGenerator[list[dict[str, Any]], None]:
            while True:
                yield [{}]
                await asyncio.sleep(0.05)

        return await stream_events(request, chunks())

    @app.get("/v1/fail")
    async def fail() -> None:
        raise RuntimeError("on purpose")

    @app.get("/health")
    async def health() -> str:
        return "fine"

    @app.get("/")
    async def page() -> str:
        return "a page"

    install(app, llm or NoMetrics(), ServerSettings(**settings))
    return app
