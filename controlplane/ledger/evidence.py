"""The proof of what happened to a message: each of its events, where it stands in which log, and a checkpoint that others have cosigned where there is one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

from controlplane.domain.events import Event, committed_payload, leaf_hash
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.merkle import ProofError, verify_inclusion
from controlplane.ledger.note import COSIGNATURE, Verifier, parse_note
from controlplane.ledger.proof import EventProof, message_document
from controlplane.ledger.published import Published, UnreadableLogError, combined
from controlplane.ledger.trust import cosigner_name
from controlplane.settings import Settings
from controlplane.store.ledger import Log

__all__ = ["cosigner_keys", "prove"]


class _Place(NamedTuple):
    log: Log
    index: int  # type: ignore[assignment]  # hides tuple.index
    event: Event


async def prove(
    published: Published, mid: str, events: Sequence[Event], known: Sequence[Verifier], *, opened: bool
) -> dict[str, Any]:
    """The document (`controlplane.ledger.proof`), checked before it is given away. `opened`: with what the leaves commit to, where it is not erased.

    `known` are cosigners' keys, to be named in the document. Raises UnreadableLogError, StoreUnavailableError.
    """
    places: dict[str, list[_Place]] = {}
    pending: list[int] = []
    for event in events:
        found = await published.locate(event.dc, event.node, event.epoch, event.q)
        if found is None:
            pending.append(event.k)
        else:
            places.setdefault(found[0].origin, []).append(_Place(found[0], found[1], event))
    proofs: list[EventProof] = []
    notes: dict[str, str] = {}
    for origin, group in places.items():
        log = group[0].log
        size, notes[origin] = await _checkpoint(published, log, max(place.index for place in group))
        proofs += [await _prove(published, place, size, notes[origin], opened=opened) for place in group]
    signed = {signature.name for note in notes.values() for signature in parse_note(note).signatures}
    keys = [Verifier.parse(group[0].log.vkey) for group in places.values()]
    return message_document(
        mid.partition("@")[0], proofs, pending, notes, [*keys, *(key for key in known if key.name in signed)]
    )


async def _checkpoint(published: Published, log: Log, index: int) -> tuple[int, str]:
    """(size, note) of the checkpoint over entry `index` that most have cosigned, the newest of these; the log's own newest when nobody has."""
    notes: dict[int, list[str]] = {log.size: []}
    for item in await published.cosigned(log.origin):
        if index < item.size <= log.size:
            notes.setdefault(item.size, []).append(item.note)
    size = max(notes, key=lambda size: (len(notes[size]), size))
    first = log.checkpoint if size == log.size else notes[size][0]
    return size, combined(first, notes[size])


async def _prove(published: Published, place: _Place, size: int, note: str, *, opened: bool) -> EventProof:
    event, log = place.event, place.log
    leaf = await published.entry(log, place.index)
    path = await published.proof(log, place.index, size)
    try:
        verify_inclusion(leaf_hash(leaf), place.index, size, path, Checkpoint.parse(parse_note(note).text).root)
    except ProofError as error:
        raise UnreadableLogError(f"{log.origin}: {error}") from None
    if leaf != event.leaf:
        raise UnreadableLogError(f"{event.id} is not what {log.origin} has as entry {place.index}")
    shown = (event.salt, committed_payload(event)) if opened and event.salt and event.data is not None else None
    return EventProof.of(leaf, log.origin, place.index, size, path, shown)


def cosigner_keys(settings: Settings) -> list[Verifier]:
    """The keys of those who may cosign: peers' witnesses and mirrors, foreign witnesses."""
    domain, found = settings.ledger_domain, []
    for peer in settings.ledger_peers:
        for name, key in (
            (cosigner_name(domain, peer.dc, "witness"), peer.witness_key),
            (cosigner_name(domain, peer.dc, "mirror"), peer.mirror_key),
        ):
            found.append(Verifier.of(name, COSIGNATURE, base64.b64decode(key)))
    return found + [Verifier.parse(witness.vkey) for witness in settings.ledger_witnesses]
