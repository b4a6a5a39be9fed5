"""API keys: who may use the server, and which cached prefixes a request may share."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from forerun.server.refusals import refuse, route_path

# A load balancer and a person's browser have no key. Neither path tells anything of a request.
OPEN_PATHS = frozenset({"/", "/health"})


class KeyCheck:
    """Refuses requests without a valid key, and sets `request.state.cache_salt`.

    Requests share cached prefixes and past outputs only with those of the same salt. It is a
    function of the key alone, and does not reveal it.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._salts = {_digest(key): cache_salt(key) for key in keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            salt = self._salt(_bearer_key(scope)) if self._salts else ""
            if salt is None and route_path(scope) not in OPEN_PATHS:
                await refuse(
                    send,
                    401,
                    "This server needs an API key: send the header 'Authorization: Bearer KEY' "
                    "with a valid one.",
                    "invalid_api_key",
                    {"www-authenticate": "Bearer"},
                )
                return
            scope.setdefault("state", {})["cache_salt"] = salt or ""
        await self._app(scope, receive, send)

    def _salt(self, key: bytes | None) -> str | None:
        """Compares with every key, so that the time tells neither which one matched nor where."""
        given = hashlib.sha256(key or b"").digest()
        found = None
        for digest, salt in self._salts.items():
            if hmac.compare_digest(given, digest):
                found = salt
        return found if key else None


def cache_salt(key: str) -> str:
    """The salt of a key, the same after a restart."""
    return hashlib.blake2b(b"prefix cache", key=_digest(key), digest_size=16).hexdigest()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _bearer_key(scope: Scope) -> bytes | None:
    """The key of the one Authorization header; of several none can be trusted."""
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(headers) != 1:
        return None
    scheme, _, key = headers[0].partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None
