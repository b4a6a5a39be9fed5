"""What every app of the server has around its routes."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from forerun.server.access_log import RequestLog
from forerun.server.auth import HostCheck, KeyCheck
from forerun.server.drain import Drain, DrainCheck
from forerun.server.limits import BodyLimit
from forerun.server.settings import ServerSettings
from forerun.server.telemetry import HasMetrics, install_metrics


def install(app: FastAPI, llm: HasMetrics, settings: ServerSettings) -> None:
    """Adds keys, limits, CORS, the log, /metrics and `app.state.drain` to an app.

    Handlers find `request.state.tenant`, which has to reach the engine with every prompt, and
    `request.state.request_id`; they call `access_log.log_output` for each finished prompt.
    """
    app.root_path = settings.root_path
    app.state.drain = Drain()
    http_metrics = install_metrics(app, llm)
    # The last one added sees a request first.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.read_seconds)
    app.add_middleware(KeyCheck, keys=settings.api_keys)
    most = settings.max_concurrent_requests
    app.add_middleware(DrainCheck, drain=app.state.drain, max_requests=most)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    if settings.allowed_hosts and "*" not in settings.allowed_hosts:
        app.add_middleware(HostCheck, hosts=settings.allowed_hosts)
    app.add_middleware(RequestLog, metrics=http_metrics, logs=settings.log_requests)
