"""A stretch of a log as another datacenter hands it over: verified whole before anything of it is stored.

What is verified against what: the checkpoint's signature against the keys that the settings give; the leaves, appended to what is held, against the
checkpoint by the consistency proof; each leaf against its canonical form and its datacenter; each payload against its leaf's commitment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain.events import Event
from controlplane.ledger.checkpoint import Checkpoint, CheckpointError
from controlplane.ledger.entries import event_of
from controlplane.ledger.merkle import Growth, ProofError, grow, root_tiles, tree_root, verify_consistency
from controlplane.ledger.note import Note, NoteError, Verifier, parse_note, verify
from controlplane.ledger.tiles import HASH_BYTES, WIDTH, TileHashes, decode_bundle, encode_bundle, tile_hashes
from controlplane.ledger.wire import Reply
from controlplane.store.copies import Held
from controlplane.store.ledger import LedgerStore, Run

__all__ = [
    "Chunk",
    "DamagedCopyError",
    "Edge",
    "InconsistentError",
    "RefusedReplyError",
    "drafts",
    "open_note",
    "verify_chunk",
]

_TURN = 256
"""Entries that are verified before others get their turn of the event loop; about 5 ms."""


class RefusedReplyError(Exception):
    """An answer is not what it must be. Nothing of it is kept."""


class InconsistentError(RefusedReplyError):
    """It is well formed, and signed, and does not continue what is held: damage on the way, a lie, or a fork."""


class DamagedCopyError(Exception):
    """What is stored here does not lead to the root that was verified. Nothing is appended to it until it is repaired."""


@dataclass(frozen=True, slots=True)
class Edge:
    """The right edge of a log, from which it grows."""

    origin: str
    held: Held
    tails: Mapping[int, bytes]
    """Level → partial tile."""
    entries: Sequence[bytes]
    """Of the partial bundle."""

    @classmethod
    async def load(cls, store: LedgerStore, origin: str, held: Held) -> Edge:
        """As stored. Raises DamagedCopyError."""
        size = held.size
        places = [(tile.level, tile.index) for tile in root_tiles(size)]
        tiles = await store.tiles(origin, places)
        tails = {}
        for level, index in places:
            if width := (size >> 8 * level) % WIDTH:
                tails[level] = tiles.get((level, index), b"")[: width * HASH_BYTES]
        entries: list[bytes] = []
        try:
            if size % WIDTH:
                entries = decode_bundle(await store.bundle(origin, size // WIDTH) or b"")[: size % WIDTH]
            sound = tree_root(size, TileHashes(tiles).read) == held.root
        except (LookupError, ValueError):
            sound = False
        if not sound or tile_hashes(entries) != tails.get(0, b""):
            raise DamagedCopyError(f"{origin}: the stored tiles do not lead to the root of its {size} entries")
        return cls(origin, held, tails, entries)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Entries that are verified, and what becomes of the log with them."""

    events: Sequence[Event]
    checkpoint: Checkpoint
    growth: Growth
    after: Edge

    @property
    def reaches(self) -> bool:
        """Whether with this everything is held that the checkpoint covers."""
        return self.growth.size == self.checkpoint.size


def open_note(text: str, origin: str, verifiers: Sequence[Verifier]) -> tuple[Note, Checkpoint]:
    """A log's signed checkpoint, with the verified signatures alone. Raises RefusedReplyError."""
    try:
        note = parse_note(text)
        checkpoint = Checkpoint.parse(note.text)
        verify(note, verifiers)
    except (NoteError, CheckpointError) as error:
        raise RefusedReplyError(f"{origin}: {error}") from None
    if checkpoint.origin != origin:
        raise RefusedReplyError(f"{origin}: the checkpoint is that of {checkpoint.origin}")
    known = {(verifier.name, verifier.key_id) for verifier in verifiers}
    kept = {(one.name, one.key_id): one for one in note.signatures if (one.name, one.key_id) in known}
    return Note(note.text, tuple(kept.values())), checkpoint


async def verify_chunk(edge: Edge, reply: Reply, verifiers: Sequence[Verifier], dc: str) -> Chunk:
    """The entries of an answer to a pull from `edge` on. Raises RefusedReplyError, of it InconsistentError where only the hashes do not fit."""
    origin, size = edge.origin, edge.held.size
    note, checkpoint = open_note(reply.checkpoint, origin, verifiers)
    if reply.size != checkpoint.size or reply.start != size or reply.to != size + len(reply.entries):
        raise RefusedReplyError(
            f"{origin}: the answer says {reply.start} to {reply.to} of {reply.size}, and has something else"
        )
    if not size <= reply.to <= checkpoint.size:
        raise RefusedReplyError(f"{origin}: {reply.to} entries are more than the checkpoint's {checkpoint.size}")
    events = []
    for place, (leaf, salt, payload) in enumerate(reply.entries):
        if place % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        events.append(_event(origin, size + place, leaf, salt, payload, dc))
    growth = grow(size, edge.tails, [event.leaf for event in events])
    try:
        verify_consistency(growth.size, growth.root, checkpoint.size, checkpoint.root, reply.proof)
    except ProofError as error:
        raise InconsistentError(f"{origin}: {error}") from None
    held = Held(growth.size, growth.root, tuple(growth.frontier.hashes), str(note))
    every = [*edge.entries, *(event.leaf for event in events)]
    after = Edge(origin, held, growth.tails, every[len(every) - len(every) % WIDTH :])
    return Chunk(events, checkpoint, growth, after)


def _event(origin: str, index: int, leaf: bytes, salt: bytes | None, payload: bytes | None, dc: str) -> Event:
    try:
        event = event_of(leaf, salt, payload)
    except ValueError as error:
        raise RefusedReplyError(f"{origin}: entry {index}: {error}") from None
    if (
        event.dc != dc
        or not event.node
        or event.epoch < 1
        or event.q < 1
        or event.k < 0
        or "@" in event.mid
        or not event.mid
    ):
        raise RefusedReplyError(f"{origin}: entry {index} is no event of {dc}'s: {event.id[:100]} of {event.dc[:40]}")
    return event


def drafts(edge: Edge, chunk: Chunk) -> tuple[dict[int, bytes], list[Run]]:
    """The bundles that change, whole, and where each node's sequence stands in them."""
    first = edge.held.size // WIDTH
    every = [*edge.entries, *(event.leaf for event in chunk.events)]
    bundles = {first + at // WIDTH: encode_bundle(every[at : at + WIDTH]) for at in range(0, len(every), WIDTH)}
    runs: list[Run] = []
    start = 0
    events = chunk.events
    for end in range(1, len(events) + 1):
        here, last = events[start], events[end - 1]
        if end < len(events):
            after = events[end]
            if (after.dc, after.node, after.epoch, after.q) == (last.dc, last.node, last.epoch, last.q + 1):
                continue
        index = edge.held.size + start
        runs.append(Run(edge.origin, here.dc, here.node, here.epoch, here.q, end - start, index))
        start = end
    return bundles, runs
