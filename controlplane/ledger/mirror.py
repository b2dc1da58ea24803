"""The mirror: a copy of a peer's logs with every payload, so that this datacenter answers for the peer's messages and can give back what the peer lost.

Logs are followed one after the other, the oldest unfinished first. Of each answer everything is verified before anything is stored (`chunk`); then it is
stored in the order events, bundles and tiles and runs, the log's document: a mirror that is killed anywhere begins again where its document says, and what it
finds there already is the same. Once all that a checkpoint covers is stored, it is cosigned with the mirror's key, "I durably hold this", and the next pull
hands that over. Sizes, not times, say how far behind it is; `MirrorState` has both.

- A successor is followed when one of the peer's keys signed it and its first entry commits to a size and root of the log before that the copy has.
- An `erased` event erases what is held of its message, also what comes later. What comes without a payload and is not erased was damaged before: `bare`.
- A peer's event whose `_id` another datacenter's event has: see `controlplane.store.copies`.
- A smaller checkpoint is old news, if it belongs to what is held. An answer that does not continue what is held is refused, and the peer is asked to prove
  which history its newest checkpoint has; when that is another one than the log signed before, it is a fork: both are kept, and the log is frozen.
"""

from __future__ import annotations

import asyncio
import base64
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.bare import Bare
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.chunk import (
    Chunk,
    DamagedCopyError,
    Edge,
    InconsistentError,
    RefusedReplyError,
    drafts,
    open_note,
    verify_chunk,
)
from controlplane.ledger.merkle import EMPTY, ProofError, root_tiles, tree_root, verify_consistency
from controlplane.ledger.note import Note, Verifier, parse_note
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.ledger.tiles import TileHashes
from controlplane.ledger.trust import Trust, cosigner
from controlplane.ledger.wire import Ask, Reply
from controlplane.ledger.witness import Forks
from controlplane.settings import Peer, Settings
from controlplane.store.copies import Copies, Held
from controlplane.store.ledger import Finding, LedgerStore, Log, StaleWriterError, opening_time
from controlplane.tasks import going_on

__all__ = ["Mirror", "MirrorState", "root_at", "store_chunk"]

_log = structlog.get_logger()
_FORESEEN = (PeerError, RefusedReplyError, DamagedCopyError, StoreUnavailableError, StaleWriterError)
_WAIT_MS = 10_000
_LIMIT = 4_096
_NOTHING = Held(0, EMPTY, (), "")
_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 2.0


@dataclass(slots=True)
class MirrorState:
    """How far behind a mirror is."""

    dc: str
    origin: str = ""
    held: int = 0
    """Entries of that log that are here."""
    known: int = 0
    """Entries of it that the peer was last known to have."""
    newest_at: int = 0
    """When the newest event that is here happened, ms since the epoch on the peer's clock."""
    heard: float = float("-inf")
    """When the peer last answered, on the monotonic clock."""
    problem: str = ""
    """Why nothing comes; empty while it does."""

    @property
    def behind(self) -> int:
        """Entries that the peer has and we have not."""
        return max(0, self.known - self.held)


class Mirror:
    """One per peer; it runs in the ledger that leads. Two at once do no harm but pull everything twice."""

    def __init__(
        self,
        store: LedgerStore,
        copies: Copies,
        peer: Peer,
        settings: Settings,
        clock: Clock,
        client: LedgerClient,
        forks: Forks,
        *,
        at: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._store = store
        self._copies = copies
        self._dc = peer.dc
        self._clock = clock
        self._client = client
        self._forks = forks
        self._at = at
        """Told of each step; tests kill there."""
        self._trust = Trust(settings)
        self._signer = cosigner(settings, "mirror")
        self._edge: Edge | None = None
        self._have = ""
        """What the next pull hands over."""
        self._ahead: Reply | None = None
        """The answer to a pull from the edge on that was sent while the last chunk was stored."""
        self._stale = ""
        self._bare = Bare(store, copies, client, peer.dc, clock)
        self.state = MirrorState(peer.dc)

    async def run(self) -> None:
        """Until cancelled. Nothing that a peer does ends it."""
        pause = _PAUSE_SECONDS
        while going_on():
            try:
                await self.step(_WAIT_MS)
            except Exception as error:  # noqa: BLE001 - nor does what nobody thought of
                self._forget()
                if not isinstance(error, _FORESEEN):
                    _log.error("mirror_failed", peer=self._dc, trace=traceback.format_exc()[-2000:])
                if self.state.problem != str(error)[:300]:
                    _log.warning("mirror_stopped", peer=self._dc, origin=self.state.origin, reason=str(error)[:300])
                self.state.problem = str(error)[:300]
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _PAUSE_SECONDS
                if self._edge is None:
                    await asyncio.sleep(_PAUSE_SECONDS)  # the peer has no log yet, or a frozen one has no successor
                else:
                    self.state.problem = ""

    async def step(self, wait_ms: int = 0) -> int:
        """One pull, stored; how many entries. Raises PeerError, RefusedReplyError, DamagedCopyError, StoreUnavailableError, StaleWriterError."""
        if self._edge is None and not await self._open():
            return 0
        edge = self._edge
        if edge is None:
            return 0
        reply, self._ahead = self._ahead or await self._pull(edge, wait_ms), None
        if not reply.checkpoint:
            return 0
        keys = self._trust.log_keys(edge.origin)
        _, checkpoint = open_note(reply.checkpoint, edge.origin, keys)
        self.state.known = max(self.state.known, checkpoint.size)
        if checkpoint.size < edge.held.size:
            await self._look_back(edge, checkpoint, reply)
        else:
            try:
                chunk = await verify_chunk(edge, reply, keys, self._dc)
            except InconsistentError:
                await self._suspect(edge, keys)
                raise
            await self._keep(edge, chunk)
            if chunk.reaches:
                await self._bare.look()
        if reply.next and self._edge is not None and self._edge.held.size >= checkpoint.size:
            await self._follow(self._edge, reply.next)
            if self._edge is not None and self._edge.origin == edge.origin:
                await asyncio.sleep(_PAUSE_SECONDS)  # the successor has no entry yet
        return len(reply.entries)

    def _forget(self) -> None:
        self._edge, self._ahead = None, None

    async def _pull(self, edge: Edge, wait_ms: int) -> Reply:
        ask = Ask(edge.origin, edge.held.size, self._have, wait_ms, _LIMIT)
        reply = await self._client.pull(ask)
        self._have = ""
        self.state.heard = self._clock.monotonic()
        return reply

    # -- which log -----------------------------------------------------------------------------------------------------

    async def _open(self) -> bool:
        """Take up the oldest unfinished log. False: there is none yet."""
        logs = await self._store.logs(own=False, dc=self._dc)
        current = next((log for log in logs if log.state == "open"), None)
        if current is None:
            return await self._look_around(logs)
        held = await self._copies.held(current.origin)
        if held is None:
            return False
        self._edge = await Edge.load(self._store, current.origin, held)
        self._have = current.checkpoint if held.size == current.size else ""
        self.state.origin, self.state.held = current.origin, held.size
        self.state.known = max(held.size, self.state.known)
        return True

    async def _look_around(self, logs: Sequence[Log]) -> bool:
        """All that is here is complete or frozen, or there is nothing: ask what else there is."""
        listed = await self._client.logs(self._dc)
        self.state.heard = self._clock.monotonic()
        theirs = [each for each in listed if self._trust.datacenter_of(each.origin) == self._dc]
        if not logs:
            if theirs:
                await self._begin(None, theirs[0].origin)
            return self._edge is not None
        last = logs[-1]
        for each in theirs:
            if each.previous == last.origin:
                await self._begin(last, each.origin)
                break
        else:
            self.state.problem = f"{last.origin} is {last.state}, and the peer names no log that follows it"
        return self._edge is not None

    async def _follow(self, edge: Edge, origin: str) -> None:
        """The log ended; everything of it is here."""
        before = await self._store.log(edge.origin)
        if before is not None and self._trust.datacenter_of(origin) == self._dc:
            await self._begin(before, origin)

    async def _begin(self, before: Log | None, origin: str) -> None:
        """Begin the copy of a log with its first chunk. Raises RefusedReplyError when it does not belong behind the one before."""
        keys = self._trust.log_keys(origin)
        edge = Edge(origin, _NOTHING, {}, [])
        self._have = ""
        reply = await self._pull(edge, 0)
        if not reply.entries:
            return
        chunk = await verify_chunk(edge, reply, keys, self._dc)
        if before is not None:
            await self._belongs(before, chunk.events[0], origin)
        now = self._clock.now_ms()
        log = Log(
            origin=origin,
            dc=self._dc,
            own=False,
            vkey=_signed_by(chunk.after.held.note, keys).vkey,
            root=EMPTY,
            opened_at=opening_time(before, now),
            previous=before.origin if before else "",
        )
        created = await self._store.create_log(log)
        if before is not None:
            await self._copies.seal(before.origin, origin)
        _log.info("mirror_began", peer=self._dc, origin=origin, behind=log.previous)
        self._forget()
        if created:
            self.state.origin, self.state.known = origin, chunk.checkpoint.size
            await self._keep(edge, chunk)
        else:
            await self._open()

    async def _belongs(self, before: Log, opened: Event, origin: str) -> None:
        why = await self._why_not(before, opened)
        if not why:
            return
        detail = f"{origin} does not follow {before.origin}: {why}"
        now = self._clock.now_ms()
        await self._store.report(
            Finding(kind=Fault.LOG, origin=origin, first=0, last=0, detail=detail, at=now, subject=before.origin)
        )
        _log.error("successor_refused", origin=origin, reason=detail)
        raise RefusedReplyError(detail)

    async def _why_not(self, before: Log, opened: Event) -> str:
        held = await self._copies.held(before.origin)
        if opened.kind is not Kind.OPENED or held is None:
            return f"its first entry is `{opened.kind}`"
        try:
            name, size, root, _ = Checkpoint.of_ref(opened.ref or "")
        except ValueError as error:
            return f"its first entry says {opened.ref!r}: {error}"
        if name != before.origin or size > held.size:
            return f"it commits to {size} entries of {name}; held are {held.size} of {before.origin}"
        if await root_at(self._store, before.origin, held, size) != root:
            return f"it commits to another history of {name} than is held"
        return ""

    # -- what does not fit ---------------------------------------------------------------------------------------------

    async def _look_back(self, edge: Edge, checkpoint: Checkpoint, reply: Reply) -> None:
        """A checkpoint of less than is held: old, or of another history."""
        if reply.checkpoint == self._stale or not checkpoint.size:
            return
        if await root_at(self._store, edge.origin, edge.held, checkpoint.size) != checkpoint.root:
            held = Checkpoint.parse(parse_note(edge.held.note).text)
            await self._forks.found(
                held, edge.held.note, checkpoint, reply.checkpoint, "the smaller one is no beginning"
            )
            self._forget()
            raise RefusedReplyError(f"{edge.origin}: signed another history of {checkpoint.size} entries")
        self._stale = reply.checkpoint
        copy = await self._store.log(edge.origin)
        self._have = copy.checkpoint if copy else ""  # tells the peer that it has signed more than it has

    async def _suspect(self, edge: Edge, keys: Sequence[Verifier]) -> None:
        """The answer does not continue what is held. Does the peer's signed history? What it proves convicts it, what it merely says does not."""
        held = edge.held
        if not held.size:
            return
        reply = await self._client.pull(Ask(edge.origin, held.size, limit=0, prove=True))
        note, checkpoint = open_note(reply.checkpoint, edge.origin, keys)
        try:
            verify_consistency(held.size, reply.before, checkpoint.size, checkpoint.root, reply.before_proof)
        except ProofError:
            return
        if reply.before != held.root:
            ours = Checkpoint.parse(parse_note(held.note).text)
            hashes = "\n".join(base64.b64encode(each).decode() for each in (reply.before, *reply.before_proof))
            proof = f"the later one begins with another root of {held.size} entries; it and its proof:\n{hashes}"
            await self._forks.found(ours, held.note, checkpoint, str(note), proof)

    # -- keeping -------------------------------------------------------------------------------------------------------

    async def _keep(self, edge: Edge, chunk: Chunk) -> None:
        """Store it, and meanwhile pull what follows, if the peer has more already."""
        if not chunk.events and chunk.after.held.size == edge.held.size and edge.held.note:
            return
        if not chunk.reaches:
            try:
                async with asyncio.TaskGroup() as group:
                    pulling = group.create_task(self._pull_on(chunk.after))
                    kept = await self._store_all(edge, chunk)
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
            self._ahead = pulling.result()
        else:
            kept = await self._store_all(edge, chunk)
        if not kept:
            self._forget()
            raise StaleWriterError(f"{edge.origin}: another ledger moves this copy")

    async def _pull_on(self, edge: Edge) -> Reply | None:
        try:
            return await self._client.pull(Ask(edge.origin, edge.held.size, limit=_LIMIT))
        except PeerError:
            return None  # the next step asks, and says what is wrong

    async def _store_all(self, edge: Edge, chunk: Chunk) -> bool:
        await self._copies.put(self._dc, chunk.events)
        self._bare.met(edge.origin, edge.held.size, chunk.events)
        self._at("events")
        after = chunk.after
        if chunk.reaches:
            text, signatures = parse_note(after.held.note)
            line = self._signer.cosign(text, self._clock.now_ms() // 1000)
            after = replace(after, held=replace(after.held, note=str(Note(text, (*signatures, line)))))
        if not await store_chunk(self._store, self._copies, edge, replace(chunk, after=after), at=self._at):
            return False
        self._edge = after
        self._have = after.held.note if chunk.reaches else ""
        self.state.held = after.held.size
        if chunk.events:
            self.state.newest_at = chunk.events[-1].at
        return True


async def store_chunk(
    store: LedgerStore,
    copies: Copies,
    edge: Edge,
    chunk: Chunk,
    *,
    ver: int | None = None,
    final: bool = True,
    at: Callable[[str], None] = lambda _step: None,
) -> bool:
    """Bundles, tiles and runs, then the log's document. False: somebody else has moved the copy.

    `ver` orders writers of an own log; of a mirror's copy, what is longer is later: it may be another mirror's, or be left from before the log's document alone
    was put back. What is there decides, since all of it was verified against one history, and this chunk was. Without `final` the checkpoint waits for a `commit`.
    """
    held = chunk.after.held
    bundles, runs = drafts(edge, chunk)
    if chunk.events:
        try:
            await store.stage(edge.origin, held.size if ver is None else ver, bundles, chunk.growth.tiles, runs)
        except StaleWriterError:
            if ver is not None:
                raise
            replaced = await store.stage_under(edge.origin, held.size, bundles, chunk.growth.tiles, runs)
            _log.warning("mirror_found_more", origin=edge.origin, size=held.size, replaced=replaced)
    at("staged")
    done = await copies.advance(edge.origin, edge.held, held, held.note if final and chunk.reaches else "")
    at("advanced")
    return done


async def root_at(store: LedgerStore, origin: str, held: Held, size: int) -> bytes:
    """The root of the first `size` entries of what is held. Raises DamagedCopyError."""
    if size == held.size:
        return held.root
    tiles = await store.tiles(origin, [(tile.level, tile.index) for tile in root_tiles(size)])
    try:
        return tree_root(size, TileHashes(tiles).read)
    except LookupError as error:
        raise DamagedCopyError(f"{origin}: {error}") from None


def _signed_by(note: str, keys: Sequence[Verifier]) -> Verifier:
    names = {signature.key_id for signature in parse_note(note).signatures}
    return next(key for key in keys if key.key_id in names)
