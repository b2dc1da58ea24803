#!/usr/bin/env python3
"""Verifies the proof of what happened to a message: one file, nothing but Python 3.9 or newer, no network.

    python3 verifier.py proof.json --key 'example.com/ledger/fra/2026q4+1a2b3c4d+AQ…' [--key …]
                        [--witness 'example.com/ledger/iad/witness+…' …] [--require N] [--json]

`proof.json` is what GET /v1/messages/{id}/proof answers. `--key` is the public key of a log, `--witness` that of somebody who
watches the log; take both from where their owners publish them, not from the document. `--require` is how many of the
witnesses must have signed each checkpoint; without it all of those given must have, if any are.

Exit codes: 0 everything verifies; 1 something does not, and the last line says which event and why; 2 wrong usage.

Formats: RFC 6962 Merkle trees, RFC 8032 Ed25519, C2SP signed-note, tlog-checkpoint and tlog-cosignature.
Made to be read: this file is all that you have to trust, beside Python and the keys.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import hmac
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

__all__ = ["BadProofError", "Key", "main", "parse_document", "parse_key", "verify_document"]

FORMAT = "heliograph-proof@v1"
MAX_DOCUMENT_BYTES = 16_000_000
LOG_KEY, COSIGNER_KEY = 1, 4
HEX32 = r"[0-9a-f]{64}"
DOCUMENT = {
    "format": str,
    "id": str,
    "complete": bool,
    "events": list,
    "pending": list,
    "checkpoints": dict,
    "keys": dict,
}
EVENT = {
    "k": int,
    "kind": str,
    "at": int,
    "leaf": str,
    "log": str,
    "index": int,
    "size": int,
    "proof": list,
    "opening": object,
}
LEAF = {"at": int, "commit": str, "dc": str, "e": int, "k": int, "kind": str, "mid": str, "n": str, "q": int, "v": int}
LEAF_MAY = {"prev": str, "reason": str, "ref": str, "route": str}


class BadProofError(Exception):
    """The document does not prove what it should; the text says where and why."""


class Key(NamedTuple):
    """A public key under its name: `kind` is LOG_KEY or COSIGNER_KEY."""

    name: str
    key_id: bytes
    kind: int
    public: bytes


# --- Ed25519, RFC 8032 section 5.1.7 -------------------------------------------------------------------------------

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]  # extended coordinates: x = X/Z, y = Y/Z, T = XY/Z


def _add(a: Point, b: Point) -> Point:
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    return (f - e) * (h - g) % P, (h + g) * (f + e) % P, (h - g) * (h + g) % P, (f - e) * (f + e) % P


def _times(factor: int, point: Point) -> Point:
    result = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            result = _add(result, point)
        point = _add(point, point)
        factor >>= 1
    return result


def _point(data: bytes) -> Point | None:
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def _bytes_of(point: Point) -> bytes:
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = _point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


@functools.lru_cache(maxsize=1024)
def ed25519_holds(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature (64 bytes) over the message is by the owner of the public key (32 bytes)."""
    if len(public) != 32 or len(signature) != 64 or BASE is None:
        return False
    point, s = _point(public), int.from_bytes(signature[32:], "little")
    if point is None or s >= ORDER:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    minus = (P - point[0], point[1], 1, P - point[3])
    return _bytes_of(_add(_times(s, BASE), _times(k, minus))) == signature[:32]


# --- Hashes ----------------------------------------------------------------------------------------------------------


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_from(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a tree of `size` has if this leaf is at `index` and the path is right; None if the path's length is wrong."""
    sides: list[bool] = []  # from the root down: is the leaf in the left part?
    while size > 1:
        left = 1 << (size - 1).bit_length() - 1
        sides.append(index < left)
        index, size = (index, left) if index < left else (index - left, size - left)
    if len(sides) != len(path):
        return None
    for sibling, is_left in zip(path, reversed(sides)):  # noqa: B905 - Python 3.9
        leaf = node_hash(leaf, sibling) if is_left else node_hash(sibling, leaf)
    return leaf


# --- Keys, notes, checkpoints --------------------------------------------------------------------------------------


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        data = b""
    if not data or base64.b64encode(data).decode() != text:
        raise BadProofError(f"not base64: {text[:100]!r}")
    return data


def _hash(text: str) -> bytes:
    data = _base64(text)
    if len(data) != 32:
        raise BadProofError(f"not a hash: {text[:100]!r}")
    return data


def _name(text: str) -> str:
    if not 1 <= len(text) <= 256 or re.search(r"[\s+\x00-\x1f\ud800-\udfff]", text):
        raise BadProofError(f"not the name of a key: {text[:100]!r}")
    return text


def parse_key(vkey: str) -> Key:
    """Read `<name>+<id>+<base64>`. BadProofError if it is no such key, or its id is another's."""
    parts = vkey.split("+", 2)
    if len(parts) != 3:
        raise BadProofError(f"not a key: {vkey[:200]!r}; a key looks like name+1a2b3c4d+AQ…")
    name, data = _name(parts[0]), _base64(parts[2])
    if len(data) != 33 or data[0] not in (LOG_KEY, COSIGNER_KEY):
        raise BadProofError(f"not an Ed25519 key of a log or a witness: {vkey[:200]!r}")
    if int.from_bytes(data[1:], "little") & (2**255 - 1) >= P:
        raise BadProofError(f"not the encoding of an Ed25519 key: {vkey[:200]!r}")
    key_id = hashlib.sha256(name.encode() + b"\n" + data).digest()[:4]
    if parts[1] != key_id.hex():
        raise BadProofError(f"the key's id does not fit, so a character is wrong: {vkey[:200]!r}")
    return Key(name, key_id, data[0], data[1:])


def _read_note(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """The text, and (name, key id, signature) for each signature."""
    text, gap, lines = note.rpartition("\n\n")
    if not gap or not lines.endswith("\n") or len(_utf8(note)) > 1_000_000 or re.search(r"[\x00-\x09\x0b-\x1f]", note):
        raise BadProofError("not a signed note")
    signatures = []
    for line in lines[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        name, _, value = rest.partition(" ")
        data = _base64(value)
        if dash != "\u2014" or len(data) < 5:
            raise BadProofError(f"not a signature line: {line[:100]!r}")
        signatures.append((_name(name), data[:4], data[4:]))
    if len(signatures) > 100:
        raise BadProofError("more than 100 signatures")
    return text + "\n", signatures


def _signed_at(key: Key, text: str, signature: bytes) -> int:
    """When a cosigner signed (seconds), 0 for a log. BadProofError if the signature is not by that key."""
    message, seconds = text.encode(), 0
    if key.kind == COSIGNER_KEY:
        seconds, signature = int.from_bytes(signature[:8], "big"), signature[8:]
        message = b"cosignature/v1\ntime %d\n" % seconds + message
    if seconds >= 2**63 or not ed25519_holds(key.public, message, signature):
        raise BadProofError(f"the signature of {key.name} is wrong")
    return seconds


def _checkpoint(origin: str, note: str, keys: Sequence[Key], required: int) -> dict[str, Any]:
    """Size, root and cosigners of a log, as its own key and those of `required` different cosigners signed them."""
    text, signatures = _read_note(note)
    logs = {(key.name, key.key_id): key for key in keys if key.kind == LOG_KEY and key.name == origin}
    if not logs:
        raise BadProofError("no --key of this log was given")
    by_public = {key.public: key for key in reversed(keys) if key.kind == COSIGNER_KEY}
    known = {**logs, **{(key.name, key.key_id): key for key in by_public.values()}}
    seen: dict[Key, int] = {}
    for name, key_id, signature in signatures:
        if (name, key_id) in known:
            key = known[name, key_id]
            seen.setdefault(key, _signed_at(key, text, signature))
    if not any(key.kind == LOG_KEY for key in seen):
        raise BadProofError("the log's key did not sign it")
    cosigners = [[key.name, seconds] for key, seconds in seen.items() if key.kind == COSIGNER_KEY]
    if len(cosigners) < required:
        raise BadProofError(f"{len(cosigners)} of the given witnesses signed it; {required} are required")
    lines = text[:-1].split("\n")
    if (
        len(lines) < 3
        or not all(lines)
        or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1], re.ASCII)
        or int(lines[1]) >= 2**63
    ):
        raise BadProofError("not a checkpoint")
    if lines[0] != origin:
        raise BadProofError(f"it is the checkpoint of {lines[0]}")
    return {"size": int(lines[1]), "root": _hash(lines[2]), "cosigners": cosigners}


# --- The document --------------------------------------------------------------------------------------------------


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadProofError("not Unicode text") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a member is there twice")
    return dict(pairs)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadProofError(f"{what} is not JSON: {error}") from None


def parse_document(data: bytes) -> Any:
    """Read the JSON of a proof, at most 16 MB. BadProofError if it is none."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BadProofError(f"the document has {len(data)} bytes; the most is {MAX_DOCUMENT_BYTES}")
    return _json(data, "the document")


def _check_shape(value: Any, must: dict[str, Any], may: dict[str, Any], what: str) -> None:
    if not isinstance(value, dict):
        raise BadProofError(f"{what} is not an object")
    for name, kind in must.items():
        if name not in value:
            raise BadProofError(f"{what} has no {name!r}")
        if not isinstance(value[name], kind) or (
            kind is int and (type(value[name]) is bool or not 0 <= value[name] < 2**63)
        ):
            raise BadProofError(f"{name!r} of {what} is not of the right type")
    for name in value.keys() - must.keys():
        if name not in may or not isinstance(value[name], may[name]):
            raise BadProofError(f"{what} has {name!r}, which this verifier does not know; there may be a newer one")


def _check_document(document: Any) -> None:
    _check_shape(document, DOCUMENT, {}, "the document")
    if document["format"] != FORMAT:
        raise BadProofError(f"not a {FORMAT} document; there may be a newer verifier")
    for number, event in enumerate(document["events"]):
        what = f"number {number} of the events"
        _check_shape(event, EVENT, {}, what)
        if len(event["proof"]) > 63 or not all(isinstance(value, str) for value in event["proof"]):
            raise BadProofError(f"the proof of {what} is not a list of at most 63 hashes")
        if event["opening"] is not None:
            _check_shape(event["opening"], {"salt": str, "payload": str}, {}, f"the opening of {what}")
    texts = [*document["checkpoints"].values(), *document["keys"].values()]
    numbers = [*document["pending"], *(event[name] for event in document["events"] for name in ("k", "at"))]
    if not all(isinstance(text, str) for text in texts) or not all(type(n) is int and 0 <= n < 2**53 for n in numbers):
        raise BadProofError("a checkpoint, a key or a number is not of the right type")


def _check_ordinals(document: Any) -> None:
    shown, pending = [event["k"] for event in document["events"]], document["pending"]
    if not shown:
        raise BadProofError("no event of the message is in the ledger yet: ask again in a few seconds")
    if (
        shown != sorted(shown)
        or pending != sorted(pending)
        or sorted(shown + pending) != list(range(len(shown + pending)))
    ):
        raise BadProofError(f"an event is missing, twice or out of order: {shown} are shown, {pending} pending")
    if document["complete"] == bool(pending):
        raise BadProofError("`complete` and `pending` contradict each other")


def _check_keys(document: Any, keys: Sequence[Key]) -> None:
    for name, vkey in document["keys"].items():
        key, known = parse_key(vkey), [known for known in keys if known.name == name]
        if key.name != name or (known and key not in known):
            raise BadProofError(f"the document's key of {name} is not the one that you trust")


def _leaf(event: Any, mid: str) -> dict[str, Any]:
    leaf = _json(_utf8(event["leaf"]), "the leaf")
    _check_shape(leaf, LEAF, LEAF_MAY, "the leaf")
    if json.dumps(leaf, ensure_ascii=False, sort_keys=True, separators=(",", ":")) != event["leaf"]:
        raise BadProofError("the leaf is not canonical JSON")
    if leaf["v"] != 1 or not all(leaf[name] < 2**53 for name in ("at", "e", "k", "q")):
        raise BadProofError("the leaf is of another version")
    if not all(re.fullmatch(HEX32, leaf[name]) for name in ("commit", "prev") if name in leaf):
        raise BadProofError("a hash in the leaf is not one")
    if (leaf["mid"], leaf["k"], leaf["kind"], leaf["at"]) != (mid, event["k"], event["kind"], event["at"]):
        raise BadProofError(f"the leaf is of another event: {leaf['mid']}:{leaf['k']}, {leaf['kind']} at {leaf['at']}")
    return leaf  # type: ignore[no-any-return]


def _check_place(event: Any, logs: dict[str, Any]) -> None:
    log = logs.get(event["log"])
    if log is None:
        raise BadProofError(f"the checkpoint of {event['log']} is not in the document")
    if log["size"] != event["size"] or event["index"] >= event["size"]:
        raise BadProofError(f"entry {event['index']} of {event['size']} is not in a log of {log['size']} entries")
    path = [_hash(text) for text in event["proof"]]
    if root_from(leaf_hash(event["leaf"].encode()), event["index"], event["size"], path) != log["root"]:
        raise BadProofError(f"the leaf is not entry {event['index']} of {event['log']}")


def _is_linked(leaf: dict[str, Any], before: dict[str, Any] | None) -> bool:
    """Whether the event before is there and is the one that this event names."""
    prev, k = leaf.get("prev"), leaf["k"]
    if (prev is None) != (k == 0) and not (prev is None and leaf["kind"] == "gap"):
        raise BadProofError("the first event names one before it" if k == 0 else "it names no event before it")
    if k == 0:
        return True
    if prev is None or before is None or before["k"] != k - 1 or before["kind"] == "gap":
        return False
    if prev != before["hash"]:
        raise BadProofError(f"it follows another event than {before['k']} ({before['kind']})")
    return True


def _open(opening: Any, commit: str) -> list[Any]:
    payload = _utf8(opening["payload"])
    if not re.fullmatch(r"[0-9a-f]{32}", opening["salt"]):
        raise BadProofError("the salt is not 16 bytes in hex")
    if not hmac.compare_digest(hmac.new(bytes.fromhex(opening["salt"]), payload, hashlib.sha256).hexdigest(), commit):
        raise BadProofError("the content shown is not what was committed to")
    value = _json(payload, "the content")
    if not isinstance(value, list) or len(value) not in (2, 3) or not isinstance(value[0], str):
        raise BadProofError("the content is not [tenant, data] or [tenant, data, carrier's ids]")
    return value


def verify_document(document: Any, keys: Sequence[Key], required: int = 0) -> dict[str, Any]:
    """Check a parsed document. BadProofError says which event and why; else what is proven, ready for JSON."""
    _check_document(document)
    _check_ordinals(document)
    _check_keys(document, keys)
    logs: dict[str, Any] = {}
    for origin, note in sorted(document["checkpoints"].items()):
        try:
            logs[origin] = _checkpoint(origin, note, keys, required)
        except BadProofError as error:
            raise BadProofError(f"checkpoint of {origin}: {error}") from None
    if logs.keys() - {event["log"] for event in document["events"]}:
        raise BadProofError("there is a checkpoint of a log that no event is in")
    events: list[dict[str, Any]] = []
    before: dict[str, Any] | None = None
    for event in document["events"]:
        try:
            leaf = _leaf(event, document["id"])
            _check_place(event, logs)
            linked = _is_linked(leaf, before)
            payload = _open(event["opening"], leaf["commit"]) if event["opening"] else None
        except BadProofError as error:
            raise BadProofError(f"event {event['k']} ({event['kind']}): {error}") from None
        before = {"k": leaf["k"], "kind": leaf["kind"], "hash": leaf_hash(event["leaf"].encode()).hex()}
        facts = {name: event[name] for name in ("k", "kind", "at", "log", "index")}
        events.append(
            {**facts, "reason": leaf.get("reason"), "route": leaf.get("route"), "linked": linked, "payload": payload}
        )
    shown = [{"log": origin, **log, "root": log["root"].hex()} for origin, log in logs.items()]
    return {
        "id": document["id"],
        "complete": document["complete"],
        "events": events,
        "pending": document["pending"],
        "logs": shown,
    }


# --- The command -----------------------------------------------------------------------------------------------------


def _utc(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s after 1970"


def _plain(value: Any) -> str:
    """On one line, without characters that move a terminal's cursor or hide text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [f"message {_plain(report['id'])}"]
    for event in report["events"]:
        why = "".join(f", {name} {_plain(event[name])}" for name in ("reason", "route") if event[name] is not None)
        lines.append(f"  {event['k']:3} {_plain(event['kind']):12} {_utc(event['at'] / 1000)}{why}")
        lines.append(f"      entry {event['index']} of {_plain(event['log'])}")
        if not event["linked"]:
            lines.append("      the event before it is lost or not in the ledger yet, so what it follows is not shown")
        if event["payload"] is None:
            lines.append("      content not shown: erased, or not asked for")
        else:
            tenant, data, *_ = event["payload"]
            members = data.items() if isinstance(data, dict) else [("data", data)]
            lines += [f"      {_plain(name)}: {_plain(value)}" for name, value in (("tenant", tenant), *members)]
    for log in report["logs"]:
        lines.append(f"log {_plain(log['log'])}: {log['size']} entries, root {log['root']}, signed by its key")
        lines += [f"  seen by {_plain(name)} at {_utc(seconds)}" for name, seconds in log["cosigners"]]
        if not log["cosigners"]:
            lines.append("  no --witness given: a log that shows others something else would not be noticed")
    if report["pending"]:
        lines.append(f"NOT COMPLETE: events {report['pending']} are not in the ledger yet; ask for a newer proof")
    count = len(report["events"])
    lines.append(f"VERIFIED: {count} event" + ("s" if count > 1 else ""))
    if count > 1 and all(event["linked"] for event in report["events"]):
        lines[-1] += ", each of which names the one before it"
    return lines


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Verify the proof of what happened to a message, offline.")
    parser.add_argument("file", help="the proof, as GET /v1/messages/{id}/proof answers it; - reads standard input")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="VKEY",
        help="public key of a log, as its operator publishes it; once for each log",
    )
    parser.add_argument(
        "--witness", action="append", default=[], metavar="VKEY", help="public key of a witness that you trust"
    )
    parser.add_argument(
        "--require", type=int, metavar="N", help="how many of the witnesses must have signed (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print what is proven as JSON")
    arguments = parser.parse_args(argv)
    try:
        arguments.keys = [parse_key(vkey.strip()) for vkey in arguments.key + arguments.witness]
    except BadProofError as error:
        parser.error(str(error))
    if not arguments.key:
        parser.error("give --key: the public key of the log, as its operator publishes it")
    if any(key.kind != (LOG_KEY if n < len(arguments.key) else COSIGNER_KEY) for n, key in enumerate(arguments.keys)):
        parser.error("--key is for a log's key, --witness for a witness's; one is the other's")
    witnesses = len({key.public for key in arguments.keys if key.kind == COSIGNER_KEY})
    arguments.require = witnesses if arguments.require is None else arguments.require
    if not 0 <= arguments.require <= witnesses:
        parser.error(f"--require {arguments.require}, but {witnesses} different --witness are given")
    try:
        if arguments.file == "-":
            arguments.data = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
        else:
            with open(arguments.file, "rb") as file:  # noqa: PTH123 - one import less
                arguments.data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        parser.error(f"cannot read {arguments.file}: {error.strerror}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Print the result; 0 if everything verifies, 1 if not. Wrong usage exits with 2."""
    arguments = _arguments(argv)
    try:
        report = verify_document(parse_document(arguments.data), arguments.keys, arguments.require)
    except BadProofError as error:
        answer = (
            json.dumps({"verified": False, "error": str(error)})
            if arguments.json
            else f"NOT VERIFIED: {_plain(str(error))}"
        )
        code = 1
    else:
        answer = json.dumps({"verified": True, **report}) if arguments.json else "\n".join(_lines(report))
        code = 0
    sys.stdout.buffer.write(answer.encode("utf-8", "backslashreplace") + b"\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
