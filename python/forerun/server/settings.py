"""How the server is reached, who may use it, and what a request may ask for."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, fields
from dataclasses import field as made
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.util.checks import (
    Problems,
    check_bool,
    check_choice,
    check_dict,
    check_int,
    check_list,
    check_name,
    check_number,
    check_path,
    check_str,
)

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What `forerun serve` sets besides the options of the LLM.

    Wrong values raise InvalidArgumentError, which lists all of them.

    Attributes:
        host: the address to listen at; the default is reached from this machine alone.
        port: 0 takes a free one.
        api_keys: a request has to send one of them; without any, all requests are served.
        served_model_names: names of the model in requests, the first in responses; empty: MODEL.
        root_path: the prefix under which a proxy offers the server, such as "/llm".
        allowed_origins: web pages of which origins may call the server (CORS); "*" is all.
        allowed_hosts: names under which clients may call the server, without ports, besides its
            addresses and localhost; "*" or none of them: all.
        forwarded_allow_ips: proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.
        max_body_bytes: of a request; larger ones get status 413.
        read_seconds: how long a client may take to send a request, or read nothing of an answer
            that waits for it.
        max_concurrent_requests: that are answered at once; further ones get status 503.
        max_tokens_limit: the most tokens a request may generate for each completion.
        max_logprobs: the most log-probabilities a request may ask for at each position, of its
            output and of its prompt; -1: as many as the vocabulary has tokens.
        ssl_keyfile, ssl_certfile: PEM files, both or none; with them the server speaks HTTPS.
        log_format: "text", or "json" for one object a line.
        log_level: the least severe messages that are logged.
        log_requests: log a line for each request.
        tool_call_parser: the format of tool calls; None: as the chat template has them.
        reasoning_parser: the format of reasoning; None: as the chat template has it.
        chat_template: used in place of the model's.
        default_chat_template_kwargs: the template's variables that a request does not give.
        force_include_usage: every stream ends with its usage.
        stream_interval: tokens of one chunk of a stream.
        drain_seconds: how long running requests may go on after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_names: tuple[str, ...] = ()
    root_path: str = ""
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    forwarded_allow_ips: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20
    read_seconds: float = 60.0
    max_concurrent_requests: int = 1024
    max_tokens_limit: int | None = None
    max_logprobs: int = 20
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    log_format: str = "text"
    log_level: str = "info"
    log_requests: bool = True
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    default_chat_template_kwargs: dict[str, Any] = made(default_factory=dict)
    force_include_usage: bool = False
    stream_interval: int = 1
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Checks every field."""
        problems = Problems()
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.default is None:
                continue
            with problems:
                object.__setattr__(self, each.name, _CHECKS[each.name](each.name, value))
        if not problems.errors:
            with problems:
                self._check_certificate()
        problems.raise_all()

    def _check_certificate(self) -> None:
        """Finds out at once whether the two files can be used."""
        if self.ssl_certfile is None or self.ssl_keyfile is None:
            for name in ("ssl_certfile", "ssl_keyfile"):
                if getattr(self, name) is not None:
                    other = "ssl_keyfile" if name == "ssl_certfile" else "ssl_certfile"
                    raise InvalidArgumentError(other, None, f"a PEM file, with {name}")
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.ssl_certfile, self.ssl_keyfile, password=lambda: ""
            )
        except OSError as error:
            raise InvalidArgumentError(
                "ssl_certfile",
                f"{self.ssl_certfile} with {self.ssl_keyfile}",
                f"a certificate and its key without a password, in PEM files ({error})",
            ) from error


def _names(field: str, value: Any) -> tuple[str, ...]:
    items = check_list(field, value, "a list of strings")
    return tuple(check_name(f"{field}[{i}]", item) for i, item in enumerate(items))


def _keys(field: str, value: Any) -> tuple[str, ...]:
    """Names of visible ASCII, the only characters that a header can hold without doubt."""
    keys = _names(field, value)
    for i, key in enumerate(keys):
        if not (key.isascii() and key.isprintable() and " " not in key):
            # The key itself is no one's business.
            raise InvalidArgumentError(
                f"{field}[{i}]", "a key with other characters", "visible ASCII characters"
            )
    return keys


def _root_path(field: str, value: Any) -> str:
    path = check_str(field, value)
    if path and (not path.startswith("/") or path.endswith("/")):
        raise InvalidArgumentError(field, path, "'/' and a path without a slash at its end")
    return path


def _hosts(field: str, value: Any) -> tuple[str, ...]:
    hosts = tuple(name.lower() for name in _names(field, value))
    for i, host in enumerate(hosts):
        if "/" in host or "[" in host or (":" in host and not _is_ip(host)):
            expected = "a name or an address, without a scheme or a port"
            raise InvalidArgumentError(f"{field}[{i}]", host, expected)
    return hosts


def _ips(field: str, value: Any) -> tuple[str, ...]:
    names = _names(field, value)
    for i, name in enumerate(names):
        if name != "*" and not _is_ip(name):
            raise InvalidArgumentError(f"{field}[{i}]", name, "an address, a network or '*'")
    return names


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _seconds(field: str, value: Any) -> float:
    seconds = check_number(field, value)
    if not 0 <= seconds <= 86400:
        raise InvalidArgumentError(field, value, "seconds from 0 to 86400")
    return seconds


def _read_seconds(field: str, value: Any) -> float:
    seconds = check_number(field, value)
    if not 0 < seconds <= 86400:
        raise InvalidArgumentError(field, value, "seconds above 0, up to 86400")
    return seconds


_CHECKS: dict[str, Any] = {
    "host": check_name,
    "port": lambda name, value: check_int(name, value, least=0, most=65535),
    "api_keys": _keys,
    "served_model_names": _names,
    "root_path": _root_path,
    "allowed_origins": _names,
    "allowed_hosts": _hosts,
    "forwarded_allow_ips": _ips,
    "max_body_bytes": lambda name, value: check_int(name, value, least=1),
    "read_seconds": _read_seconds,
    "max_concurrent_requests": lambda name, value: check_int(name, value, least=1),
    "max_tokens_limit": lambda name, value: check_int(name, value, least=1),
    "max_logprobs": lambda name, value: check_int(name, value, least=-1),
    "ssl_keyfile": lambda name, value: str(check_path(name, value)),
    "ssl_certfile": lambda name, value: str(check_path(name, value)),
    "log_format": lambda name, value: check_choice(name, value, LOG_FORMATS),
    "log_level": lambda name, value: check_choice(name, value, LOG_LEVELS),
    "log_requests": check_bool,
    "tool_call_parser": check_name,
    "reasoning_parser": check_name,
    "chat_template": check_name,
    "default_chat_template_kwargs": check_dict,
    "force_include_usage": check_bool,
    "stream_interval": lambda name, value: check_int(name, value, least=1),
    "drain_seconds": _seconds,
}
