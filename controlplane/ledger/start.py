"""The start rule: before a ledger signs for the first time in its term, it asks the others what they have of its logs.

A database that was restored from a snapshot knows less than it has signed, and would sign a second history of the same sizes. So every peer and witness is asked
for the newest checkpoint of the current log, and for logs that come after it. One answer is enough to begin, all that answer are heard; who has more than we, or
another root of what we have, has the proof with our own signature on it: then nothing is signed, and repair fetches what is missing from the peer's mirror
(`catch_up`) before the rule is asked again. Sending goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint, origin_of, quarter_of
from controlplane.ledger.chunk import Edge, RefusedReplyError, open_note, verify_chunk
from controlplane.ledger.merkle import EMPTY
from controlplane.ledger.mirror import root_at, store_chunk
from controlplane.ledger.note import Note, Signer, Verifier, derive
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.ledger.publisher import request_body
from controlplane.ledger.trust import Trust
from controlplane.ledger.wire import Ask, Listed
from controlplane.ledger.witness import Forks
from controlplane.settings import Settings
from controlplane.store.copies import Copies, Held
from controlplane.store.ledger import Finding, LedgerStore, Log, StaleWriterError, opening_time
from controlplane.tasks import going_on

__all__ = ["Heard", "Hearing", "RestoredError", "StartRule"]

_log = structlog.get_logger()
_AGAIN_SECONDS = 2.0
_LIMIT = 4_096
_MOST_LOGS = 64
"""Successors that one peer may name; a quarter brings one."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A checkpoint of ours that somebody else has, and that we do not continue."""

    by: str
    origin: str
    size: int
    note: str
    """With our own signature; empty from a witness that only says the size."""
    forked: bool = False
    """Another root than ours of a size that we have."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """What came of asking once."""

    answered: tuple[str, ...]
    silent: tuple[str, ...]
    against: tuple[Heard, ...]

    @property
    def state(self) -> str:
        """allowed, refusing, alone (nobody answered whom there is to ask)."""
        if self.against:
            return "refusing"
        return "alone" if self.silent and not self.answered else "allowed"


class RestoredError(Exception):
    """Somebody has more of our log than we have: nothing may be signed."""

    def __init__(self, against: Sequence[Heard]) -> None:
        first = max(against, key=lambda heard: heard.size)
        super().__init__(
            f"{first.by} has {first.size} entries of {first.origin} with our signature, and this database does not"
        )
        self.against = tuple(against)


class StartRule:
    """One per process. `allow` before each term's first round."""

    def __init__(
        self,
        store: LedgerStore,
        copies: Copies,
        settings: Settings,
        clock: Clock,
        forks: Forks,
        peers: Sequence[LedgerClient],
        witnesses: Sequence[LedgerClient] = (),
    ) -> None:
        self._store = store
        self._copies = copies
        self._settings = settings
        self._clock = clock
        self._forks = forks
        self._peers = peers
        self._witnesses = witnesses
        self._trust = Trust(settings)
        self.state = "asking"
        """asking, allowed, refusing, alone."""

    async def allow(self) -> Hearing:
        """Return once signing is allowed. Raises RestoredError (after a finding), StoreUnavailableError, DamagedCopyError."""
        self.state = "asking"
        while going_on():
            hearing = await self.ask()
            if self.state != hearing.state:
                _log.info("start_rule", state=hearing.state, answered=hearing.answered, silent=hearing.silent)
            self.state = hearing.state
            if hearing.state == "refusing":
                await self._report(hearing.against)
                raise RestoredError(hearing.against)
            if hearing.state == "alone" and not self._settings.ledger_start_without_peers:
                _log.error("start_waits_for_peers", silent=hearing.silent)
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            self.state = "allowed"
            return hearing
        raise asyncio.CancelledError

    async def ask(self) -> Hearing:
        """Ask everybody once, at the same time."""
        logs = await self._store.logs(own=True, dc=self._settings.datacenter)
        asking = [self._ask(client, logs) for client in self._peers]
        asking += [self._ask_witness(client, logs) for client in self._witnesses]
        heard = await asyncio.gather(*asking, return_exceptions=True)
        if failed := [each for each in heard if isinstance(each, BaseException)]:
            raise failed[0]  # our own store; who does not answer is no failure
        names = [client.name for client in (*self._peers, *self._witnesses)]
        answers = [(name, each) for name, each in zip(names, heard, strict=True) if not isinstance(each, BaseException)]
        return Hearing(
            tuple(name for name, against in answers if against is not None),
            tuple(name for name, against in answers if against is None),
            tuple(each for _, against in answers for each in against or ()),
        )

    async def _report(self, against: Sequence[Heard], state: str = "open") -> None:
        for heard in against:
            await self._store.report(
                Finding(
                    kind=Fault.FORK if heard.forked else Fault.BEHIND,
                    origin=heard.origin,
                    detail=f"{heard.by} has {heard.size} entries\n{heard.note}",
                    at=self._clock.now_ms(),
                    state=state,
                    subject=heard.by,
                )
            )

    # -- asking --------------------------------------------------------------------------------------------------------

    async def _ask(self, client: LedgerClient, logs: Sequence[Log]) -> list[Heard] | None:
        """What a peer's witness and mirror have against us; None when it does not answer."""
        try:
            listed = (await client.logs(self._settings.datacenter))[-_MOST_LOGS:]
            known = {log.origin: log for log in logs}
            origins = [each.origin for each in listed if each.origin not in known and self._is_ours(each.origin)]
            origins += [log.origin for log in logs[-1:]]
            found = []
            for origin in origins:
                texts = (await client.checkpoint(origin), await client.cosigned(origin))
                judged = [await self._judge(client.name, known.get(origin), origin, text) for text in texts if text]
                found += [heard for heard in judged if heard]
        except PeerError as error:
            _log.warning("start_peer_silent", peer=client.name, reason=str(error)[:300])
            return None
        return found

    def _is_ours(self, origin: str) -> bool:
        return self._trust.datacenter_of(origin) == self._settings.datacenter

    def _keys(self, log: Log | None, origin: str) -> list[Verifier]:
        return list({self._trust.own_key(origin), *([Verifier.parse(log.vkey)] if log else [])})

    async def _judge(self, by: str, log: Log | None, origin: str, text: str) -> Heard | None:
        """None when we have all of it. What we did not sign does not count."""
        try:
            note, theirs = open_note(text, origin, self._keys(log, origin))
        except RefusedReplyError as error:
            _log.error("start_checkpoint_not_ours", peer=by, origin=origin, reason=str(error)[:300])
            return None
        if log is None or theirs.size > log.size:
            return Heard(by, origin, theirs.size, str(note))
        ours = Held(log.size, log.root, log.frontier, log.checkpoint)
        if theirs.size and await root_at(self._store, origin, ours, theirs.size) != theirs.root:
            await self._forks.found(Checkpoint(origin, log.size, log.root), log.checkpoint, theirs, str(note))
            return Heard(by, origin, theirs.size, str(note), forked=True)
        return None

    async def _ask_witness(self, client: LedgerClient, logs: Sequence[Log]) -> list[Heard] | None:
        """A witness of somebody else: its 409 says how much it has seen. With nothing of our own to show, it is shown the empty log."""
        log = logs[-1] if logs else None
        if log is not None and log.checkpoint:
            checkpoint, size, origin = log.checkpoint, log.size, log.origin
        else:
            settings = self._settings
            quarter = quarter_of(self._clock.now_ms())
            origin = log.origin if log else origin_of(settings.ledger_domain, settings.datacenter, quarter)
            text, size = Checkpoint(origin, 0, EMPTY).text, 0
            checkpoint = str(Note(text, (Signer.log(origin, derive(settings.ledger_seed, "log")).sign(text),)))
        try:
            answer = await client.add_checkpoint(request_body(checkpoint, 0, []))
            seen = answer.size if answer.status == 409 else None
            if seen is not None and seen > size:
                return [Heard(client.name, origin, seen, "")]
            if size and seen == size:
                answer = await client.add_checkpoint(request_body(checkpoint, size, []))
                if answer.status in (409, 422) and answer.size in (None, size):
                    return [Heard(client.name, origin, size, "", forked=True)]
        except PeerError as error:
            _log.warning("start_witness_silent", witness=client.name, reason=str(error)[:300])
            return None
        return [] if answer.status in (200, 409) else None

    # -- catching up ---------------------------------------------------------------------------------------------------

    async def catch_up(self, term: int) -> int:
        """Fetch what we signed and do not have from the peers' mirrors; how many entries. `term` is the leader's.

        Raises PeerError when no peer gives it, RefusedReplyError, DamagedCopyError, StaleWriterError, StoreUnavailableError. Ask again afterwards, and let a new
        term begin: this one may be a number that was used before.
        """
        restored = 0
        problems: list[PeerError | RefusedReplyError] = []
        for client in self._peers:
            try:
                for listed in (await client.logs(self._settings.datacenter))[-_MOST_LOGS:]:
                    if self._is_ours(listed.origin):
                        restored += await self._fetch(client, listed, term)
            except (PeerError, RefusedReplyError) as error:
                problems.append(error)
        if not restored and problems:
            raise problems[0]
        for finding in await self._store.findings("open"):
            if restored and finding.kind == Fault.BEHIND:
                await self._store.report(replace(finding, state="cured"))
        return restored

    async def _fetch(self, client: LedgerClient, listed: Listed, term: int) -> int:
        """One log, as far as this peer has it."""
        origin = listed.origin
        log = await self._store.log(origin)
        if (log and (log.state != "open" or listed.size <= log.size)) or not listed.size:
            return 0
        held = await self._copies.held(origin) or Held(0, EMPTY, (), "")
        edge, first = await Edge.load(self._store, origin, held), held.size
        seen: set[tuple[str, int]] = set()
        while going_on():
            reply = await client.pull(Ask(origin, edge.held.size, limit=_LIMIT))
            chunk = await verify_chunk(edge, reply, self._keys(log, origin), self._settings.datacenter)
            if not chunk.events and (log is None or not chunk.reaches):
                raise RefusedReplyError(
                    f"{client.name} has {reply.size} entries of {origin}, and gives {edge.held.size}"
                )
            log = log or await self._begin(origin, chunk.events[0])
            terms = {(each.node, each.epoch) for each in chunk.events if each.kind is not Kind.OPENED}
            seen |= terms
            await self._copies.put(log.dc, chunk.events, own=True)
            await self._copies.raise_terms(log.dc, terms)
            if not await store_chunk(self._store, self._copies, edge, chunk, ver=term << 32, final=False):
                raise StaleWriterError(f"{origin} was moved by somebody else")
            edge = chunk.after
            if chunk.reaches:
                await self._commit(log, edge, seen)
                break
        _log.info("log_caught_up", origin=origin, by=client.name, first=first, size=edge.held.size)
        return edge.held.size - first

    async def _begin(self, origin: str, opened: Event) -> Log:
        """A log that this database has forgotten altogether. Its first entry says which one it follows: that one is complete."""
        name = (opened.ref or "").partition(" ")[0]
        before = await self._store.log(name) if name else None
        if before is not None and before.state == "open":
            await self._store.commit(before, replace(before, state="sealed", next=origin, seal="restored"))
        now = self._clock.now_ms()
        log = Log(
            origin=origin,
            dc=self._settings.datacenter,
            own=True,
            vkey=self._trust.own_key(origin).vkey,
            root=EMPTY,
            opened_at=opening_time(before, now),
            previous=name,
        )
        await self._store.create_log(log)
        return log

    async def _commit(self, log: Log, edge: Edge, seen: AbstractSet[tuple[str, int]]) -> None:
        """The log is as long as it was. Marks of nodes that are not among these are found in the runs again."""
        held = edge.held
        sizes = {each.origin: each.size for each in await self._store.logs(own=True, dc=log.dc)} | {
            log.origin: held.size
        }
        marks = dict(log.marks)
        for node, epoch in seen:
            marks[node, epoch] = await self._store.covered(log.dc, node, epoch, sizes)
        new = replace(log, size=held.size, root=held.root, frontier=held.frontier, marks=marks, checkpoint=held.note)
        if not await self._store.commit(log, new):
            raise StaleWriterError(f"{log.origin} was moved by somebody else")
