"""A model on a server with OpenAI's API, as the commands `chat` and `bench` use it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from forerun.errors import ForerunError, InvalidArgumentError, shown
from forerun.sampling_params import SamplingParams

# How long to wait for a connection, in seconds; an answer may take as long as it needs.
_CONNECT_SECONDS = 10


@dataclass
class RemoteAnswer:
    """What a server streamed for one request.

    Attributes:
        usage: OpenAI's `usage`; empty if the server sent none.
        token_ids, metrics: only Forerun's server sends them, where it is asked to.
        first_text_seconds: from the request to the first piece of text.
        last_text_seconds: the same to the last piece.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    first_text_seconds: float = 0.0
    last_text_seconds: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Generated tokens, as the server counts them."""
        return int(self.usage.get("completion_tokens", 0))


class RemoteModel:
    """A served model.

    Args:
        url: the server's, with or without "/v1".
        model: its name there; None takes the first that the server has.
        api_key: None takes FORERUN_API_KEY.

    Raises:
        ForerunError: the server does not answer, or refuses.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidArgumentError("url", url, "http://HOST:PORT or https://HOST:PORT")
        key = api_key or os.environ.get("FORERUN_API_KEY", "").partition(" ")[0]
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1/"
        self._options: dict[str, Any] = {
            "headers": {"authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx2.Timeout(None, connect=_CONNECT_SECONDS),
        }
        self.name = model or self._first_model()

    def _first_model(self) -> str:
        try:
            response = httpx2.get(self._url + "models", **self._options)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        _check_status(response)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise ForerunError(f"{self._url}models: not OpenAI's API") from error

    def stream(
        self, path: str, body: Mapping[str, Any], answer: RemoteAnswer, *, is_forerun: bool = False
    ) -> Iterator[str]:
        """The pieces of an answer's text, as they come; `answer` gets the rest.

        Closing the iterator cancels the request.

        Args:
            path: "chat/completions" or "completions".
            is_forerun: ask for what only Forerun's server sends.
        """
        body = {
            **body,
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"include_metrics": True, "return_token_ids": True} if is_forerun else {}),
        }
        begin = time.monotonic()
        try:
            with httpx2.stream("POST", self._url + path, json=body, **self._options) as response:
                _check_status(response)
                for piece in _pieces(_lines(response.iter_bytes()), answer):
                    answer.last_text_seconds = time.monotonic() - begin
                    if not answer.text:
                        answer.first_text_seconds = answer.last_text_seconds
                    answer.text += piece
                    yield piece
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx2.HTTPError) -> ForerunError:
        return ForerunError(f"{self._url}: {error or type(error).__name__}")


def _lines(parts: Iterator[bytes]) -> Iterator[str]:
    """The lines of an event stream. Other line ends than CR and LF are part of the data."""
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    yield rest.decode(errors="replace")


def _pieces(lines: Iterator[str], answer: RemoteAnswer) -> Iterator[str]:
    """The texts of the events of a stream."""
    for line in lines:
        kind, _, data = line.partition(":")
        if kind != "data" or data.strip() == "[DONE]":
            continue
        chunk = _parsed(data)
        if "error" in chunk:
            raise ForerunError(_message(chunk))
        answer.usage = chunk.get("usage") or answer.usage
        answer.metrics = chunk.get("metrics") or answer.metrics
        for choice in chunk.get("choices", ()):
            answer.token_ids += choice.get("token_ids") or ()
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            if text:
                yield text


def _parsed(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise ForerunError(f"the stream is not OpenAI's: {shown(data)}")
    return chunk


def _check_status(response: httpx2.Response) -> None:
    if response.is_success:
        return
    try:
        message = _message(json.loads(response.read()))
    except ValueError:
        message = response.reason_phrase
    raise ForerunError(f"{response.url}: {response.status_code}: {message}")


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message") if isinstance(error, dict) else body)


# Fields that are always sent: a server's own defaults may be the model's.
_ALWAYS = ("max_tokens", "temperature")
_FIELDS = (
    *("top_p", "top_k", "min_p", "seed", "stop", "repetition_penalty", "frequency_penalty"),
    *("presence_penalty", "logit_bias", "bad_words", "min_tokens", "ignore_eos"),
    "skip_special_tokens",
)


def request_fields(params: SamplingParams, structure: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a request's body has of these parameters: what differs from OpenAI's defaults."""
    defaults = SamplingParams()
    fields = {name: getattr(params, name) for name in _ALWAYS}
    for name in _FIELDS:
        value = getattr(params, name)
        if value != getattr(defaults, name):
            fields[name] = value
    if structure is not None:
        fields["structured_outputs"] = dict(structure)
    return fields
