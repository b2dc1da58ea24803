"""What ledgers say to each other beyond C2SP's formats: msgpack, bounded, strict.

A pull (`POST /mirror`) asks for the entries of a log from `from` on, and hands over the asker's cosigned checkpoint of that size: "I durably hold this".
The answer has them with their payloads, and everything to verify them with: the log's newest checkpoint (of `size` entries) and the proof that the first `to`
entries are its beginning.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from controlplane.store.preference_news import Record

__all__ = [
    "MAX_COUNTED",
    "MAX_ENTRIES",
    "MAX_NOTE",
    "MAX_PAYLOADS",
    "MAX_REPLY_BYTES",
    "MAX_STATES",
    "MAX_STATE_BYTES",
    "MAX_TERMS",
    "PULL_BYTES",
    "Answered",
    "Ask",
    "Counted",
    "Known",
    "Learned",
    "LearnedState",
    "Listed",
    "PreferenceAsk",
    "PreferenceNews",
    "Reply",
    "T",
    "Taken",
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
MAX_STATES = 256
MAX_STATE_BYTES = 8 * 1024 * 1024
MAX_TERMS = 1_024
MAX_COUNTED = 2_000

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


class Known(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`POST /routing-states`: the asker has these, id → ms since the epoch."""

    states: Annotated[dict[str, _Size], msgspec.Meta(max_length=MAX_STATES)]


class LearnedState(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What one node of the answering datacenter has learned about routes."""

    node: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    at: _Size
    state: Annotated[bytes, msgspec.Meta(max_length=MAX_STATE_BYTES)]


class Learned(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Those that are later."""

    states: Annotated[list[LearnedState], msgspec.Meta(max_length=MAX_STATES)]


class PreferenceAsk(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`POST /preferences`: the asker has heard so far (`store.preference_news.Mark`). `key` says which key its recipients are hashed with."""

    key: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    version: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
    token: _Size
    scan: Annotated[str, msgspec.Meta(pattern="^([sp][0-9a-f]{0,40})?$")] | None


class PreferenceNews(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is new (`store.preference_news.News`)."""

    version: _Size
    token: _Size
    scan: Annotated[str, msgspec.Meta(pattern="^([sp][0-9a-f]{0,40})?$")] | None
    head: _Size
    told: list[Record]
    scanned: list[Record]


class Counted(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`GET /statistics?changed=`: documents of `store.statistics` of the answering datacenter, written since, oldest first."""

    documents: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=MAX_COUNTED)]


class Taken(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`GET /adoptions?dc=`: the answering datacenter's terms that took over messages of `dc`, each with the number of its last event (node, epoch, q)."""

    terms: Annotated[list[tuple[str, _Size, _Size]], msgspec.Meta(max_length=MAX_TERMS)]
    running: bool
    """One still does."""


T = TypeVar("T")
encode = msgspec.msgpack.Encoder().encode


def decode(data: bytes, kind: type[T]) -> T:
    """A `kind` out of msgpack. ValueError for anything else."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from None
