"""Datacenters' ledgers in this process, without nodes: events are written here, everything else is the product's. Real MongoDB, real sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind, leaf_hash
from controlplane.ids import new_mid
from controlplane.ledger.mirror import Mirror
from controlplane.ledger.note import derive
from controlplane.ledger.peer_api import PeerServer, PeerServices, create_app
from controlplane.ledger.peer_client import LedgerClient
from controlplane.ledger.published import Published
from controlplane.ledger.sequencer import Sequencer
from controlplane.ledger.witness import Forks, Witness
from controlplane.settings import Peer, Settings
from controlplane.store.client import connect
from controlplane.store.committer import Committer
from controlplane.store.copies import Copies
from controlplane.store.events import EventReader
from controlplane.store.ledger import LEDGER_NODE, LedgerStore
from controlplane.store.preference_news import PreferenceNews
from controlplane.store.preferences import PreferenceStore
from controlplane.store.regions import RegionStore
from controlplane.store.routing_states import RoutingStates
from controlplane.store.schema import ensure_indexes
from controlplane.store.statistics import Statistics

DOMAIN = "sms.example"


def seed_of(dc: str) -> bytes:
    return hashlib.sha256(dc.encode()).digest()


def public_key(dc: str, role: Any) -> str:
    return base64.b64encode(derive(seed_of(dc), role).public_key().public_bytes_raw()).decode()


def peer_of(dc: str, *urls: str) -> Peer:
    keys = {f"{role}_key": public_key(dc, role) for role in ("witness", "mirror")}
    return Peer(dc=dc, urls=urls or ("http://127.0.0.1:9",), log_keys=(public_key(dc, "log"),), **keys)


class Site:
    """One datacenter's ledger."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dc = settings.datacenter
        self.clock = SystemClock()
        self.database = connect(settings)
        self.recorded: list[tuple[Kind, str]] = []
        self.term = 1
        self.wire()
        self.url = ""
        self.committers: dict[tuple[str, int], Committer] = {}

    def wire(self) -> None:
        """All that a process holds in memory, anew."""
        self.store = LedgerStore(self.database)
        self.copies = Copies(self.database, self.store)
        self.published = Published(self.store, self.clock)
        self.forks = Forks(self.store, self.copies, self.clock, self._record)
        self.witness = Witness(self.copies, self.forks, self.settings, self.clock)
        secret = self.settings.secret
        self.preferences = PreferenceStore(self.database, secret, self.clock, self.dc)
        self.news = PreferenceNews(self.database, self.preferences)
        self.reader = EventReader(self.database, self.dc)

    async def _record(self, kind: Kind, ref: str, reason: str | None = None) -> None:
        self.recorded.append((kind, ref))

    # -- serving -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        services = PeerServices(
            settings=self.settings,
            clock=self.clock,
            store=self.store,
            published=self.published,
            witness=self.witness,
            forks=self.forks,
            health=lambda: (True, {"role": "leads"}),
            registry=CollectorRegistry(),
            routing=RoutingStates(self.database),
            preferences=self.news,
            regions=RegionStore(self.database),
            statistics=Statistics(self.database, datacenter=self.settings.datacenter),
        )
        listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if self.settings.ledger_tls_certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        server = PeerServer(create_app(services), self.settings)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(server.run_on(listener))
            try:
                yield
            finally:  # of a failing test too: a group that cancels it would leave its sockets open
                server.should_exit = True
                await asyncio.wait([running])

    def knows(self, *peers: Peer) -> None:
        self.settings = self.settings.model_copy(update={"ledger_peers": peers})
        self.wire()

    # -- writing -------------------------------------------------------------------------------------------------------

    async def append(self, events: Sequence[Event], node: str = "node-1", epoch: int = 1) -> list[Event | None]:
        """Commit drafts, in order."""
        key = (node, epoch)
        if key not in self.committers:
            await self.store.add_source(node, epoch)
            newest = await self.reader.last_sequence(node, epoch)
            self.committers[key] = Committer(
                self.database, datacenter=self.dc, node=node, epoch=epoch, clock=self.clock, first_q=newest + 1
            )
        committer = self.committers[key]
        async with asyncio.TaskGroup() as group:
            running = group.create_task(committer.run())
            written = [await committer.append(event) for event in events] if len(events) < 20 else None
            if written is None:
                written = list(await asyncio.gather(*(committer.append(event) for event in events)))
            await committer.drain()
            running.cancel()
        return written

    def accepted(self, mid: str = "", to: str = "+4915112340001", tenant: str = "sample") -> Event:
        now = self.clock.now_ms()
        data = {"to": to, "from": "Heliograph", "body": "Grüße, 世界", "class": "otp", "encoding": "gsm7", "parts": 1}
        return Event(mid or new_mid(now), 0, tenant, Kind.ACCEPTED, now, data)

    def then(self, before: Event, kind: Kind, data: dict[str, Any], **fields: Any) -> Event:
        prev = leaf_hash(before.leaf)
        return Event(before.mid, before.k + 1, before.tenant, kind, self.clock.now_ms(), data, prev=prev, **fields)

    async def messages(self, count: int) -> list[Event]:
        """So many accepted messages, and a `submitted` for each second one."""
        first = await self.append([self.accepted(to=f"+49151{number:08d}") for number in range(count)])
        parts = [[1, "a1"]]
        await self.append(
            [
                self.then(
                    event, Kind.SUBMITTED, {"connector": "sim", "attempt": 1, "part_ids": parts}, cids=("sim/a1",)
                )
                for event in first[::2]
            ]
        )
        return first

    async def sequencer(self, **options: Any) -> Sequencer:
        """Of a new term, opened."""
        self.term += 1
        await self.store.add_source(LEDGER_NODE, self.term)
        committer = Committer(self.database, datacenter=self.dc, node=LEDGER_NODE, epoch=self.term, clock=self.clock)
        sequencer = Sequencer(self.store, committer, self.settings, self.clock, term=self.term, **options)
        await sequencer.open()
        return sequencer

    async def sequence(self, *, seal: str = "") -> Sequencer:
        """Rounds until nothing is new, as a new term."""
        sequencer = await self.sequencer()
        while await sequencer.round():
            pass
        if seal:
            await sequencer.seal(seal)
            while await sequencer.round():
                pass
        return sequencer

    # -- copying -------------------------------------------------------------------------------------------------------

    def client(self, other: Site, *urls: str) -> LedgerClient:
        return LedgerClient.of_peer(peer_of(other.dc, *(urls or (other.url,))), self.settings)

    def mirror(self, other: Site, client: LedgerClient, **options: Any) -> Mirror:
        peer = peer_of(other.dc, other.url)
        return Mirror(self.store, self.copies, peer, self.settings, self.clock, client, self.forks, **options)

    async def catch_up(self, other: Site, *, steps: int = 400, **options: Any) -> Mirror:
        """Mirror the other's logs as far as they are, and say so."""
        async with self.client(other) as client:
            mirror = self.mirror(other, client, **options)
            for _ in range(steps):
                logs = await other.store.logs(own=True, dc=other.dc)
                copy = await self.store.log(logs[-1].origin) if logs else None
                if copy and copy.size == logs[-1].size and not mirror._have:
                    break
                await mirror.step()
            else:
                raise AssertionError(f"not caught up: {mirror.state}")
        return mirror

    async def close(self) -> None:
        await self.database.client.drop_database(self.settings.database)
        await self.database.client.close()


@asynccontextmanager
async def site(settings: Settings, dc: str, **values: Any) -> AsyncIterator[Site]:
    """A datacenter with a database of its own; `knows` introduces it to others."""
    made = Site(
        settings.model_copy(
            update={
                "datacenter": dc,
                "database": f"test_{dc}_{uuid.uuid4().hex[:10]}",
                "ledger_domain": DOMAIN,
                "ledger_key": type(settings.ledger_key)(base64.b64encode(seed_of(dc)).decode()),
                **values,
            }
        )
    )
    try:
        await ensure_indexes(made.database)
        await made.store.ensure_indexes()
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def two_sites(settings: Settings, **values: Any) -> AsyncIterator[tuple[Site, Site]]:
    """fra and iad, which know and serve each other."""
    async with site(settings, "fra", **values) as fra, site(settings, "iad", **values) as iad:
        fra.knows(peer_of("iad"))
        iad.knows(peer_of("fra"))
        async with fra.serving(), iad.serving():
            yield fra, iad


async def stories(site: Site) -> dict[str, list[tuple[Any, ...]]]:
    """`_id` → everything that an event's document says, of all messages."""
    found = {}
    async for d in site.database["events"].find({}):
        found[d["_id"]] = (d["dc"], d["n"], d["e"], d["q"], bytes(d["leaf"]), d["t"], d["data"], d["salt"])
    return found
