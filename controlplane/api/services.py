"""What the API needs of the rest of the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from controlplane.api.peers import Peers
from controlplane.clock import Clock
from controlplane.routing import Router
from controlplane.settings import Settings
from controlplane.store.book import Book
from controlplane.store.callback_log import CallbackLog
from controlplane.store.catalog import Catalog
from controlplane.store.events import EventReader
from controlplane.store.seal import Seal

__all__ = ["BindState", "CallbackReplay", "ConnectorState", "Health", "Services"]


@dataclass(frozen=True, slots=True)
class BindState:
    """One SMPP session of this node."""

    name: str
    bound: bool
    in_flight: int
    window: int
    last_error: str


@dataclass(frozen=True, slots=True)
class ConnectorState:
    """One connector as this node sees it."""

    name: str
    live: bool
    queued: int
    rate: float
    """Parts a second allowed at present (the contract's, or less after throttling)."""
    binds: tuple[BindState, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the node may take messages."""

    ready: bool
    checks: dict[str, str]
    """Name → "ok", or what is wrong."""


class CallbackReplay(Protocol):
    """The deliverer, as far as the API knows it."""

    async def replay(self, *, tenant: str, mid: str, endpoint: str | None = None, k: int | None = None) -> int:
        """Send again; how many."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Built by the composition root."""

    settings: Settings
    clock: Clock
    seal: Seal
    book: Book
    events: EventReader
    catalog: Catalog
    router: Router
    peers: Peers
    callbacks: CallbackReplay
    callback_log: CallbackLog
    check_callback_url: Callable[[str], str | None]
    """What is wrong with a callback URL, or None."""
    new_callback_secret: Callable[[], str]
    connectors: Callable[[], list[ConnectorState]]
    health: Callable[[], Health]
    registry: CollectorRegistry
