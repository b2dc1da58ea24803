"""Reading a whole backup and comparing everything with what its manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

from bson.raw_bson import RawBSONDocument

from controlplane.store.backup.archive import Archive, ArchiveError, read_manifest
from controlplane.store.backup.create import accepted_of
from controlplane.store.backup.manifest import Manifest, Part
from controlplane.store.backup.part import PartError, read_part
from controlplane.store.backup.snapshot import RAW
from controlplane.store.backup.tally import Tally
from controlplane.store.schema import EVENTS

__all__ = ["check_files", "differences", "join", "verify"]

_PIECE = 2**20


def check_files(folder: Path) -> Manifest:
    """Names, sizes and SHA-256 of all files, as the manifest says: what copying may have damaged. Needs no key, and so believes the manifest."""
    manifest, _ = read_manifest(folder, None)

    def look(part: Part) -> None:
        found = hashlib.sha256()
        with (folder / part.name).open("rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
        if found.hexdigest() != part.sha256:
            raise ArchiveError(f"{folder}: {part.name} is not what was written; copy it again.")

    with ThreadPoolExecutor(cpu_count()) as threads:
        list(threads.map(look, [part for _, part in manifest.parts]))
    return manifest


def verify(archive: Archive, tell: Callable[[str], None]) -> None:
    """Open every frame of every part, and count and digest all again. Raises ArchiveError that says what is wrong."""
    tallies = {kept.name: Tally() for kept in archive.manifest.collections}
    accepted: dict[str, Tally] = {}

    def read(place: tuple[str, Part]) -> tuple[str, Tally, dict[str, Tally]]:
        name, part = place
        tally, mids = Tally(), dict[str, Tally]()
        for documents in read_part(archive.path(part.name), archive.keys, part.name, part.sha256):
            tally.add(map(bytes, documents))
            if name == EVENTS:
                join(mids, accepted_of([RawBSONDocument(bytes(one), RAW) for one in documents]))
        return name, tally, mids

    try:
        with ThreadPoolExecutor(cpu_count()) as threads:
            for name, tally, mids in threads.map(read, archive.manifest.parts):
                tallies[name].join(tally)
                join(accepted, mids)
    except (PartError, OSError) as error:
        raise ArchiveError(f"{archive.folder}: {error}.") from None
    if wrong := differences(archive.manifest, tallies, accepted):
        raise ArchiveError(f"{archive.folder}: {'; '.join(wrong)}.")
    tell(f"{archive.manifest.documents} documents and {archive.manifest.messages} accepted messages are as written")


def join(into: dict[str, Tally], found: dict[str, Tally]) -> None:
    """Add up, by key."""
    for key, tally in found.items():
        into.setdefault(key, Tally()).join(tally)


def differences(manifest: Manifest, tallies: dict[str, Tally], accepted: dict[str, Tally]) -> list[str]:
    """In what collections and accepted messages are not what the manifest says; a sentence each."""
    found = []
    for kept in manifest.collections:
        tally = tallies.get(kept.name, Tally())
        if (tally.count, tally.size, tally.digest) != (kept.documents, kept.bytes, kept.digest):
            what = (
                f"{tally.count} documents, not {kept.documents}"
                if tally.count != kept.documents
                else "other documents than were backed up"
            )
            found.append(f"{kept.name} has {what}")
    wanted = {one.datacenter: (one.messages, one.digest) for one in manifest.accepted}
    for dc in sorted(wanted.keys() | accepted.keys()):
        tally = accepted.get(dc, Tally())
        if (tally.count, tally.digest) != wanted.get(dc, (0, Tally().digest)):
            found.append(
                f"of the messages that {dc} accepted there are {tally.count}, not the {wanted.get(dc, (0, ''))[0]} of the backup"
            )
    return found
