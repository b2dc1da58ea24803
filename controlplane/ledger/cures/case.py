"""What cures share: the logs as they are judged now, the peers' copies, and what only a leader can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from controlplane.clock import Clock
from controlplane.domain.events import Event, Kind
from controlplane.errors import ConfigError
from controlplane.ledger.audit import Audit, Case, Holdings
from controlplane.ledger.audit.case import open_checkpoint
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.entries import Row
from controlplane.ledger.note import Note, NoteError, Verifier, parse_note
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.ledger.proven import Place, Proven, width_of
from controlplane.ledger.tiles import ENTRIES, WIDTH, Tile
from controlplane.ledger.trust import Trust
from controlplane.settings import Settings
from controlplane.store.copies import Copies
from controlplane.store.ledger import Finding, Log
from controlplane.store.ledger_scrub import Blob, ScrubStore

__all__ = ["GoneError", "Leader", "Opened", "PeerCopy", "RefusedError", "Traffic", "Workbench", "nowhere"]


_DOUBTS = frozenset({Fault.BEHIND, Fault.ROOT, Fault.FORK})


class RefusedError(Exception):
    """There is no cure here; the message says why, and what to do."""


class GoneError(Exception):
    """The log has been ended before the place that is meant."""


@dataclass(frozen=True, slots=True)
class Leader:
    """What only the ledger that leads can do."""

    record: Callable[[Kind, str, str | None], Awaitable[None]]
    """Write an event of the ledger's own (Sequencer.record)."""
    append: Callable[[Event], Awaitable[Event | None]]
    """Write an event of a message (Committer.append)."""
    seal: Callable[[str, Log], Awaitable[Log]]
    """End the log as given, for the reason given, and open the next (Sequencer.seal)."""
    catch_up: Callable[[], Awaitable[int]]
    """Fetch what was signed and is not here (StartRule.catch_up)."""


@dataclass(slots=True)
class Traffic:
    """What was read from peers."""

    tiles: int = 0
    bundles: int = 0
    rows: int = 0
    """Entries with their payloads."""
    bytes: int = 0


class PeerCopy:
    """A peer's copy of a log at one size, as `proven.Copy`. Whether it answered is remembered."""

    def __init__(self, client: LedgerClient, size: int, traffic: Traffic) -> None:
        self.client = client
        self._size = size
        self._traffic = traffic
        self.silent = ""
        """Why it does not answer; empty while it does."""

    @property
    def name(self) -> str:
        """The peer's datacenter."""
        return self.client.name

    async def _get(self, origin: str, tile: Tile) -> bytes | None:
        if self.silent or tile.width <= 0:
            return None
        try:
            data = await self.client.tile(origin, tile.path)
        except PeerError as error:
            self.silent = str(error)
            return None
        self._traffic.bytes += len(data or b"")
        return data

    async def tiles(self, origin: str, places: Iterable[Place]) -> dict[Place, bytes]:
        """At the widths of our size."""
        found: dict[Place, bytes] = {}
        for level, index in places:
            data = await self._get(origin, Tile(level, index, width_of(self._size, level, index)))
            if data is not None:
                self._traffic.tiles += 1
                found[level, index] = data
        return found

    async def bundles(self, origin: str, indices: Sequence[int]) -> dict[int, bytes]:
        """At the widths of our size."""
        found: dict[int, bytes] = {}
        for index in indices:
            data = await self._get(origin, Tile(ENTRIES, index, width_of(self._size, 0, index)))
            if data is not None:
                self._traffic.bundles += 1
                found[index] = data
        return found

    async def rows(self, origin: str, indices: Sequence[int]) -> list[Row | None]:
        """Entries with their payloads; None for each that it has not."""
        if self.silent or not indices:
            return [None] * len(indices)
        try:
            rows = await self.client.payloads(origin, indices)
        except PeerError as error:
            if "HTTP 404" not in str(error):
                self.silent = str(error)
            return [None] * len(indices)
        self._traffic.rows += sum(row is not None for row in rows)
        self._traffic.bytes += sum(len(row[0]) + len(row[2] or b"") for row in rows if row is not None)
        return list(rows)


@dataclass(frozen=True, slots=True)
class Opened:
    """A log as it is judged now."""

    case: Case
    """`case.tree` is by our own copy alone."""
    found: Sequence[Finding]
    """Of its document."""
    tree: Proven
    """By our copy and the peers'."""
    peers: Sequence[PeerCopy]

    @property
    def log(self) -> Log:
        """Its document."""
        return self.case.log

    def has(self, kind: Fault, subject: str | None = None) -> bool:
        """Whether it still has this fault."""
        return any(each.kind == kind and subject in (None, each.subject) for each in self.found)

    @property
    def all_answer(self) -> bool:
        """Of the peers that were asked."""
        return not any(peer.silent for peer in self.peers)

    async def entry(self, index: int) -> bytes:
        """A proven entry. RefusedError where there is none; GoneError behind the log's end."""
        self.within(index)
        found = await self.tree.bundle(index // WIDTH)
        if found is None:
            raise RefusedError("The entry itself must be mended first.")
        return found[1][index % WIDTH]

    def within(self, index: int) -> None:
        """GoneError behind the log's end."""
        if index >= self.tree.size:
            raise GoneError

    def writer(self, seen: int | None) -> int:
        """By whom a mended document is marked as written: by whoever it was, but never by somebody who is yet to come."""
        own = self.log.own
        most = self.case.holdings.term << 32 if own else self.tree.size
        if seen is not None and seen >= 0 and (seen >> 32 <= most >> 32 if own else seen <= most):
            return seen
        return most


class Workbench:
    """One per repair."""

    def __init__(
        self,
        store: ScrubStore,
        copies: Copies,
        settings: Settings,
        clock: Clock,
        clients: Sequence[LedgerClient],
        leader: Leader,
        *,
        dry: bool,
    ) -> None:
        self.store = store
        self.copies = copies
        self.settings = settings
        self.clock = clock
        self.clients = clients
        self.leader = leader
        self.dry = dry
        self.trust = Trust(settings)
        self.traffic = Traffic()
        self._opened: dict[str, Opened] = {}

    def forget(self) -> None:
        """Logs' documents have changed: judge them anew."""
        self._opened = {}

    async def open(self, origin: str) -> Opened:
        """A log as it is judged now. RefusedError where it has no document."""
        if origin not in self._opened:
            holdings = await self.holdings()
            if origin not in holdings.logs:
                raise RefusedError(f"The document of {origin} must be mended first.")
            audit = Audit(self.store, self.copies, self.settings, self.clock, holdings, origin)
            await audit.document()
            tree = audit.case.tree
            peers = self.peers(tree.size)
            shared = Proven(origin, tree.size, tree.root, [self.store, *peers], audit.case.log.frontier)
            await shared.open()
            self._opened[origin] = Opened(audit.case, audit.found, shared, peers)
        return self._opened[origin]

    async def undoubted(self, dc: str) -> None:
        """RefusedError while it is in doubt how long a datacenter's logs are: what is in them must be known before anything is said to be in none."""
        for origin in [log.origin for log in (await self.holdings()).chain(dc)]:
            opened = await self.open(origin)
            doubts = [each for each in opened.found if each.kind in _DOUBTS or each.subject in ("size", "root")]
            if doubts:
                raise RefusedError(f"How long {origin} is must be mended first ({doubts[0].kind}: {doubts[0].detail}).")

    async def holdings(self) -> Holdings:
        """All logs, as they are now."""
        return await Holdings.read(self.store, self.settings)

    def peers(self, size: int) -> list[PeerCopy]:
        """The peers' copies at a size."""
        return [PeerCopy(client, size, self.traffic) for client in self.clients]

    async def replace(self, old: Log, new: Log) -> None:
        """Put a log's document right. RefusedError when it has moved since it was judged."""
        self.forget()
        if not self.dry and not await self.store.replace_log(old, new):
            raise RefusedError(f"{old.origin} was moved meanwhile; repair it again.")

    async def put_tile(self, opened: Opened, place: Place, right: bytes) -> str:
        """A proven tile where another is; what somebody drafts behind it stays."""
        origin = opened.log.origin
        seen = (await self.store.tile_blobs(origin, [place])).get(place)
        tail = seen.data[len(right) :] if seen is not None else b""
        tail = tail[: len(tail) // 32 * 32] if len(right) < 32 * WIDTH else b""
        if seen is not None and seen.data == right + tail:
            return ""
        done = self.dry or await self.store.mend_tile(origin, place, seen, right + tail, self._writer(opened, seen))
        if not done:
            raise RefusedError("Somebody wrote there meanwhile; repair it again.")
        return f"tile {place[0]}/{place[1]} as the signed root proves it"

    @staticmethod
    def _writer(opened: Opened, seen: Blob | None) -> int:
        return opened.writer(seen.ver if seen is not None else None)

    # -- what was signed -----------------------------------------------------------------------------------------------

    def keys(self, log: Log) -> list[Verifier]:
        """Whoever may have signed a log: by the settings, and by its document."""
        found = self.trusted(log.origin)
        with suppress(NoteError):
            found.append(Verifier.parse(log.vkey))
        return list(dict.fromkeys(found))

    def trusted(self, origin: str) -> list[Verifier]:
        """By the settings alone."""
        if self.trust.datacenter_of(origin) != self.settings.datacenter:
            return list(self.trust.log_keys(origin))
        try:
            return [self.trust.own_key(origin)]
        except ConfigError:
            return []

    async def signed(self, origin: str, keys: Sequence[Verifier]) -> list[tuple[Checkpoint, str, Verifier]]:
        """Every checkpoint of a log that can be had, with the log's signature alone: out of cosignatures, our witness, our copy, the peers."""
        texts = [item.note for item in await self.store.cosignatures(origin)]
        if (seen := await self.copies.witnessed(origin)) is not None:
            texts.append(seen.note)
        with suppress(KeyError, TypeError, ValueError):
            if (held := await self.copies.held(origin)) is not None:
                texts.append(held.note)
        for client in self.clients:
            try:
                texts += [text for text in (await client.checkpoint(origin), await client.cosigned(origin)) if text]
            except PeerError:
                continue
        found = []
        for text in texts:
            for key in keys:
                try:
                    checkpoint = open_checkpoint(text, origin, [key])
                except ValueError:
                    continue
                note = parse_note(text)
                alone = Note(note.text, tuple(one for one in note.signatures if one.key_id == key.key_id)[:1])
                found.append((checkpoint, str(alone), key))
        return found


def nowhere(what: str, peers: Sequence[PeerCopy]) -> str:
    """Why something cannot be had, and what to do."""
    silent = [f"{peer.name} ({peer.silent[:120]})" for peer in peers if peer.silent]
    if silent:
        return f"The {what} is not to be had here, and not all peers answer: {', '.join(silent)}. Bring their ledgers up and repair again."
    if not peers:
        return f"The {what} is not to be had here, and there are no peers in the settings. Restore it from a backup."
    return f"The {what} is to be had neither here nor from {', '.join(peer.name for peer in peers)}. Restore it from a backup."
