"""What the parts of an audit share: the log, what is known of the others, what was found."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.domain.events import Event, leaf_hash
from controlplane.errors import ConfigError
from controlplane.ledger.check import Fault, Ranges, decode_some
from controlplane.ledger.checkpoint import Checkpoint, CheckpointError
from controlplane.ledger.entries import event_of, place_of
from controlplane.ledger.note import NoteError, Verifier, parse_note, verify
from controlplane.ledger.proven import Proven
from controlplane.ledger.tiles import HASH_BYTES, WIDTH, tile_hashes
from controlplane.ledger.trust import Trust, cosigner
from controlplane.settings import Settings
from controlplane.store.copies import Copies
from controlplane.store.ledger import Cosigned, Finding, Log, Run
from controlplane.store.ledger_scrub import ScrubStore, StoredCosignature

__all__ = ["CUT", "Case", "Holdings", "Opening", "Term", "covers", "open_checkpoint", "opening_of"]

CUT = frozenset({"fork", "root"})
"""Why a log may have been ended before entries that were signed."""
_CACHED = 8

Term = tuple[str, int]
"""(node, epoch)."""
Opening = tuple[str, int, bytes]
"""(origin, size, root) of the log before, as an entry 0 commits to it."""


@dataclass(slots=True)
class Met:
    """The entries of one term, by looking at all logs of its datacenter."""

    numbers: dict[str, Ranges] = field(default_factory=dict)
    """Origin → sequence numbers."""
    tops: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Origin → the highest of them, and its index."""
    whole: bool = True
    """Whether every entry could be read."""

    def __contains__(self, q: int) -> bool:
        return any(q in ranges for ranges in self.numbers.values())

    def highest(self, origins: Container[str]) -> int:
        """In these logs; 0 for none."""
        return max((q for origin, (q, _) in self.tops.items() if origin in origins), default=0)


@dataclass(slots=True, kw_only=True)
class Holdings:
    """What an audit has to know beyond its log; read once for all logs."""

    logs: Mapping[str, Log]
    """By origin, which says whose they are: what their documents say of that is in `raw` alone."""
    raw: Mapping[str, Log]
    unreadable: Sequence[str]
    """Origins of documents that are no logs."""
    cosignatures: Sequence[StoredCosignature]
    completed: Mapping[Term, int]
    term: int
    """The highest that this datacenter's ledger was led under."""
    openings: Mapping[str, Opening]
    """Origin → what its first entry says of the log before; only where entry and tile agree on it."""
    gaps: dict[str, list[tuple[Term, int, int]]] = field(default_factory=dict)
    """Datacenter → (term, first q, last q) that `gap` events explain."""
    met: dict[tuple[str, Term], Met] = field(default_factory=dict)
    """What `Case.met` found."""

    @classmethod
    async def read(cls, store: ScrubStore, settings: Settings) -> Holdings:
        """In this order, so that what moves meanwhile is never ahead of what it is compared with."""
        completed = await store.completed()
        cosignatures = await store.cosignature_documents()
        documents = await store.log_documents()
        raw = {origin: log for origin, log in documents if log is not None}
        trust, here = Trust(settings), settings.datacenter
        dcs = {origin: trust.datacenter_of(origin) or log.dc for origin, log in raw.items()}
        lease = await store.lease(here)
        return cls(
            logs={origin: replace(log, dc=dcs[origin], own=dcs[origin] == here) for origin, log in raw.items()},
            raw=raw,
            unreadable=[origin for origin, log in documents if log is None],
            cosignatures=cosignatures,
            completed=completed,
            term=lease["term"] if lease else max((log.term for log in raw.values()), default=0),
            openings=await _openings(store, [origin for origin, log in raw.items() if len(raw) > 1]),
        )

    def cosigned(self, origin: str) -> list[Cosigned]:
        """What cosigners said of a log, as far as it can be read; unverified."""
        items = [stored.item for stored in self.cosignatures]
        return [item for item in items if item is not None and item.origin == origin]

    def chain(self, dc: str) -> list[Log]:
        """A datacenter's logs, oldest first."""
        return [log for log in self.logs.values() if log.dc == dc]

    def sizes(self, dc: str) -> dict[str, int]:
        """Origin → size, of a datacenter's logs: the largest that its document, its checkpoint, its successor or a cosigner says. It may be too large where
        something is damaged; it is not too small."""
        sizes: dict[str, int] = {}
        for log in self.chain(dc):
            said = [log.size]
            if log.seal not in CUT:
                said += [_size_of(log.checkpoint), *(_size_of(item.note) for item in self.cosigned(log.origin))]
                said += [size for origin, size, _ in self.openings.values() if origin == log.origin]
            sizes[log.origin] = max(said)
        return sizes


def _size_of(note: str) -> int:
    """What a note says, whether it holds or not."""
    try:
        return Checkpoint.parse(parse_note(note).text).size
    except (NoteError, CheckpointError):
        return 0


async def _openings(store: ScrubStore, origins: Sequence[str]) -> dict[str, Opening]:
    blobs = await store.first_blobs(origins)
    found: dict[str, Opening] = {}
    for origin, (bundle, tile) in blobs.items():
        entries, _ = decode_some(bundle)
        if entries and leaf_hash(entries[0]) == tile[:HASH_BYTES] and (opening := opening_of(entries[0])) is not None:
            found[origin] = opening
    return found


def opening_of(leaf: bytes) -> Opening | None:
    """What a log's first entry commits to; None for nothing."""
    try:
        return Checkpoint.of_ref(event_of(leaf, None, None).ref or "")[:3]
    except ValueError:
        return None


def open_checkpoint(text: str, origin: str, keys: Iterable[Verifier]) -> Checkpoint:
    """What a log has signed. ValueError that says why it has not."""
    try:
        note = parse_note(text)
        checkpoint = Checkpoint.parse(note.text)
        signed_by = {one.name for one in verify(note, keys)}
    except (NoteError, CheckpointError) as error:
        raise ValueError(str(error)) from None
    if checkpoint.origin != origin:
        raise ValueError(f"it is that of {checkpoint.origin}")
    if origin not in signed_by:
        raise ValueError("the log has not signed it")
    return checkpoint


def covers(run: Run, q: int) -> bool:
    """Whether the run holds this sequence number."""
    return run.q <= q < run.q + run.count


class Case:
    """One log under audit."""

    def __init__(
        self, store: ScrubStore, copies: Copies, settings: Settings, holdings: Holdings, log: Log, now_ms: int
    ) -> None:
        self.store = store
        self.copies = copies
        self.settings = settings
        self.trust = Trust(settings)
        self.holdings = holdings
        self.log = log
        self.now = now_ms
        self.tree: Proven
        """By the size and root that count; `Signed` sets it."""
        self.keys: tuple[Verifier, ...] = ()
        """Whoever may sign this log; `Signed` sets it."""
        self.behind = False
        """A mirror that knows of entries that it has not yet."""
        self.found: list[Finding] = []
        self._told: set[str] = set()
        self._bundles: dict[tuple[str, int], list[bytes]] = {}
        self._trees: dict[str, Proven] = {}

    def fault(self, kind: Fault, first: int, last: int, subject: str, detail: str) -> None:
        """Note it, once."""
        finding = Finding(
            kind=kind, origin=self.log.origin, first=first, last=last, detail=detail, at=self.now, subject=subject
        )
        if finding.id not in self._told:
            self._told.add(finding.id)
            self.found.append(finding)

    def sizes(self) -> dict[str, int]:
        """Origin → size of the logs of this datacenter, of this one as it was signed."""
        return self.holdings.sizes(self.log.dc) | {self.log.origin: self.tree.size}

    def mirror_key(self) -> list[Verifier]:
        """Our own mirror's: its cosignature is in a copy's checkpoint."""
        if self.log.own:
            return []
        try:
            return [cosigner(self.settings, "mirror").verifier]
        except ConfigError:
            return []

    # -- reading what is stored ----------------------------------------------------------------------------------------

    async def entry(self, origin: str, index: int) -> bytes | None:
        """An entry of any log as its root proves it; None where what is stored is another, or cannot be read."""
        leaf = await self._stored(origin, index)
        tree = await self.proven(origin)
        if leaf is None or tree is None or index >= tree.size:
            return None
        return leaf if leaf_hash(leaf) == await tree.leaf_hash(index) else None

    async def _stored(self, origin: str, index: int) -> bytes | None:
        place = (origin, index // WIDTH)
        if place not in self._bundles:
            if len(self._bundles) >= _CACHED:
                del self._bundles[next(iter(self._bundles))]
            self._bundles[place] = decode_some(await self.store.bundle(*place) or b"")[0]
        entries = self._bundles[place]
        return entries[index % WIDTH] if index % WIDTH < len(entries) else None

    async def proven(self, origin: str) -> Proven | None:
        """The tiles of this log, or of another as its document says."""
        if origin == self.log.origin:
            return self.tree
        if origin not in self._trees and (log := self.holdings.logs.get(origin)) is not None:
            self._trees[origin] = Proven(origin, log.size, log.root, [self.store], log.frontier)
            await self._trees[origin].open()
        return self._trees.get(origin)

    async def place(self, origin: str, index: int) -> tuple[str, int, int] | None:
        """(node, epoch, q) of an entry."""
        leaf = await self.entry(origin, index)
        try:
            there = place_of(leaf or b"")
        except ValueError:
            return None
        return there.n, there.e, there.q

    async def opening(self, origin: str) -> Opening | None:
        """What a log's first entry, as it is stored, commits to; None for nothing. Nobody has proven it."""
        return opening_of(await self._stored(origin, 0) or b"") if origin else None

    async def find(self, dc: str, node: str, epoch: int, q: int) -> list[tuple[str, int]]:
        """(log, index) where the index says that an event stands."""
        sizes = self.holdings.sizes(dc)
        return [
            (run.log, run.index + q - run.q)
            for run in [stored.run for stored in await self.store.runs_of(dc, node, epoch, q, q)]
            if covers(run, q) and run.index + q - run.q < sizes.get(run.log, 0)
        ]

    async def index_of(self, term: Term, q: int) -> int | None:
        """Where this log has a sequence number, by the index."""
        for origin, index in await self.find(self.log.dc, *term, q):
            if origin == self.log.origin:
                return index
        return None

    async def met(self, dc: str, term: Term) -> Met:
        """Where the index is in doubt: all entries of a term, by looking at every entry. Some 20 s for ten million; done once for the same holdings."""
        key = (dc, term)
        if key not in self.holdings.met:
            found = Met()
            node = f'"n":"{term[0]}"'.encode()
            for log in self.holdings.chain(dc):
                size = self.tree.size if log.origin == self.log.origin else log.size
                for index in range(-(-size // WIDTH)):
                    await self._meet(found, log.origin, index, min(WIDTH, size - index * WIDTH), term, node)
            self.holdings.met[key] = found
        return self.holdings.met[key]

    async def _meet(self, found: Met, origin: str, index: int, width: int, term: Term, node: bytes) -> None:
        entries = decode_some(await self.store.bundle(origin, index) or b"")[0][:width]
        tree = await self.proven(origin)
        right = await tree.tile(0, index) if tree is not None else None
        found.whole = found.whole and right is not None and tile_hashes(entries) == right
        for at, entry in enumerate(entries, index * WIDTH):
            if node not in entry:
                continue
            try:
                place = place_of(entry)
            except ValueError:
                continue
            if (place.n, place.e) == term:
                found.numbers.setdefault(origin, Ranges()).add(place.q)
                found.tops[origin] = max(found.tops.get(origin, (0, 0)), (place.q, at))

    async def stands(self, event: Event, name: str) -> bool:
        """Whether a document's own leaf is in a log under the document's name: then what contradicts it is altered, and the event has its place."""
        try:
            leaf = event_of(event.leaf, None, None)
        except ValueError:
            return False
        if name.partition("@")[0].partition(":")[0] != leaf.mid or not name.endswith(f":{leaf.k}"):
            return False
        wanted = (leaf.node, leaf.epoch, leaf.q)
        if any([await self.place(*there) == wanted for there in await self.find(leaf.dc, *wanted)]):
            return True
        return leaf.q in await self.met(leaf.dc, (leaf.node, leaf.epoch))
