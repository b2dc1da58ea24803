"""What the API needs of the rest of the node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry

from controlplane.api.grants import Grants
from controlplane.api.peers import Peers
from controlplane.clock import Clock
from controlplane.domain.catalog import Connector
from controlplane.domain.events import Event
from controlplane.domain.trial import Trial
from controlplane.ledger.published import Published
from controlplane.ledger.standing import Standing
from controlplane.routing import Learner, Router
from controlplane.settings import Settings
from controlplane.store.audit import AuditStore
from controlplane.store.batch_jobs import BatchJobs
from controlplane.store.book import Book
from controlplane.store.callback_log import CallbackLog
from controlplane.store.catalog import Catalog
from controlplane.store.events import EventReader
from controlplane.store.invitations import Invitations
from controlplane.store.ledger import LedgerStore
from controlplane.store.operations import Operations
from controlplane.store.people import People
from controlplane.store.recipients import Recipients
from controlplane.store.regions import Adoption, RegionStore
from controlplane.store.seal import Seal
from controlplane.store.search_read import Search
from controlplane.store.sessions import Sessions
from controlplane.telemetry.watch import Watch

if TYPE_CHECKING:
    from controlplane.api.auth import Caller

__all__ = ["CallbackReplay", "Health", "Services", "WaitForMirror"]

WaitForMirror = Callable[[Event, Callable[[Exception | None], None]], None]
"""(committed `accepted` of durability `global`, told): `told` is called once, in the loop: with nothing when a second datacenter has it, else with why not."""


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


class RegionAdoption(Protocol):
    """Taking over a lost datacenter's messages, as far as the API knows it."""

    async def ask(self, dc: str, *, dry_run: bool, unattempted: str) -> Adoption:
        """Begin; it goes on in the background."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Built by the composition root."""

    settings: Settings
    clock: Clock
    seal: Seal
    grants: Grants[Caller]
    book: Book
    events: EventReader
    search: Search
    catalog: Catalog
    recipients: Recipients
    batch_jobs: BatchJobs
    router: Router
    learner: Learner
    peers: Peers
    callbacks: CallbackReplay
    callback_log: CallbackLog
    check_callback_url: Callable[[str], str | None]
    """What is wrong with a callback URL, or None."""
    people: People
    links: Invitations
    sessions: Sessions
    audit: AuditStore
    wait_for_mirror: WaitForMirror
    ledger: LedgerStore
    published: Published
    standing: Standing
    regions: RegionStore
    operations: Operations
    adoption: RegionAdoption
    new_callback_secret: Callable[[], str]
    watch: Watch
    try_bind: Callable[[Connector], Awaitable[Trial]]
    """Tries a connector's settings, at most 10 s."""
    health: Callable[[], Health]
    registry: CollectorRegistry
