"""Errors as OpenAI's API writes them: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from forerun.errors import (
    DeadlineExceededError,
    EngineClosedError,
    ForerunError,
    InvalidArgumentError,
    QueueFullError,
)

_INVALID = "invalid_request_error"
# What OpenAI's `code` is for pydantic's kinds of errors; all others are "invalid_value".
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
}
# OpenAI's clients repeat a request after these statuses. One that failed or took too long would
# do so again.
_LATER = {"retry-after": "1"}
_NEVER = {"x-should-retry": "false"}
_OWN_MESSAGES = {"missing": "it is missing", "extra_forbidden": "there is no such parameter"}
_NO_OBJECT = (
    "The body is not a JSON object that can be read. Send one, with the header "
    "'Content-Type: application/json'."
)


class ApiError(Exception):
    """What a request is answered with in place of its result.

    Attributes:
        status: the HTTP status.
        kind: OpenAI's `type`.
        param: the parameter that is wrong, as a path such as "messages[0].content".
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = _INVALID,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        fields = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": fields}

    def response(self) -> Response:
        """The answer."""
        headers = {503: _LATER, 408: _NEVER, 500: _NEVER}.get(self.status)
        return json_response(self.body(), self.status, headers)


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON that can always be written: what UTF-8 cannot encode is escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "backslashreplace")
    return Response(data, status, headers, media_type="application/json")


def to_api_error(error: Exception) -> ApiError:
    """What a failure of the engine or of a check means to a client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidArgumentError):
        return ApiError(400, str(error), param=error.field, code="invalid_value")
    if isinstance(error, QueueFullError):
        return ApiError(503, str(error), code="queue_full", kind="server_error")
    if isinstance(error, EngineClosedError):
        return ApiError(503, str(error), code="server_shutting_down", kind="server_error")
    if isinstance(error, DeadlineExceededError):
        return ApiError(408, str(error), param="timeout", code="deadline_exceeded", kind="timeout")
    message = f"the server failed: {type(error).__name__}"
    return ApiError(500, message, code="internal_error", kind="server_error")


def validation_error(error: RequestValidationError) -> ApiError:
    """The first parameter that is wrong, with all that is wrong with it."""
    details = error.errors()
    first = details[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidArgumentError):  # of a validator of our own
        return to_api_error(cause)
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}"
        return ApiError(400, message, code=_CODES["json_invalid"])
    if tuple(first["loc"]) == ("body",) and not isinstance(error.body, dict):
        return ApiError(400, _NO_OBJECT, code=_CODES["json_invalid"])
    param = param_of(first, error.body)
    reasons = dict.fromkeys(
        _OWN_MESSAGES.get(detail["type"], detail["msg"])
        for detail in details
        if param_of(detail, error.body) == param
    )
    code = _CODES.get(first["type"], "invalid_type" if "type" in first["type"] else "invalid_value")
    return ApiError(400, f"{param or 'body'}: {'; or '.join(reasons)}", param=param, code=code)


def param_of(detail: dict[str, Any], body: Any) -> str | None:
    """The path of a wrong value in the body, without the names of a union's alternatives."""
    path: list[str | int] = []
    location: Sequence[str | int] = detail["loc"]
    for number, item in enumerate(location[1:], 2):
        try:
            body = body[item]
        except (KeyError, IndexError, TypeError):
            # A union's alternative, or what is missing.
            if detail["type"] != "missing" or number < len(location):
                continue
        path.append(item)
    if location[0] in ("path", "query", "header"):
        path = list(location[1:])
    text = "".join(f"[{item}]" if isinstance(item, int) else f".{item}" for item in path)
    return text.removeprefix(".") or None


def install_errors(app: FastAPI) -> None:
    """Makes all failures of an app's requests answers in OpenAI's form."""

    async def answer(_: Request, error: Exception) -> Response:
        return to_api_error(error).response()

    async def answer_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_error(error).response()

    async def answer_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message, code = str(error.detail), None
        if error.status_code in (404, 405):
            message = f"{request.method} {request.url.path}: {error.detail}"
        elif error.status_code == 400:  # FastAPI's: JSON that is too deep, or a number too long
            message, code = _NO_OBJECT, _CODES["json_invalid"]
        answer = ApiError(error.status_code, message, code=code)
        return json_response(answer.body(), error.status_code, dict(error.headers or {}))

    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)
    for kind in (ApiError, ForerunError, Exception):
        app.add_exception_handler(kind, answer)
