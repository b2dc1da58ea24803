"""The first start: a secret key, a tenant with its key, an admin key, connectors and routes. Later starts find what is there and change nothing."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from controlplane.domain.catalog import Connector, Route, Scope
from controlplane.errors import ConfigError
from controlplane.seed import Seed, plant
from controlplane.settings import Settings
from controlplane.store.seal import new_key

__all__ = ["Credentials", "credentials", "seed"]


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
    every = frozenset({Scope.MESSAGES_READ, Scope.MESSAGES_WRITE, Scope.ROUTES_READ, Scope.LEDGER_READ})
    await plant(
        settings,
        Seed(
            tenant="sample",
            tenant_name="Sample tenant",
            keys={"sample": (made.api_key, every), "admin": (made.admin_key, frozenset({Scope.ADMIN}))},
            connectors=[_connector(name, port) for name, port in carriers.items()],
            routes=[
                Route(name=name, connector=name, price=(7, 4)[number % 2], priority=(100, 110)[number % 2])
                for number, name in enumerate(carriers)
            ],
        ),
    )


def _connector(name: str, port: int) -> Connector:
    return Connector(
        name=name,
        host="127.0.0.1",
        port=port,
        system_id="heliograph",
        password="secret",  # noqa: S106 - the simulator's
        window=50,
        rate=1_000.0,
        binds=2,
    )
