"""One log line a request, as text or as JSON, and the id that names it in both."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.server.settings import ServerSettings
from forerun.server.telemetry import HttpMetrics

if TYPE_CHECKING:
    from starlette.requests import Request

    from forerun.outputs import RequestOutput

_LOGGER = logging.getLogger("forerun.server")
# Paths that machines read every few seconds: logged only if they fail, or at level debug.
_PROBES = ("/health", "/metrics")
_REQUEST_ID = re.compile(rb"[\w.:-]{1,128}", re.ASCII)


@dataclass
class Usage:
    """What the engine did for one HTTP request, all its prompts together.

    Attributes:
        first_token_seconds: of the prompt that waited the longest.
    """

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_target_passes: int = 0
    num_accepted_draft_tokens: int = 0
    first_token_seconds: float = 0.0

    def add(self, output: RequestOutput) -> None:
        """Counts one finished prompt."""
        self.num_prompt_tokens += len(output.prompt_token_ids)
        self.num_cached_tokens += output.num_cached_tokens
        metrics = output.metrics
        if metrics is not None:
            self.num_generated_tokens += metrics.num_generated_tokens
            self.num_target_passes += metrics.num_target_passes
            self.num_accepted_draft_tokens += metrics.spec_decode.num_accepted_tokens
            self.first_token_seconds = max(self.first_token_seconds, metrics.first_token_seconds)


def log_output(request: Request, output: RequestOutput) -> None:
    """Adds a finished prompt to the log line of its request."""
    usage = getattr(request.state, "usage", None)
    if usage is not None:
        usage.add(output)


class RequestLog:
    """Logs and counts every request when its response has ended.

    Sets `request.state.request_id`, the client's X-Request-Id if it is sound, which the response
    has as well.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, logs: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._logs = logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()
        request_id = _request_id(scope)
        usage = Usage()
        scope.setdefault("state", {}).update(request_id=request_id, usage=usage)
        status = 0
        has_ended = has_left = False

        async def watched_send(message: Message) -> None:
            nonlocal status, has_ended
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)
            has_ended = message["type"] == "http.response.body" and not message.get("more_body")

        async def watched_receive() -> Message:
            nonlocal has_left
            message = await receive()
            has_left |= message["type"] == "http.disconnect"
            return message

        try:
            await self._app(scope, watched_receive, watched_send)
        finally:
            seconds = time.monotonic() - begin
            if not has_ended:
                # 499 as nginx has it: the client left before there was an answer.
                status = status or (499 if has_left else 500)
            self._metrics.count(scope, status, seconds)
            if self._logs:
                _log_request(scope, request_id, status, seconds, usage, has_ended)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex


def _log_request(
    scope: Scope, request_id: str, status: int, seconds: float, usage: Usage, has_ended: bool
) -> None:
    client = scope.get("client")
    fields: dict[str, Any] = {
        "client": f"{client[0]}:{client[1]}" if client else "-",
        "method": scope["method"],
        # A query may hold secrets, and a path may hold line breaks.
        "path": quote(scope["path"], safe="/:@!$&'()*+,;=~"),
        "status": status,
        "seconds": round(seconds, 6),
        "request_id": request_id,
        "complete": has_ended,
    }
    text = f"{fields['client']} {fields['method']} {fields['path']} {status} in {seconds:.3f} s"
    if usage.num_prompt_tokens:
        fields |= asdict(usage)
        text += (
            f": {usage.num_prompt_tokens} prompt tokens ({usage.num_cached_tokens} cached), "
            f"{usage.num_generated_tokens} generated ({usage.num_accepted_draft_tokens} of them "
            f"drafted), the first after {usage.first_token_seconds:.3f} s"
        )
    if not has_ended:
        text += ", cut off"
    is_probe = scope["path"].endswith(_PROBES) and status < 400
    level = logging.DEBUG if is_probe else logging.INFO
    _LOGGER.log(level, "%s [%s]", text, request_id, extra={"fields": fields})


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _is_not_cancelled(record: logging.LogRecord) -> bool:
    """False for the trace of a request that the drain cut off, whose own line says so."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError)


def configure_logs(settings: ServerSettings) -> None:
    """Sends what Forerun and uvicorn log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter()
        if settings.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    for name in ("forerun", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(settings.log_level.upper())
        logger.propagate = False
    # What uvicorn says at this level is of its own process and workers.
    errors = logging.getLogger("uvicorn.error")
    errors.setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level.upper())))
    errors.filters = [_is_not_cancelled]
