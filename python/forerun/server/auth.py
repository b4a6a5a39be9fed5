"""API keys: who may use the server, and which cached prefixes a request may share."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from forerun.server.refusals import refuse, route_path
from forerun.server.tenants import tenant_of_key

# A load balancer and a person's browser have no key. Neither path tells anything of a request.
OPEN_PATHS = frozenset({"/", "/health"})
_OPEN_METHODS = frozenset({"GET", "HEAD"})
# Names that lead nowhere else: the second is this machine as its containers call it.
_LOCAL_NAMES = frozenset({"localhost", "host.docker.internal"})
# An IPv6 address or a name, and a port.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d*)?")


class KeyCheck:
    """Refuses requests without a valid key, and sets `request.state.tenant` to that of the key."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._tenants = {_digest(key): tenant_of_key(key) for key in keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            tenant = self._tenant(_bearer_key(scope)) if self._tenants else ""
            is_open = scope["method"] in _OPEN_METHODS and route_path(scope) in OPEN_PATHS
            if tenant is None and not is_open:
                await refuse(
                    send,
                    401,
                    "This server needs an API key: send the header 'Authorization: Bearer KEY' "
                    "with a valid one.",
                    "invalid_api_key",
                    {"www-authenticate": "Bearer"},
                )
                return
            scope.setdefault("state", {})["tenant"] = tenant or ""
        await self._app(scope, receive, send)

    def _tenant(self, key: bytes | None) -> str | None:
        """Compares with every key, so that the time tells neither which one matched nor where."""
        given = hashlib.sha256(key or b"").digest()
        found = None
        for digest, tenant in self._tenants.items():
            if hmac.compare_digest(given, digest):
                found = tenant
        return found if key else None


class HostCheck:
    """Refuses requests that were sent to another name than those of the server.

    A web page may have a name that leads to this machine ("DNS rebinding"). Its requests are of one
    origin with it, so that CORS does not keep it from reading the answers; its name tells them.
    Addresses and the names of this machine itself are always those of the server: no page has them.

    Args:
        hosts: further names, in lower case and without a port.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.removesuffix(".") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_own(scope):
            message = (
                "This server is not called by this name (the request's Host). The option "
                "--allowed-hosts lists its names."
            )
            await refuse(send, 403, message, "invalid_host", {"connection": "close"})
            return
        await self._app(scope, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        """Whether the one Host is a name of the server; browsers always send it."""
        headers = [value for name, value in scope["headers"] if name == b"host"]
        if len(headers) != 1:
            return not headers and scope["http_version"] == "1.0"
        found = _HOST.fullmatch(headers[0].decode("latin-1").lower())
        if found is None:
            return False
        host = (found[1] or found[2]).removesuffix(".")
        return host in self._hosts or _is_local(host) or _is_address(host)


def _is_local(host: str) -> bool:
    return host in _LOCAL_NAMES or host.endswith(".localhost")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _bearer_key(scope: Scope) -> bytes | None:
    """The key of the one Authorization header; of several none can be trusted."""
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(headers) != 1:
        return None
    scheme, _, key = headers[0].partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None
