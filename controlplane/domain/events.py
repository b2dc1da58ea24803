"""Events: the immutable facts about a message, and the canonical leaf that the ledger hashes.

Shapes of `data` (the private, erasable payload; all times are ms since the Unix epoch):

`parts` are part numbers from 1.

| kind | data |
|---|---|
| accepted | to, from, body, class, encoding, parts, expires_at, unknown_policy; maybe fingerprint (of the request, where it had an Idempotency-Key), ref (of a long message), send_at, held {rule, detail, record, until} (why it waits for its send_at), callback_url, reference, context, max_price, max_parts, origin, durability, sender_type, resent_from (the message that it repeats) |
| submitted | route, connector, attempt, part_ids [[part, carrier's raw id], …] |
| deferred | route, connector, attempt, parts, command_status, retry_at; by the recipient's quiet hours (reason `quiet_hours`): attempt, parts [], retry_at, rule, detail |
| rerouted | route, connector, attempt, parts, tried [route, …]; command_status where a carrier said it; reason: `rejected`, `queue_full`, `temporary`, `resend` (its outcome was unknown) |
| unknown | route, connector, attempt, parts; reason: `timeout`, `connection_lost`, `node_lost` |
| enroute, delivered, undelivered; expired with a part | part, connector, receipt {id, state, error, submit_date, done_date, text}; with former, true: about an earlier submit of the part; undelivered with tried [route, …]: the part goes to the next route |
| failed | route, connector, command_status (where a carrier said it); by the recipient's preferences (reason `opted_out`, `suppressed`, `class_blocked`): rule, detail |
| each outcome of a submit | decision (base64url of the router's record, controlplane.routing.decision), with the first part, where a router that learns was asked |
| resent | message (the one that repeats it) |
| expired without a part, cancelled, feedback, adopted, erased | what `reason` does not say |
| received | from, to, body, connector, parts, complete (a mobile-originated message); of a keyword: preference {keyword, effect, suppression or lifted} |
| void | {}: fills a sequence number whose event lost its race, so that (node, epoch, q) stays contiguous |

| gap | {}: stands at an ordinal of a message whose event is lost everywhere (reason `lost`), so that what follows can be read |

The ledger writes events of its own, of no message and no tenant; their `ref` says what they are about, and `data` is {}:

| kind | ref |
|---|---|
| opened | the log before, as `origin size base64(root)`, or nothing: entry 0 of every log |
| repaired | `class origin first-last` |
| gap | `node:epoch first-last`: sequence numbers that were never committed (reason `never_committed`) |
| recovered | `origin first-last`: the entries that follow stood in that log after it was sealed |
| fork | `origin size base64(root) base64(root)`: two roots of one size, both signed |

The leaf is canonical JSON (RFC 8785) without personal data: `commit` is HMAC-SHA256(salt, payload), where the payload is canonical [tenant, data] or
[tenant, data, cids]. So whatever an event's document holds is in its leaf or committed by it. Erasing salt and data leaves the leaf, and every proof
over it, intact and without information.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

__all__ = [
    "FINAL_KINDS",
    "LEAF_VERSION",
    "Event",
    "Kind",
    "canonical",
    "commitment",
    "committed_payload",
    "leaf_bytes",
    "leaf_hash",
]

LEAF_VERSION = 1


class Kind(StrEnum):
    """What happened."""

    ACCEPTED = "accepted"
    SUBMITTED = "submitted"
    DEFERRED = "deferred"
    REROUTED = "rerouted"
    UNKNOWN = "unknown"
    ENROUTE = "enroute"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FEEDBACK = "feedback"
    RESENT = "resent"
    ADOPTED = "adopted"
    ERASED = "erased"
    RECEIVED = "received"
    VOID = "void"
    GAP = "gap"
    OPENED = "opened"
    REPAIRED = "repaired"
    RECOVERED = "recovered"
    FORK = "fork"


FINAL_KINDS = frozenset({Kind.DELIVERED, Kind.UNDELIVERED, Kind.FAILED, Kind.EXPIRED, Kind.CANCELLED})


@dataclass(slots=True)
class Event:
    """A fact about one message. It is a draft until the committer seals it: adds where and when in its sequence it stands, salt and leaf."""

    mid: str
    k: int
    tenant: str
    kind: Kind
    at: int
    data: dict[str, Any] | None
    """None once erased."""
    prev: bytes | None = None
    """Of a draft: leaf hash of the message's event k-1; None only for k = 0. The leaf holds it; it is not stored beside it."""
    route: str | None = None
    reason: str | None = None
    cids: tuple[str, ...] = ()
    """`connector/normalised carrier id` of each part that this event submitted, for joining receipts."""
    dc: str = ""
    node: str = ""
    epoch: int = 0
    q: int = 0
    leaf: bytes = b""
    salt: bytes | None = None
    """None once erased."""
    ref: str | None = None
    """What an event of the ledger is about."""

    @property
    def id(self) -> str:
        """`<mid>:<k>`, the event's `_id` in the store."""
        return f"{self.mid}:{self.k}"


_string = json.encoder.encode_basestring  # escapes exactly what RFC 8785 escapes


def _plain(value: object) -> int:
    """An int of a subclass: MongoDB's driver reads numbers beyond 32 bit as `bson.Int64`."""
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


canonical = msgspec.json.Encoder(order="sorted", enc_hook=_plain).encode
"""RFC 8785 canonical JSON of str, int, bool, None, lists and dicts with str keys, as bytes. No payload has floats, which it would write its own way."""


def committed_payload(event: Event) -> bytes:
    """What a leaf commits to beside its own members: canonical JSON of [tenant, data] or [tenant, data, cids]."""
    return canonical((event.tenant, event.data, event.cids) if event.cids else (event.tenant, event.data))


def commitment(salt: bytes, payload: bytes) -> str:
    """HMAC-SHA256(salt, payload), hex."""
    return hmac.digest(salt, payload, "sha256").hex()


def leaf_bytes(event: Event, commit: str) -> bytes:
    """The canonical JSON of one leaf: members sorted, no white space, no personal data. About 300 bytes."""
    prev = f'"prev":"{event.prev.hex()}",' if event.prev is not None else ""
    reason = f'"reason":{_string(event.reason)},' if event.reason is not None else ""
    ref = f'"ref":{_string(event.ref)},' if event.ref is not None else ""
    route = f'"route":{_string(event.route)},' if event.route is not None else ""
    return (
        f'{{"at":{event.at},"commit":"{commit}","dc":{_string(event.dc)},"e":{event.epoch},"k":{event.k},"kind":"{event.kind}",'
        f'"mid":{_string(event.mid)},"n":{_string(event.node)},{prev}"q":{event.q},{reason}{ref}{route}"v":{LEAF_VERSION}}}'
    ).encode()


def leaf_hash(leaf: bytes) -> bytes:
    """RFC 6962 section 2.1 leaf hash: SHA-256(0x00 || leaf)."""
    return hashlib.sha256(b"\x00" + leaf).digest()
