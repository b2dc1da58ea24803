"""Proofs that others keep: of one entry (c2sp.org/tlog-proof@v1) and of all that happened to a message (`heliograph-proof@v1`).

The latter is a JSON document; `MessageProof` is its shape. Whoever has it, and public keys that they trust, needs nothing
else: `verify_document` here, or `offline.py`, which shares no code with this. What a document shows:

- each event's leaf stands in a log that its datacenter signed, and that the cosigners asked for have seen grow;
- each event names the one before it (`prev` is that leaf's hash), so none was left out between two that are there;
- an opening (salt and payload) is what the leaf committed to. An erased event has none, and its place is proven all the same.

What it cannot show: that no event follows the last one. Ask for a newer document to see.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from controlplane.domain.events import LEAF_VERSION, canonical, commitment, leaf_hash
from controlplane.ledger.checkpoint import Checkpoint, parse_hash, parse_size
from controlplane.ledger.merkle import ProofError, verify_inclusion
from controlplane.ledger.note import COSIGNATURE, MAX_BYTES, Note, Verified, Verifier, parse_note, verify
from controlplane.ledger.tiles import MAX_SIZE

__all__ = [
    "FORMAT",
    "EntryProof",
    "EventProof",
    "EventReport",
    "LogReport",
    "MessageProof",
    "Opening",
    "Report",
    "message_document",
    "parse_document",
    "parse_entry_proof",
    "verify_document",
]

FORMAT: Literal["heliograph-proof@v1"] = "heliograph-proof@v1"
SALT_BYTES = 16
MAX_DOCUMENT_BYTES = 16_000_000
_HEADER = "c2sp.org/tlog-proof@v1"
_MAX_HASHES = 63

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE)]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class EntryProof(NamedTuple):
    """That an entry stands in a log: `str()` is the text of a `.tlog-proof` file. `note` is the signed checkpoint; nobody has verified it."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    hashes: tuple[bytes, ...]
    note: Note
    extra: bytes | None = None

    def __str__(self) -> str:
        extra = [f"extra {base64.b64encode(self.extra).decode()}"] if self.extra is not None else []
        hashes = [base64.b64encode(value).decode() for value in self.hashes]
        return "\n".join([_HEADER, *extra, f"index {self.index}", *hashes, "", str(self.note)])

    def verify(self, leaf: bytes, origin: str, verifiers: Iterable[Verifier]) -> tuple[Checkpoint, list[Verified]]:
        """Check that the entry with this leaf hash is in the log `origin`, which one of `verifiers` is the key of. ProofError if not."""
        checkpoint, verified = _verify_checkpoint(origin, self.note, list(verifiers))
        verify_inclusion(leaf, self.index, checkpoint.size, self.hashes, checkpoint.root)
        return checkpoint, verified


def parse_entry_proof(data: str | bytes) -> EntryProof:
    """Read what `str(EntryProof)` writes. ProofError for anything else."""
    with _about("the proof"):
        text = data if isinstance(data, str) else data.decode()
        if len(text) > MAX_BYTES:
            raise ProofError(f"the proof has {len(text)} characters; the most is {MAX_BYTES}")
        head, _, rest = text.partition("\n\n")
        header, *lines = head.split("\n")
        if header != _HEADER:
            raise ProofError(f"the proof does not begin with {_HEADER}")
        extra = None
        if lines and lines[0].startswith("extra "):
            value = lines.pop(0)[6:]
            extra = base64.b64decode(value, validate=True)
            if base64.b64encode(extra).decode() != value:
                raise ProofError("its extra data is not canonical base64")
        if not lines or not lines[0].startswith("index "):
            raise ProofError("the proof has no index line")
        if len(lines) > 1 + _MAX_HASHES:
            raise ProofError(f"the proof has {len(lines) - 1} hashes; the most is {_MAX_HASHES}")
        hashes = tuple([parse_hash(line) for line in lines[1:]])
        return EntryProof(parse_size(lines[0][6:]), hashes, parse_note(rest), extra)


class Opening(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a leaf commits to: `salt` in hex, `payload` the exact text of canonical [tenant, data] or [tenant, data, cids]."""

    salt: Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{{2 * SALT_BYTES}}}\Z")]
    payload: str


class EventProof(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One event: entry `index` of the log `log`, whose checkpoint of `size` entries is in the document; `leaf` is the entry's exact text."""

    k: _Count
    kind: str
    at: _Count
    leaf: str
    log: str
    index: _Size
    size: _Size
    proof: Annotated[list[str], msgspec.Meta(max_length=_MAX_HASHES)]
    opening: Opening | None

    @classmethod
    def of(cls, leaf: bytes, log: str, index: int, size: int, proof: Sequence[bytes], opening: tuple[bytes, bytes] | None) -> EventProof:  # fmt: skip
        """From what a node has; `opening` is (salt, committed payload), or None where it is erased or not to be shown."""
        fields = msgspec.json.decode(leaf, type=_Leaf)
        hashes = [base64.b64encode(value).decode() for value in proof]
        shown = Opening(opening[0].hex(), opening[1].decode()) if opening else None
        return cls(fields.k, fields.kind, fields.at, leaf.decode(), log, index, size, hashes, shown)


class MessageProof(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The document. `pending` are ordinals of events that no published checkpoint covers yet; `complete` says that there are none.

    `checkpoints` are signed notes by origin. `keys` are vkeys by name, for convenience: a verifier trusts only keys it was given.
    """

    format: Literal["heliograph-proof@v1"]
    id: str
    complete: bool
    events: list[EventProof]
    pending: list[_Count]
    checkpoints: dict[str, str]
    keys: dict[str, str]


class _Leaf(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    at: _Count
    commit: _Hex32
    dc: str
    e: _Count
    k: _Count
    kind: str
    mid: str
    n: str
    q: _Count
    v: Annotated[int, msgspec.Meta(ge=LEAF_VERSION, le=LEAF_VERSION)]
    prev: _Hex32 | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET
    ref: str | msgspec.UnsetType = msgspec.UNSET
    route: str | msgspec.UnsetType = msgspec.UNSET


class LogReport(NamedTuple):
    """A log that the document relies on: its checkpoint, and the trusted cosigners that have seen it, with when (seconds)."""

    origin: str
    size: int
    root: bytes
    cosigners: tuple[Verified, ...]


class EventReport(NamedTuple):
    """What is proven of one event. `linked`: the event before it is the one that it names (true of the first).

    It is not linked where the one before is pending, or lost and stood in for by a `gap`. `payload` is [tenant, data] or
    [tenant, data, cids] as committed, None without an opening.
    """

    k: int
    kind: str
    at: int
    log: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    linked: bool
    payload: list[Any] | None


class Report(NamedTuple):
    """A document that holds."""

    id: str
    complete: bool
    events: tuple[EventReport, ...]
    pending: tuple[int, ...]
    logs: tuple[LogReport, ...]


def message_document(
    mid: str, events: Iterable[EventProof], pending: Iterable[int], notes: Mapping[str, str], verifiers: Iterable[Verifier]
) -> dict[str, Any]:  # fmt: skip
    """The document as JSON-ready values. `notes`: signed checkpoints by origin, those of the events' sizes and no others."""
    waiting = sorted(pending)
    keys = {verifier.name: verifier.vkey for verifier in verifiers}
    ordered = sorted(events, key=lambda event: event.k)
    document: dict[str, Any] = msgspec.to_builtins(
        MessageProof(FORMAT, mid, not waiting, ordered, waiting, dict(notes), keys)
    )
    return document


def parse_document(data: bytes) -> Any:
    """Read JSON strictly: UTF-8, no member twice, no NaN, at most 16 MB. ProofError if it is not that; its shape is not checked."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ProofError(f"the document has {len(data)} bytes; the most is {MAX_DOCUMENT_BYTES}")
    return _json(data, "the document")


def verify_document(document: Any, trusted: Sequence[Verifier], require_cosigners: int = 0) -> Report:
    """Check a parsed document with keys that the caller trusts. ProofError names the event and the reason.

    Each log needs its own key, of which the name is the log's origin, and `require_cosigners` different trusted cosigners.
    """
    try:
        proof = msgspec.convert(document, MessageProof)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProofError(f"not a {FORMAT} document: {error}") from None
    _check_ordinals(proof)
    _check_keys(proof, trusted)
    logs = {
        origin: _verify_log(origin, note, trusted, require_cosigners)
        for origin, note in sorted(proof.checkpoints.items())
    }
    if unused := logs.keys() - {event.log for event in proof.events}:
        raise ProofError(f"no event is in the log {min(unused)}, whose checkpoint is here")
    reports: list[EventReport] = []
    previous: tuple[_Leaf, bytes] | None = None
    for event in proof.events:
        with _about(f"event {event.k} ({event.kind})"):
            leaf, value = _verify_event(event, proof.id, logs)
            linked = _verify_link(leaf, previous)
            payload = _verify_opening(event.opening, leaf.commit) if event.opening else None
        previous = leaf, value
        reports.append(EventReport(event.k, event.kind, event.at, event.log, event.index, linked, payload))
    return Report(proof.id, proof.complete, tuple(reports), tuple(proof.pending), tuple(logs.values()))


def _check_ordinals(proof: MessageProof) -> None:
    shown = [event.k for event in proof.events]
    if not shown:
        raise ProofError("no event of the message is in the ledger yet: ask again in a few seconds")
    if shown != sorted(shown) or proof.pending != sorted(proof.pending):
        raise ProofError("the events are not in order")
    if sorted(shown + proof.pending) != list(range(len(shown) + len(proof.pending))):
        raise ProofError(f"an event is missing or twice: {shown} are shown, {proof.pending} pending")
    if proof.complete != (not proof.pending):
        raise ProofError("`complete` and `pending` contradict each other")


def _check_keys(proof: MessageProof, trusted: Sequence[Verifier]) -> None:
    """The document's own keys prove nothing, but they must not contradict themselves or those that are trusted."""
    for name, vkey in proof.keys.items():
        with _about(f"the document's key of {name}"):
            key = Verifier.parse(vkey)
            known = [verifier for verifier in trusted if verifier.name == name]
            if key.name != name or (known and key not in known):
                raise ProofError("is not the key that is trusted under that name")


def _verify_checkpoint(origin: str, note: Note, trusted: Sequence[Verifier]) -> tuple[Checkpoint, list[Verified]]:
    """The checkpoint and its trusted signatures, that of the log's own key first. One cosigner's key counts once, whatever its names."""
    cosigners = {key.public: key for key in reversed(trusted) if key.algorithm == COSIGNATURE}
    own_keys = [key for key in trusted if key.algorithm != COSIGNATURE and key.name == origin]
    verified = verify(note, [*own_keys, *cosigners.values()])
    own = [key for key in verified if key.timestamp is None]
    if not own:
        raise ProofError("no trusted key of the log signed the checkpoint")
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != origin:
        raise ProofError(f"the checkpoint is that of {checkpoint.origin}")
    return checkpoint, [own[0], *(key for key in verified if key.timestamp is not None)]


def _verify_log(origin: str, text: str, trusted: Sequence[Verifier], require: int) -> LogReport:
    with _about(f"the checkpoint of {origin}"):
        note = parse_note(text)
        checkpoint, (_, *cosigners) = _verify_checkpoint(origin, note, trusted)
        if len(cosigners) < require:
            raise ProofError(f"{len(cosigners)} trusted cosigners signed it; {require} are required")
        return LogReport(origin, checkpoint.size, checkpoint.root, tuple(cosigners))


def _verify_event(event: EventProof, mid: str, logs: Mapping[str, LogReport]) -> tuple[_Leaf, bytes]:
    """The leaf's members and its hash, once its place in the log is proven."""
    if (log := logs.get(event.log)) is None:
        raise ProofError(f"the checkpoint of {event.log} is not in the document")
    if log.size != event.size:
        raise ProofError(f"the proof is for size {event.size}, the checkpoint's is {log.size}")
    raw = event.leaf.encode()
    leaf = msgspec.json.decode(raw, type=_Leaf)
    if canonical(leaf) != raw:
        raise ProofError("the leaf is not canonical JSON")
    if (leaf.mid, leaf.k, leaf.kind, leaf.at) != (mid, event.k, event.kind, event.at):
        raise ProofError(f"the leaf is of another event: {leaf.mid}:{leaf.k}, {leaf.kind} at {leaf.at}")
    value = leaf_hash(raw)
    verify_inclusion(value, event.index, log.size, [parse_hash(text) for text in event.proof], log.root)
    return leaf, value


def _verify_link(leaf: _Leaf, before: tuple[_Leaf, bytes] | None) -> bool:
    """Whether the event before is known to be the one that this one names. ProofError if it is another."""
    if leaf.k == 0:
        if leaf.prev is not msgspec.UNSET:
            raise ProofError("the first event names an event before it")
        return True
    if leaf.prev is msgspec.UNSET and leaf.kind != "gap":
        raise ProofError("it names no event before it")
    if before is None or before[0].k != leaf.k - 1 or before[0].kind == "gap" or leaf.prev is msgspec.UNSET:
        return False
    if leaf.prev != before[1].hex():
        raise ProofError(f"it follows another event than {leaf.k - 1} ({before[0].kind})")
    return True


def _verify_opening(opening: Opening, commit: str) -> list[Any]:
    if commitment(bytes.fromhex(opening.salt), opening.payload.encode()) != commit:
        raise ProofError("salt and payload are not what the leaf commits to")
    payload = _json(opening.payload.encode(), "the payload")
    if not (isinstance(payload, list) and len(payload) in (2, 3) and isinstance(payload[0], str)):
        raise ProofError("the payload is not [tenant, data] or [tenant, data, cids]")
    return payload


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data.decode(), object_pairs_hook=_no_member_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProofError(f"{what} is not JSON: {error}") from None


def _no_member_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Whatever a parser refuses within becomes a ProofError that says of what."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ProofError(f"{what}: {error}") from None
