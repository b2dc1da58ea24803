"""The witness of this datacenter: it cosigns a peer's checkpoint when it continues what it cosigned before (c2sp.org/tlog-witness, v1.0.0 and HEAD).

The newest checkpoint of a log is checked and replaced in one conditional update, so whatever number of ledgers answers, a log is never seen to shrink.
Two roots of one size, both signed, are proof that the log shows different histories to different people: both are kept, and nothing of it is taken any more.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from controlplane.clock import Clock
from controlplane.domain.events import Kind
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.checkpoint import Checkpoint, CheckpointError, parse_hash, parse_size
from controlplane.ledger.merkle import EMPTY, ProofError, verify_consistency
from controlplane.ledger.note import Note, NoteError, Verifier, parse_note, verify
from controlplane.ledger.trust import Trust, cosigner
from controlplane.settings import Settings
from controlplane.store.copies import Copies, Witnessed
from controlplane.store.ledger import Finding, LedgerStore

__all__ = ["SIZE_TYPE", "Forks", "Record", "Verdict", "Witness"]

_log = structlog.get_logger()
SIZE_TYPE = "text/x.tlog.size"
_MAX_PROOF = 63

Record = Callable[[Kind, str, str | None], Awaitable[None]]
"""Writes an event of the ledger's own: kind, ref, reason."""


class Forks:
    """What is done about a log that has signed two histories, whoever finds it out."""

    def __init__(self, store: LedgerStore, copies: Copies, clock: Clock, record: Record) -> None:
        self._store = store
        self._copies = copies
        self._clock = clock
        self._record = record

    async def found(
        self, held: Checkpoint, held_note: str, other: Checkpoint, other_note: str, proof: str = ""
    ) -> None:
        """Keep both signed checkpoints, freeze a mirrored log, and have the fork written into our own log. Repeated: nothing more happens.

        `proof` says why they exclude each other where their sizes differ.
        """
        finding = Finding(
            kind="fork",
            origin=held.origin,
            detail="\n".join(filter(None, (held_note, other_note, proof))),
            at=self._clock.now_ms(),
            subject=f"{other.size} {base64.b64encode(other.root).decode()}",
        )
        await self._store.report(finding)
        if not await self._copies.freeze(held.origin):
            return
        _log.error("log_forked", origin=held.origin, held=held.size, other=other.size)
        roots = " ".join(base64.b64encode(root).decode() for root in (held.root, other.root))
        try:
            await self._record(Kind.FORK, f"{held.origin} {other.size} {roots}", None)
        except StoreUnavailableError as error:
            _log.error("fork_not_recorded", origin=held.origin, reason=str(error)[:200])


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer to add-checkpoint."""

    status: int
    body: str
    media_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Request:
    old: int
    proof: Sequence[bytes]
    note: Note
    checkpoint: Checkpoint


class Witness:
    """Answers add-checkpoint for the logs of the peers in the settings."""

    def __init__(self, copies: Copies, forks: Forks, settings: Settings, clock: Clock) -> None:
        self._copies = copies
        self._forks = forks
        self._clock = clock
        self._trust = Trust(settings)
        self._signer = cosigner(settings, "witness")

    @property
    def vkey(self) -> str:
        """What others verify our cosignatures with."""
        return self._signer.vkey

    async def add(self, body: bytes) -> Verdict:
        """One request: 200 with our cosignature, or why not. Raises StoreUnavailableError."""
        try:
            request = _parse(body)
        except (NoteError, CheckpointError, ValueError) as error:
            return Verdict(400, f"{error}\n")
        origin = request.checkpoint.origin
        verifiers = self._trust.log_keys(origin)
        if not verifiers:
            return Verdict(404, "this witness does not know the log\n")
        try:
            verify(request.note, verifiers)
        except NoteError as error:
            return Verdict(403, f"{error}\n")
        if request.old > request.checkpoint.size:
            return Verdict(400, f"old size {request.old} is larger than the checkpoint's, {request.checkpoint.size}\n")
        return await self._judge(request, verifiers)

    async def _judge(self, request: _Request, verifiers: Sequence[Verifier]) -> Verdict:
        """From here on the log itself has signed the checkpoint."""
        new = request.checkpoint
        seen = await self._copies.witnessed(new.origin)
        size, root = (seen.size, seen.root or EMPTY) if seen else (0, EMPTY)
        if seen and seen.forked:
            return Verdict(422, "the log has signed two histories; nothing of it is cosigned any more\n")
        if request.old != size:
            return _conflict(size)
        if new.size == 0 and new.root != EMPTY:
            return Verdict(422, "the tree without entries has another root\n")
        if seen and new.size == size and new.root != root:
            known = {(verifier.name, verifier.key_id) for verifier in verifiers}
            kept = Note(request.note.text, tuple(s for s in request.note.signatures if (s.name, s.key_id) in known))
            await self._forks.found(Checkpoint(new.origin, size, root), seen.note, new, str(kept))
            return Verdict(422, f"another root of {size} entries has been cosigned before\n")
        try:
            verify_consistency(size, root, new.size, new.root, request.proof)
        except ProofError as error:
            return Verdict(422, f"{error}\n")
        return await self._persist(request, verifiers, seen)

    async def _persist(self, request: _Request, verifiers: Sequence[Verifier], seen: Witnessed | None) -> Verdict:
        note, new = request.note, request.checkpoint
        line = self._signer.cosign(note.text, self._clock.now_ms() // 1000)
        known = {(verifier.name, verifier.key_id) for verifier in verifiers}
        signatures = {(s.name, s.key_id): s for s in note.signatures if (s.name, s.key_id) in known}
        kept = Note(note.text, (*signatures.values(), line))
        if not await self._copies.witness(seen, Witnessed(new.origin, new.size, new.root, str(kept))):
            now = await self._copies.witnessed(new.origin)
            return _conflict(now.size if now else 0)
        return Verdict(200, line.line)

    async def newest(self, digest: str) -> str | None:
        """The newest checkpoint that was cosigned, with both signatures, by hex(SHA-256(origin)); None for none."""
        seen = await self._copies.witnessed_by_hash(digest)
        return seen.note if seen and seen.note else None


def _conflict(size: int) -> Verdict:
    return Verdict(409, f"{size}\n", SIZE_TYPE)


def _parse(body: bytes) -> _Request:
    head, separator, rest = body.partition(b"\n\n")
    if not separator:
        raise ValueError("no empty line before the checkpoint")
    first, *lines = head.decode("ascii").split("\n")
    word, _, size = first.partition(" ")
    if word != "old":
        raise ValueError("the first line is not `old <size>`")
    if len(lines) > _MAX_PROOF:
        raise ValueError(f"{len(lines)} proof lines; the most is {_MAX_PROOF}")
    note = parse_note(rest)
    return _Request(parse_size(size), [parse_hash(line) for line in lines], note, Checkpoint.parse(note.text))
