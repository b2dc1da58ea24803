"""Two small logs with a message whose events are in both, and everybody's keys: what the proof tests prove and forge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.domain.events import Event, Kind, commitment, committed_payload, leaf_bytes, leaf_hash
from controlplane.ledger.checkpoint import Checkpoint, origin_of
from controlplane.ledger.merkle import Growth, grow, inclusion_proof, inclusion_tiles
from controlplane.ledger.note import Note, Signer, Verifier, derive
from controlplane.ledger.proof import EventProof, message_document
from controlplane.ledger.tiles import TileHashes

MID = "01JDC5X9Q2V7M3T8K4W6Z1B0NA"
AT = 1_795_000_000_000
TENANT = "acme"


def secret(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


FRA = Signer.log(origin_of("example.com", "fra", "2026q4"), derive(secret("fra"), "log"))
IAD = Signer.log(origin_of("example.com", "iad", "2026q4"), derive(secret("iad"), "log"))
WITNESSES = [
    Signer.cosigner(f"example.com/ledger/{dc}/witness", derive(secret(dc), "witness")) for dc in ("iad", "sin")
]
TRUSTED: list[Verifier] = [signer.verifier for signer in (FRA, IAD, *WITNESSES)]


@dataclass
class Log:
    """A log in memory: all entries, and the tiles of its size."""

    signer: Signer
    entries: list[bytes] = field(default_factory=list)
    growth: Growth = field(default_factory=lambda: grow(0, {}, []))
    tiles: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def append(self, *entries: bytes) -> int:
        """The index of the first of them."""
        at = self.growth.size
        self.growth = grow(at, self.growth.tails, entries)
        self.entries += entries
        self.tiles |= self.growth.tiles
        return at

    def fill(self, count: int) -> None:
        self.append(*[f'{{"filler":{n}}}'.encode() for n in range(self.growth.size, self.growth.size + count)])

    def note(self, *cosigners: Signer) -> str:
        text = Checkpoint(self.signer.name, self.growth.size, self.growth.root).text
        return str(Note(text, (self.signer.sign(text), *(c.cosign(text, AT // 1000 + 60) for c in cosigners))))

    def prove(self, index: int) -> list[bytes]:
        needed = {(tile.level, tile.index) for tile in inclusion_tiles(index, self.growth.size)}
        return inclusion_proof(index, self.growth.size, TileHashes({place: self.tiles[place] for place in needed}).read)


def sealed(k: int, kind: Kind, prev: bytes | None, data: dict[str, Any], **more: Any) -> Event:
    """An event as the committer seals it."""
    event = Event(MID, k, TENANT, kind, AT + 250 * k, data, prev, dc="fra", node="fra-1", epoch=3, q=900 + k, **more)
    event.salt = secret(f"salt {k}")[:16]
    event.leaf = leaf_bytes(event, commitment(event.salt, committed_payload(event)))
    return event


def life() -> list[Event]:
    """A message with everything that a leaf can hold."""
    steps: list[tuple[Kind, dict[str, Any], dict[str, Any]]] = [
        (Kind.ACCEPTED, {"to": "+4915112345678", "from": "Acme", "body": "Ihr Code: 4711 – gültig 5 min 🔑", "parts": 1}, {}),
        (Kind.SUBMITTED, {"connector": "c1", "attempt": 1, "part_ids": [[1, "a7"]]}, {"route": "r1", "cids": ("c1/a7",)}),
        (Kind.REROUTED, {"connector": "c2", "attempt": 2, "tried": ["r1"]}, {"route": "r2", "reason": "rejected"}),
        (Kind.ADOPTED, {}, {"reason": "fra → iad"}),
        (Kind.DELIVERED, {"part": 1, "receipt": {"id": "b8", "state": "DELIVRD", "error": "000"}}, {}),
    ]  # fmt: skip
    events: list[Event] = []
    for k, (kind, data, more) in enumerate(steps):
        events.append(sealed(k, kind, leaf_hash(events[-1].leaf) if events else None, data, **more))
    return events


def world(events: Sequence[Event]) -> tuple[list[Log], dict[int, tuple[Log, int]]]:
    """Both logs, the first three events in fra's and the others in iad's, among hundreds of others' entries; and where each is."""
    logs = [Log(FRA), Log(IAD)]
    places = {}
    for event in events:
        log = logs[event.k > 2]
        log.fill(150 + event.k)
        places[event.k] = log, log.append(event.leaf)
    for log in logs:
        log.fill(77)
    return logs, places


def document(events: Sequence[Event], pending: Sequence[int] = (), *, erased: Sequence[int] = ()) -> dict[str, Any]:
    """The proof of these events, all of them cosigned by both witnesses."""
    logs, places = world(events)
    proofs = []
    for event in events:
        log, index = places[event.k]
        assert event.salt is not None
        opening = None if event.k in erased else (event.salt, committed_payload(event))
        proofs.append(EventProof.of(event.leaf, log.signer.name, index, log.growth.size, log.prove(index), opening))
    used = [log for log in logs if any(place[0] is log for place in places.values())]
    return message_document(MID, proofs, pending, {log.signer.name: log.note(*WITNESSES) for log in used}, TRUSTED)
