"""What ledgers say to each other beyond C2SP's formats: msgpack, bounded, strict.

A pull (`POST /mirror`) asks for the entries of a log from `from` on, and hands over the asker's cosigned checkpoint of that size: "I durably hold this".
The answer has them with their payloads, and everything to verify them with: the log's newest checkpoint (of `size` entries) and the proof that the first `to`
entries are its beginning.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

__all__ = [
    "MAX_ENTRIES",
    "MAX_NOTE",
    "MAX_PAYLOADS",
    "MAX_REPLY_BYTES",
    "PULL_BYTES",
    "Answered",
    "Ask",
    "Listed",
    "Reply",
    "T",
    "Wanted",
    "decode",
    "encode",
]

MAX_ENTRIES = 8_192
MAX_PAYLOADS = 1_024
PULL_BYTES = 8 * 1024 * 1024
"""An answer ends after the bundle with which it exceeds this."""
MAX_REPLY_BYTES = 48 * 1024 * 1024
"""Longer ones are not read."""
MAX_NOTE = 64 * 1024

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Proof = Annotated[list[_Hash], msgspec.Meta(max_length=63)]
_Origin = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Note = Annotated[str, msgspec.Meta(max_length=MAX_NOTE)]
_Row = tuple[
    Annotated[bytes, msgspec.Meta(min_length=1, max_length=65_535)],
    Annotated[bytes, msgspec.Meta(max_length=64)] | None,
    bytes | None,
]


class Ask(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename={"start": "from"}):
    """A pull. `limit` 0 with `prove` asks for a proof alone."""

    origin: _Origin
    start: _Size
    have: _Note = ""
    """The log's signed checkpoint of `start` entries with the asker's mirror cosignature; or nothing."""
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=30_000)] = 0
    """How long the answer may wait for something new."""
    limit: Annotated[int, msgspec.Meta(ge=0, le=MAX_ENTRIES)] = MAX_ENTRIES
    prove: bool = False


class Reply(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename={"start": "from"}):
    """The answer to a pull."""

    checkpoint: _Note
    """Newest signed note of the log; empty for a log that has none yet."""
    start: _Size
    to: _Size
    size: _Size
    """Of the checkpoint."""
    proof: _Proof
    """Consistency of `to` with `size`."""
    entries: Annotated[list[_Row], msgspec.Meta(max_length=MAX_ENTRIES)]
    """(leaf, salt, payload); salt and payload None once erased."""
    next: Annotated[str, msgspec.Meta(max_length=256)] = ""
    """The log ended here and goes on in this one."""
    before: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """Asked to prove: the root of the first `from` entries …"""
    before_proof: _Proof = []
    """… and their consistency with `size`."""


class Wanted(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`POST /payloads`: entries of any log that is held, one by one."""

    origin: _Origin
    indices: Annotated[list[_Size], msgspec.Meta(max_length=MAX_PAYLOADS)]


class Answered(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One row for each index; None where the entry is not held."""

    rows: Annotated[list[_Row | None], msgspec.Meta(max_length=MAX_PAYLOADS)]


class Listed(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One log of `GET /logs?dc=`, oldest first."""

    origin: _Origin
    size: _Size
    state: str
    previous: str
    next: str


T = TypeVar("T")
encode = msgspec.msgpack.Encoder().encode


def decode(data: bytes, kind: type[T]) -> T:
    """A `kind` out of msgpack. ValueError for anything else."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from None
