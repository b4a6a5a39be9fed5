"""API keys: who may use the server, and which cached prefixes a request may share."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from forerun.server.refusals import refuse, route_path
from forerun.server.tenants import tenant_of_key

# A load balancer and a person's browser have no key. Neither path tells anything of a request.
OPEN_PATHS = frozenset({"/", "/health"})
_OPEN_METHODS = frozenset({"GET", "HEAD"})
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

    Args:
        hosts: names and addresses, in lower case and without a port.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _host(scope) not in self._hosts:
            message = (
                "This server is not called by this name (the request's Host). The option "
                "--allowed-hosts lists its names."
            )
            await refuse(send, 403, message, "invalid_host", {"connection": "close"})
            return
        await self._app(scope, receive, send)


def _host(scope: Scope) -> str | None:
    """The one Host, without its port; None where there is none or several."""
    headers = [value for name, value in scope["headers"] if name == b"host"]
    found = _HOST.fullmatch(headers[0].decode("latin-1").lower()) if len(headers) == 1 else None
    return (found[1] or found[2]) if found else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _bearer_key(scope: Scope) -> bytes | None:
    """The key of the one Authorization header; of several none can be trusted."""
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(headers) != 1:
        return None
    scheme, _, key = headers[0].partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None
