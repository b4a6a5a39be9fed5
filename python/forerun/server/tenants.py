"""Who shares cached prefixes and past outputs: requests of one tenant, the engine's `cache_salt`.

Each API key is a tenant. A request's own `cache_salt` makes a tenant of its own, within that of its
key: "KEY:SALT". Without keys the salt alone names the tenant.
"""

from __future__ import annotations

import hashlib


def tenant_of(key_tenant: str, cache_salt: str | None) -> str:
    """The tenant of a request.

    Args:
        key_tenant: that of its API key; empty: it has none.
        cache_salt: its own.
    """
    return ":".join(part for part in (key_tenant, cache_salt) if part)


def tenant_of_key(key: str) -> str:
    """A function of the key alone, the same after a restart, that does not reveal it.

    It has no colon, so that no salt can make it another key's.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return hashlib.blake2b(b"prefix cache", key=digest, digest_size=16).hexdigest()
