"""What a backup holds, as `manifest.json` says it: readable without the key, and authenticated by it. Nothing in it is about a person."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import Any

import msgspec

from controlplane.store.backup.part import Keys

__all__ = ["FORMAT", "Accepted", "Kept", "Ledger", "LogAt", "Manifest", "ManifestError", "Part", "opened", "signed"]

FORMAT = 1


class ManifestError(Exception):
    """It cannot be believed; the message says why."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the backup."""

    name: str
    size: int
    sha256: str
    documents: int


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A collection. `digest`: of its documents, in any order (`Tally`)."""

    name: str
    documents: int
    bytes: int
    digest: str
    parts: list[Part]


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The messages that a datacenter accepted, as far as this database had them. `digest`: of their ids, in any order."""

    datacenter: str
    messages: int
    digest: str


class LogAt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a log of the ledger stood. `root`: hexadecimal, of its `size` entries."""

    origin: str
    datacenter: str
    own: bool
    size: int
    root: str


class Ledger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The logs, and what is needed to verify them without the region: names and public keys."""

    domain: str
    peers: list[dict[str, Any]]
    logs: list[LogAt]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.json`."""

    format: int
    id: str
    region: str
    cluster_time: tuple[int, int]
    """The instant: MongoDB's timestamp, seconds since the epoch and an ordinal. All that is here was so then, on all shards."""
    seconds: float
    """How long it took."""
    heliograph: str
    mongodb: str
    salt: str
    key_check: str
    collections: list[Kept]
    left_out: list[str]
    accepted: list[Accepted]
    ledger: Ledger
    mac: str = ""

    @property
    def instant(self) -> str:
        """As people write it (UTC)."""
        return datetime.fromtimestamp(self.cluster_time[0], UTC).isoformat().replace("+00:00", "Z")

    @property
    def parts(self) -> list[tuple[str, Part]]:
        """(collection, part) of all files."""
        return [(kept.name, part) for kept in self.collections for part in kept.parts]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for _, part in self.parts)

    @property
    def documents(self) -> int:
        """Of all collections."""
        return sum(kept.documents for kept in self.collections)

    @property
    def messages(self) -> int:
        """Accepted, in all datacenters."""
        return sum(one.messages for one in self.accepted)


def _text(manifest: Manifest) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(manifest, mac=""), order="sorted")


def signed(manifest: Manifest, keys: Keys) -> bytes:
    """As it is written."""
    whole = msgspec.structs.replace(manifest, mac=keys.mac(_text(manifest)))
    return msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"


def opened(text: bytes, secret: bytes | None) -> tuple[Manifest, Keys | None]:
    """The manifest and the backup's keys; without a secret it is read and not authenticated. Raises ManifestError."""
    try:
        version = msgspec.json.decode(text, type=dict[str, Any]).get("format")
        if version != FORMAT:
            raise ManifestError(
                f"the backup is of format {version!r:.20}, this program reads {FORMAT}; use the program that wrote it"
            )
        found = msgspec.json.decode(text, type=Manifest)
        salt = bytes.fromhex(found.salt)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ManifestError(f"manifest.json is damaged: {error}") from None
    if secret is None:
        return found, None
    keys = Keys(secret, salt)
    if not hmac.compare_digest(keys.mac(_text(found)), found.mac):
        if keys.check != found.key_check:
            raise ManifestError(
                f"the key is not the one of this backup of {found.region!r:.40}, or manifest.json was changed; "
                "give the region's secret key by HELIOGRAPH_SECRET_KEY_FILE"
            )
        raise ManifestError("manifest.json was changed after it was written")
    return found, keys
