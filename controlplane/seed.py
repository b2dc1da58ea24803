"""What a deployment begins with: a tenant, its keys, connectors and routes. Whatever is there already stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.callbacks.sign import new_secret
from controlplane.clock import SystemClock
from controlplane.domain.catalog import Connector, Key, Route, Scope, Tenant
from controlplane.ids import token
from controlplane.settings import Settings
from controlplane.store.catalog import Catalog
from controlplane.store.client import connect
from controlplane.store.seal import Seal

__all__ = ["Seed", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What should be there, and what should not."""

    tenant: str
    tenant_name: str
    keys: Mapping[str, tuple[str, frozenset[Scope]]]
    """Name → (API key, scopes)."""
    revoked: Sequence[str] = field(default_factory=tuple)
    """API keys that end, where they are known."""
    connectors: Sequence[Connector] = field(default_factory=tuple)
    """One that stands there under its name gets this host, port and password, and keeps everything else."""
    routes: Sequence[Route] = field(default_factory=tuple)


async def plant(settings: Settings, seed: Seed) -> list[str]:
    """Create what is missing; what was created. Raises StoreUnavailableError, ConfigError."""
    database = connect(settings)
    seal = Seal(settings.secret)
    catalog = Catalog(database, seal)
    made: list[str] = []
    try:
        await catalog.refresh()
        now = catalog.snapshot
        if seed.tenant not in now.tenants:
            await catalog.put(Tenant(id=seed.tenant, name=seed.tenant_name, callback_secrets=(new_secret(),)))
            made.append(f"tenant {seed.tenant}")
        for name, (key, scopes) in seed.keys.items():
            if seal.digest_key(key) not in now.keys:
                await catalog.put(_key(seed.tenant, name, key, scopes, seal))
                made.append(f"key {name}")
        for key in seed.revoked:
            if (gone := now.keys.get(seal.digest_key(key))) is not None:
                await catalog.delete(Key, gone.id)
                made.append(f"end of the key {gone.hint}")
        for connector in seed.connectors:
            known = now.connectors.get(connector.name)
            wanted = connector
            if known is not None:
                wanted = replace(known, host=connector.host, port=connector.port, password=connector.password)
            if wanted != known:
                await catalog.put(wanted)
                made.append(f"connector {connector.name}")
        for route in seed.routes:
            if route.name not in now.routes:
                await catalog.put(route)
                made.append(f"route {route.name}")
    finally:
        await database.client.close()
    return made


def _key(tenant: str, name: str, key: str, scopes: frozenset[Scope], seal: Seal) -> Key:
    return Key(
        id=token("key", 8),
        tenant=tenant,
        name=name,
        scopes=frozenset(scopes),
        digest=seal.digest_key(key),
        hint=key[:12] + "…",
        created_at=SystemClock().now_ms(),
    )
