"""What the parts of an audit share: the log, what is known of the others, what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.domain.events import Event
from controlplane.errors import ConfigError
from controlplane.ledger.check import Fault
from controlplane.ledger.checkpoint import Checkpoint, CheckpointError, parse_hash, parse_size
from controlplane.ledger.entries import event_of, place_of
from controlplane.ledger.note import NoteError, Verifier, parse_note, verify
from controlplane.ledger.proven import Proven
from controlplane.ledger.tiles import WIDTH, decode_bundle
from controlplane.ledger.trust import Trust, cosigner
from controlplane.settings import Settings
from controlplane.store.copies import Copies
from controlplane.store.ledger import Cosigned, Finding, Log, Run
from controlplane.store.ledger_scrub import ScrubStore, StoredCosignature

__all__ = ["CUT", "Case", "Holdings", "Opening", "Term", "covers", "open_checkpoint"]

CUT = frozenset({"fork", "root"})
"""Why a log may have been ended before entries that were signed."""
_CACHED = 8

Term = tuple[str, int]
"""(node, epoch)."""
Opening = tuple[str, int, bytes]
"""(origin, size, root) of the log before, as an entry 0 commits to it."""


@dataclass(slots=True)
class Holdings:
    """What an audit has to know beyond its log; read once for all logs."""

    logs: Mapping[str, Log]
    unreadable: Sequence[str]
    """Origins of documents that are no logs."""
    cosignatures: Sequence[StoredCosignature]
    completed: Mapping[Term, int]
    term: int
    """The highest that this datacenter's ledger was led under."""
    gaps: dict[str, list[tuple[Term, int, int]]] = field(default_factory=dict)
    """Datacenter → (term, first q, last q) that `gap` events explain."""

    @classmethod
    async def read(cls, store: ScrubStore, dc: str) -> Holdings:
        """In this order, so that what moves meanwhile is never ahead of what it is compared with."""
        completed = await store.completed()
        cosignatures = await store.cosignature_documents()
        documents = await store.log_documents()
        logs = {origin: log for origin, log in documents if log is not None}
        lease = await store.lease(dc)
        term = lease["term"] if lease else max((log.term for log in logs.values() if log.own), default=0)
        return cls(logs, [origin for origin, log in documents if log is None], cosignatures, completed, term)

    def cosigned(self, origin: str) -> list[Cosigned]:
        """What cosigners said of a log, as far as it can be read; unverified."""
        items = [stored.item for stored in self.cosignatures]
        return [item for item in items if item is not None and item.origin == origin]

    def chain(self, dc: str) -> list[Log]:
        """A datacenter's logs, oldest first."""
        return [log for log in self.logs.values() if log.dc == dc]

    def sizes(self, dc: str) -> dict[str, int]:
        """Origin → size, of a datacenter's logs."""
        return {log.origin: log.size for log in self.chain(dc)}


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
        self._bundles: dict[tuple[str, int], bytes] = {}

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
        """An entry of any log as it is stored, unproven; None where it cannot be read."""
        place = (origin, index // WIDTH)
        if place not in self._bundles:
            if len(self._bundles) >= _CACHED:
                del self._bundles[next(iter(self._bundles))]
            self._bundles[place] = await self.store.bundle(*place) or b""
        try:
            return decode_bundle(self._bundles[place])[index % WIDTH]
        except (ValueError, IndexError):
            return None

    async def place(self, origin: str, index: int) -> tuple[str, int, int] | None:
        """(node, epoch, q) of an entry as it is stored."""
        leaf = await self.entry(origin, index)
        try:
            there = place_of(leaf or b"")
        except ValueError:
            return None
        return there.n, there.e, there.q

    async def opening(self, origin: str) -> Opening | None:
        """What a log's first entry, as it is stored, commits to; None for nothing."""
        leaf = await self.entry(origin, 0) if origin else None
        try:
            name, size, root = (event_of(leaf or b"", None, None).ref or "").split(" ")
            return name, parse_size(size), parse_hash(root)
        except (ValueError, CheckpointError):
            return None

    async def find(self, dc: str, node: str, epoch: int, q: int) -> list[tuple[str, int]]:
        """(log, index) where the index says that an event stands."""
        logs = self.holdings.logs
        return [
            (run.log, run.index + q - run.q)
            for run in [stored.run for stored in await self.store.runs_of(dc, node, epoch, q, q)]
            if covers(run, q) and run.log in logs and run.index + q - run.q < logs[run.log].size
        ]

    async def index_of(self, term: Term, q: int) -> int | None:
        """Where this log has a sequence number, by the index."""
        for origin, index in await self.find(self.log.dc, *term, q):
            if origin == self.log.origin:
                return index
        return None

    async def stands(self, event: Event, name: str) -> bool:
        """Whether a document's own leaf is in a log under the document's name: then what contradicts it is altered, and the event has its place."""
        try:
            leaf = event_of(event.leaf, None, None)
        except ValueError:
            return False
        if name.partition("@")[0].partition(":")[0] != leaf.mid or not name.endswith(f":{leaf.k}"):
            return False
        wanted = (leaf.node, leaf.epoch, leaf.q)
        return any([await self.place(*there) == wanted for there in await self.find(leaf.dc, *wanted)])
