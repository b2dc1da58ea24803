"""The first start: a secret key, a tenant with its key, an admin key, connectors and routes. Later starts find what is there and change nothing."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from controlplane.callbacks.sign import new_secret
from controlplane.clock import SystemClock
from controlplane.domain.catalog import Connector, Key, Route, Scope, Tenant
from controlplane.errors import ConfigError
from controlplane.ids import token
from controlplane.settings import Settings
from controlplane.store.catalog import Catalog
from controlplane.store.client import connect
from controlplane.store.seal import Seal, new_key

__all__ = ["Credentials", "credentials", "seed"]

_SAMPLE = "sample"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a local `heliograph up` prints; kept in the data directory, readable by its owner only."""

    secret_key: str
    admin_key: str
    api_key: str
    url: str = ""

    def write(self, path: Path) -> None:
        """Replace the file."""
        draft = path.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        draft.replace(path)


def credentials(path: Path) -> Credentials:
    """Those of the data directory, made at the first call."""
    if path.exists():
        try:
            return Credentials(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}). Restore it from a backup: without it the stored secrets cannot be opened."
            ) from error
    made = Credentials(secrets.token_hex(32), new_key(), new_key())
    made.write(path)
    return made


async def seed(settings: Settings, made: Credentials, carriers: dict[str, int]) -> None:
    """Create the sample tenant, both keys, and a connector and route for each carrier (name → port), where they are missing."""
    database = connect(settings)
    seal = Seal(settings.secret)
    catalog = Catalog(database, seal)
    try:
        await catalog.refresh()
        if _SAMPLE not in catalog.snapshot.tenants:
            await catalog.put(Tenant(id=_SAMPLE, name="Sample tenant", callback_secrets=(new_secret(),)))
        every = frozenset({Scope.MESSAGES_READ, Scope.MESSAGES_WRITE, Scope.ROUTES_READ, Scope.LEDGER_READ})
        for name, key, scopes in (("sample", made.api_key, every), ("admin", made.admin_key, frozenset({Scope.ADMIN}))):
            digest = seal.digest_key(key)
            if digest not in catalog.snapshot.keys:
                now = SystemClock().now_ms()
                record = Key(
                    id=token("key", 8),
                    tenant=_SAMPLE,
                    name=name,
                    scopes=scopes,
                    digest=digest,
                    hint=key[:12] + "…",
                    created_at=now,
                )
                await catalog.put(record)
        for number, (name, port) in enumerate(carriers.items()):
            await _carrier(catalog, name, port, price=(7, 4)[number % 2], priority=(100, 110)[number % 2])
    finally:
        await database.client.close()


async def _carrier(catalog: Catalog, name: str, port: int, *, price: int, priority: int) -> None:
    """A connector to a simulated carrier (its port may have changed), and its route at the first start."""
    known = catalog.snapshot.connectors.get(name)
    if known is None or known.port != port:
        connector = Connector(
            name=name,
            host="127.0.0.1",
            port=port,
            system_id="heliograph",
            password="secret",  # noqa: S106 - the simulator's
            window=50,
            rate=1_000.0,
            binds=2,
        )
        await catalog.put(connector)
    if name not in catalog.snapshot.routes:
        await catalog.put(Route(name=name, connector=name, price=price, priority=priority))
