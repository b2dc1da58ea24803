"""A ledger beside a node in this process: the real sequencer over the node's database, and a second datacenter's mirror and witness, which sign what they are told to."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from controlplane.clock import SystemClock
from controlplane.ledger.note import Note, Signer, Verifier, derive, parse_note
from controlplane.ledger.sequencer import Sequencer
from controlplane.ledger.trust import cosigner_name
from controlplane.settings import Peer, Settings
from controlplane.store.client import Database
from controlplane.store.committer import Committer
from controlplane.store.ledger import Cosigned, LedgerStore
from controlplane.tasks import going_on

SEED = bytes(range(32))
PEER_SEED = bytes(range(32, 64))


def public(private) -> str:
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


def with_peer(settings: Settings, dc: str = "iad", port: int = 1, **changes) -> Settings:
    """These settings with a second datacenter, whose ledger is said to be at 127.0.0.1:port."""
    peer = Peer(
        dc=dc,
        urls=(f"http://127.0.0.1:{port}",),
        log_keys=(public(derive(PEER_SEED, "log")),),
        witness_key=public(derive(PEER_SEED, "witness")),
        mirror_key=public(derive(PEER_SEED, "mirror")),
    )
    changes = {
        "ledger_peers": (peer,),
        "ledger_key": type(settings.secret_key)(base64.b64encode(SEED).decode()),
        **changes,
    }
    return settings.model_copy(update=changes)


class RunningLedger:
    """Sequences every few milliseconds; `cosigning` names the roles of the peer that keep up."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.store = LedgerStore(database)
        self.clock = SystemClock()
        self.cosigning: set[str] = set()
        self._round = asyncio.Lock()
        self.keys = {
            role: Signer.cosigner(
                cosigner_name(settings.ledger_domain, settings.ledger_peers[0].dc, role), derive(PEER_SEED, role)
            )
            for role in ("witness", "mirror")
        }
        self.committer: Committer
        self.sequencer: Sequencer

    @property
    def vkeys(self) -> list[Verifier]:
        return [Verifier.parse(self.sequencer.log.vkey), *(signer.verifier for signer in self.keys.values())]

    async def cosign(self, role: str) -> int:
        """The newest checkpoint, now; its size."""
        log = (await self.store.logs(own=True))[-1]
        if not log.checkpoint:
            return 0
        note = parse_note(log.checkpoint)
        line = self.keys[role].cosign(note.text, self.clock.now_ms() // 1000)
        await self.store.save_cosignature(
            Cosigned(
                origin=log.origin,
                cosigner=self.keys[role].name,
                role=role,
                size=log.size,
                note=str(Note(note.text, (*note.signatures, line))),
                at=self.clock.now_ms(),
            )
        )
        return log.size

    async def settle(self, database: Database) -> None:
        """Until everything that is committed is sequenced, and cosigned by those that keep up."""
        quiet = 0
        async with asyncio.timeout(20):
            while quiet < 3:
                quiet = 0 if await self.turn() else quiet + 1
                await asyncio.sleep(0.02)

    async def turn(self) -> int:
        async with self._round:  # `run` and `settle` take turns: one sequencer, one round
            count = await self.sequencer.round()
        for role in sorted(self.cosigning):
            await self.cosign(role)
        return count

    async def run(self) -> None:
        while going_on():
            await self.turn()
            await asyncio.sleep(0.03)


@asynccontextmanager
async def running_ledger(settings: Settings, database: Database, *, loop: bool = True) -> AsyncIterator[RunningLedger]:
    """`loop` False: nothing happens but by `turn` and `settle`."""
    ledger = RunningLedger(settings, database)
    await ledger.store.ensure_indexes()
    before = await ledger.store.lease(settings.datacenter)
    term = await ledger.store.take_lease(settings.datacenter, before, "ledger-1", "here", ledger.clock.now_ms())
    assert term is not None
    await ledger.store.add_source("ledger", term)
    ledger.committer = Committer(
        database, datacenter=settings.datacenter, node="ledger", epoch=term, clock=ledger.clock
    )
    ledger.sequencer = Sequencer(ledger.store, ledger.committer, settings, ledger.clock, term=term)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ledger.committer.run())]
        await ledger.sequencer.open()
        if loop:
            tasks.append(group.create_task(ledger.run()))
        yield ledger
        for task in tasks:
            task.cancel()
