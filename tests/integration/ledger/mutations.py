"""Seeded damage to a pair of ledgers: each mutation knows where it must be found, and what repair must make of it."""

from __future__ import annotations

import base64
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.entries import place_of
from controlplane.ledger.merkle import grow
from controlplane.ledger.note import Note, Signer, derive
from controlplane.ledger.tiles import WIDTH, decode_bundle, encode_bundle, tile_hashes

EVENTS, LOGS, BUNDLES, TILES = "events", "ledger_logs", "ledger_bundles", "ledger_tiles"
RUNS, COSIGNATURES, WITNESSED = "ledger_runs", "ledger_cosignatures", "ledger_witnessed"
MENDED, SEALED, REFUSED, FROZEN = "mended", "sealed", "refused", "frozen"

Documents = dict[str, dict[Any, dict[str, Any]]]
Change = dict[tuple[str, Any], dict[str, Any] | None]


class Where(NamedTuple):
    """A finding that is expected: None stands for anything."""

    kinds: tuple[str, ...]
    origin: str | None = None
    first: int | None = None
    last: int | None = None
    subject: str | None = None
    within: range | None = None
    """Or of which the first entry is one of these."""

    def fits(self, finding: Any) -> bool:
        return (
            str(finding.kind) in self.kinds
            and self.origin in (None, finding.origin)
            and self.first in (None, finding.first)
            and self.last in (None, finding.last)
            and (self.subject in (None, finding.subject) or (self.within is not None and finding.first in self.within))
        )


@dataclass
class Mutation:
    family: str
    name: str
    site: str
    change: Change
    must: list[Where]
    """Each must be found …"""
    may: list[Where] = field(default_factory=list)
    """… and nothing but them and these."""
    outcome: str = MENDED
    between: bool = False
    """Whether it belongs to no single log."""


class Entry(NamedTuple):
    origin: str
    index: int  # type: ignore[assignment]
    leaf: bytes
    id: str


ALTERED, MISSING = ("event_altered",), ("event_missing",)


class Generator:
    """Mutations of one site's documents."""

    def __init__(self, site: str, documents: Documents, seed: int, **extra: Any) -> None:
        self.site = site
        self.documents = documents
        self.random = random.Random(f"{site} {seed}")
        self.extra = extra
        self.logs = documents[LOGS]
        self.entries: dict[str, list[Entry]] = {}
        for origin, log in self.logs.items():
            found: list[bytes] = []
            for index in range(-(-log["size"] // WIDTH)):
                found += decode_bundle(documents[BUNDLES][f"{origin}|{index}"]["data"])
            self.entries[origin] = [
                Entry(origin, at, leaf, f"{(place := place_of(leaf)).mid}:{place.k}")
                for at, leaf in enumerate(found[: log["size"]])
            ]
        self.every = [entry for entries in self.entries.values() for entry in entries]

    # -- bits ----------------------------------------------------------------------------------------------------------

    def flip(self, data: bytes, at: int | None = None) -> bytes:
        place = self.random.randrange(len(data)) if at is None else at
        changed = bytearray(data)
        changed[place] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def flip_text(self, text: str) -> str:
        if not text:
            return "x"
        at = self.random.randrange(len(text))
        return text[:at] + chr(ord(text[at]) ^ (1 << self.random.randrange(4))) + text[at + 1 :]

    def flip_any(self, value: Any) -> Any:
        match value:
            case bool():
                return not value
            case int():
                return value ^ (1 << self.random.randrange(30))
            case bytes():
                return self.flip(value)
            case str():
                return self.flip_text(value)
            case None:
                return "x"
            case dict() if value:
                key = self.random.choice(sorted(value))
                return {**value, key: self.flip_any(value[key])}
            case list() if value:
                at = self.random.randrange(len(value))
                return [*value[:at], self.flip_any(value[at]), *value[at + 1 :]]
            case dict():
                return {"x": 1}
            case _:
                return ["x"]

    def document(self, collection: str, identity: Any) -> dict[str, Any]:
        return copy.deepcopy(self.documents[collection][identity])

    def pick(self, keep: Callable[[Entry], bool] = lambda _entry: True) -> Entry:
        while True:
            entry = self.random.choice(self.every)
            if keep(entry):
                return entry

    def has_payload(self, entry: Entry) -> bool:
        return self.documents[EVENTS][entry.id]["salt"] is not None

    def mutation(self, family: str, name: str, change: Change, must: Sequence[Where], **options: Any) -> Mutation:
        return Mutation(family, name, self.site, change, list(must), **options)

    # -- events --------------------------------------------------------------------------------------------------------

    def event_fields(self, count: int) -> Iterator[Mutation]:
        scalars = [
            "t",
            "kind",
            "at",
            "dc",
            "n",
            "e",
            "q",
            "k",
            "mid",
            "route",
            "reason",
            "ref",
            "cids",
            "leaf",
            "salt",
            "data",
        ]
        for number in range(count):
            name = scalars[number % len(scalars)]
            if name in ("salt", "data", "route", "reason", "ref", "cids"):
                entry = self.pick(
                    lambda e, name=name: self.documents[EVENTS][e.id].get(name) is not None and self.has_payload(e)
                )
            else:
                entry = self.pick()
            document = self.document(EVENTS, entry.id)
            old = document[name]
            document[name] = self.flip_any(old)
            if name == "e":
                document["e"] = old + 1 + self.random.randrange(3)
            kinds = MISSING if name == "mid" else ALTERED
            yield self.mutation(
                "event field",
                f"{name} of {entry.id}",
                {(EVENTS, entry.id): document},
                [Where(kinds, entry.origin, entry.index, entry.index)],
            )

    def event_whole(self, count: int) -> Iterator[Mutation]:
        ways = [
            "delete", "rename", "no salt", "no data", "no payload", "other leaf", "other payload", "swap", "repeat",
            "extra field", "truncate leaf", "other document", "unset field", "back from before the erasure", "delete erased",
        ]  # fmt: skip
        for number in range(count):
            way = ways[number % len(ways)]
            yield getattr(self, "_" + way.replace(" ", "_"))(way)

    def _event(
        self, way: str, change: Change, entries: Sequence[Entry], kinds: tuple[str, ...], **options: Any
    ) -> Mutation:
        must = [Where(kinds, entry.origin, entry.index, entry.index) for entry in entries]
        return self.mutation("event document", f"{way}: {entries[0].id}", change, must, **options)

    def _delete(self, way: str) -> Mutation:
        entry = self.pick()
        return self._event(way, {(EVENTS, entry.id): None}, [entry], MISSING)

    def _delete_erased(self, way: str) -> Mutation:
        entry = self.pick(lambda e: b'"kind":"erased"' in e.leaf or not self.has_payload(e))
        return self._event(way, {(EVENTS, entry.id): None}, [entry], MISSING)

    def _rename(self, way: str) -> Mutation:
        entry = self.pick()
        document = self.document(EVENTS, entry.id)
        document["_id"] = self.random.choice([f"{entry.id}7", "x" + entry.id, entry.id.replace(":", ";")])
        return self._event(way, {(EVENTS, entry.id): None, (EVENTS, document["_id"]): document}, [entry], MISSING)

    def _no(self, way: str, *names: str) -> Mutation:
        entry = self.pick(self.has_payload)
        return self._event(
            way, {(EVENTS, entry.id): {**self.document(EVENTS, entry.id), **dict.fromkeys(names)}}, [entry], ALTERED
        )

    def _no_salt(self, way: str) -> Mutation:
        return self._no(way, "salt")

    def _no_data(self, way: str) -> Mutation:
        return self._no(way, "data")

    def _no_payload(self, way: str) -> Mutation:
        return self._no(way, "salt", "data")

    def _other_leaf(self, way: str) -> Mutation:
        entry, other = self.pick(), self.pick()
        if entry.id == other.id:
            return self._other_leaf(way)
        return self._event(
            way, {(EVENTS, entry.id): {**self.document(EVENTS, entry.id), "leaf": other.leaf}}, [entry], ALTERED
        )

    def _other_payload(self, way: str) -> Mutation:
        entry, other = self.pick(self.has_payload), self.pick(self.has_payload)
        if entry.id == other.id:
            return self._other_payload(way)
        taken = {name: self.document(EVENTS, other.id)[name] for name in ("salt", "data")}
        return self._event(way, {(EVENTS, entry.id): {**self.document(EVENTS, entry.id), **taken}}, [entry], ALTERED)

    def _swap(self, way: str) -> Mutation:
        entry, other = self.pick(), self.pick()
        if entry.id == other.id:
            return self._swap(way)
        one, two = self.document(EVENTS, entry.id), self.document(EVENTS, other.id)
        names = ("_id", "mid", "k")
        change: Change = {
            (EVENTS, entry.id): {**two, **{name: one[name] for name in names}},
            (EVENTS, other.id): {**one, **{name: two[name] for name in names}},
        }
        return self._event(way, change, [entry, other], ALTERED)

    def _other_document(self, way: str) -> Mutation:
        entry, other = self.pick(), self.pick()
        if entry.id == other.id:
            return self._other_document(way)
        document = {**self.document(EVENTS, other.id), "_id": entry.id}
        return self._event(
            way,
            {(EVENTS, entry.id): document},
            [entry],
            (*MISSING, *ALTERED),
            may=[Where(("stray",), subject=entry.id)],
        )

    def _repeat(self, way: str) -> Mutation:
        entry = self.pick()
        document = self.document(EVENTS, entry.id)
        document["_id"] = f"{document['mid']}:{document['k'] + 40}"
        document["k"] += self.random.choice([0, 40])
        must = [Where(("stray",), entry.origin, entry.index, entry.index, document["_id"])]
        return self.mutation("event document", f"{way}: {entry.id}", {(EVENTS, document["_id"]): document}, must)

    def _extra_field(self, way: str) -> Mutation:
        entry = self.pick()
        return self._event(
            way, {(EVENTS, entry.id): {**self.document(EVENTS, entry.id), "note": "x"}}, [entry], ALTERED
        )

    def _unset_field(self, way: str) -> Mutation:
        entry = self.pick()
        document = self.document(EVENTS, entry.id)
        del document[self.random.choice(sorted(document.keys() - {"_id", "mid"}))]
        return self._event(way, {(EVENTS, entry.id): document}, [entry], ALTERED)

    def _truncate_leaf(self, way: str) -> Mutation:
        entry = self.pick()
        document = self.document(EVENTS, entry.id)
        document["leaf"] = document["leaf"][: self.random.randrange(len(entry.leaf))]
        return self._event(way, {(EVENTS, entry.id): document}, [entry], ALTERED)

    def _back_from_before_the_erasure(self, way: str) -> Mutation:
        before = self.extra["before_erasure"]
        entry = self.pick(lambda e: e.id in before and not self.has_payload(e))
        must = [Where(("unerased",), entry.origin, entry.index, entry.index, entry.id)]
        return self.mutation("event document", f"{way}: {entry.id}", {(EVENTS, entry.id): before[entry.id]}, must)

    # -- bundles and tiles ---------------------------------------------------------------------------------------------

    def blobs(self, collection: str) -> list[str]:
        return sorted(self.documents[collection])

    def bundles(self, count: int) -> Iterator[Mutation]:
        ways = [
            "flip",
            "length",
            "truncate",
            "delete",
            "drop",
            "repeat",
            "swap entries",
            "swap bundles",
            "old",
            "tail",
            "empty",
            "flip",
        ]
        for number in range(count):
            way = ways[number % len(ways)]
            identity = self.random.choice(self.blobs(BUNDLES))
            origin, _, index_text = identity.rpartition("|")
            index, size = int(index_text), self.logs[origin]["size"]
            width = min(WIDTH, size - index * WIDTH)
            document = self.document(BUNDLES, identity)
            entries = decode_bundle(document["data"])[:width]
            at = self.random.randrange(width)
            first, last = index * WIDTH + at, index * WIDTH + width - 1
            offset = sum(2 + len(entry) for entry in entries[:at])
            change: Change = {(BUNDLES, identity): document}
            may = [Where(("bundle",), origin, subject=str(index))]
            must: list[Where] = []
            match way:
                case "flip":
                    document["data"] = self.flip(document["data"], offset + 2 + self.random.randrange(len(entries[at])))
                    must = [Where(("bundle",), origin, first, first)]
                case "length":
                    document["data"] = self.flip(document["data"], offset + self.random.randrange(2))
                    must = [Where(("bundle",), origin, first)]
                case "truncate":
                    document["data"] = document["data"][: offset + self.random.randrange(2 + len(entries[at]))]
                    must = [Where(("bundle",), origin, first, last)]
                case "delete":
                    change = {(BUNDLES, identity): None}
                    must = [Where(("bundle",), origin, index * WIDTH, last)]
                case "empty":
                    document["data"] = b""
                    must = [Where(("bundle",), origin, index * WIDTH, last)]
                case "drop":
                    del entries[at]
                    document["data"] = encode_bundle(entries)
                    must = [Where(("bundle",), origin, first, last)]
                case "repeat":
                    raw = encode_bundle(entries)
                    piece = encode_bundle([entries[at]])
                    document["data"] = raw[:offset] + piece + raw[offset:]
                    must = (
                        [Where(("bundle",), origin, first + 1, last)]
                        if first < last
                        else [Where(("bundle",), origin, last, last)]
                    )
                    if first == last and width < WIDTH:
                        continue  # a draft
                case "swap entries":
                    at = min(at, width - 2)
                    entries[at], entries[at + 1] = entries[at + 1], entries[at]
                    document["data"] = encode_bundle(entries)
                    must = [Where(("bundle",), origin, index * WIDTH + at, index * WIDTH + at + 1)]
                case "swap bundles":
                    other = f"{origin}|{1 - index}"
                    if other not in self.documents[BUNDLES]:
                        continue
                    change = {
                        (BUNDLES, identity): {**document, "data": self.documents[BUNDLES][other]["data"]},
                        (BUNDLES, other): {**self.document(BUNDLES, other), "data": document["data"]},
                    }
                    must = [Where(("bundle",), origin, 0), Where(("bundle",), origin, WIDTH)]
                    may = [Where(("bundle",), origin)]
                case "old":
                    document["data"] = encode_bundle(entries[:at]) if at else b""
                    must = [Where(("bundle",), origin, first, last)]
                case "tail":
                    document["data"] += self.random.randbytes(self.random.choice([1, 2]) + 1)
                    must = [Where(("bundle",), origin, last, last)]
            yield self.mutation("bundle", f"{way}: {identity} {at}", change, must, may=may)

    def tiles(self, count: int) -> Iterator[Mutation]:
        ways = [
            "flip",
            "truncate",
            "delete",
            "drop",
            "swap hashes",
            "swap tiles",
            "old",
            "tail",
            "empty",
            "flip",
            "ragged",
        ]
        for number in range(count):
            way = ways[number % len(ways)]
            identity = self.random.choice(self.blobs(TILES))
            origin, level, index = identity.rsplit("|", 2)
            document = self.document(TILES, identity)
            width = min(WIDTH, (self.logs[origin]["size"] >> 8 * int(level)) - int(index) * WIDTH)
            data = document["data"][: 32 * width]
            at = self.random.randrange(width)
            change: Change = {(TILES, identity): document}
            must = [Where(("tile",), origin, subject=f"{level}/{index}")]
            match way:
                case "flip":
                    document["data"] = self.flip(data)
                case "truncate":
                    document["data"] = data[: 32 * at]
                case "ragged":
                    document["data"] = data[: self.random.randrange(len(data))]
                case "delete":
                    change = {(TILES, identity): None}
                case "empty":
                    document["data"] = b""
                case "drop":
                    document["data"] = data[: 32 * at] + data[32 * at + 32 :]
                case "swap hashes":
                    if width < 2:
                        continue
                    at = min(at, width - 2)
                    document["data"] = (
                        data[: 32 * at]
                        + data[32 * at + 32 : 32 * at + 64]
                        + data[32 * at : 32 * at + 32]
                        + data[32 * at + 64 :]
                    )
                case "swap tiles":
                    other = self.random.choice([name for name in self.blobs(TILES) if name != identity])
                    o_origin, o_level, o_index = other.rsplit("|", 2)
                    change = {
                        (TILES, identity): {**document, "data": self.documents[TILES][other]["data"]},
                        (TILES, other): {**self.document(TILES, other), "data": document["data"]},
                    }
                    must.append(Where(("tile",), o_origin, subject=f"{o_level}/{o_index}"))
                case "old":
                    document["data"] = data[: 32 * max(0, width - 1 - self.random.randrange(width))]
                case "tail":
                    document["data"] = data + self.random.randbytes(self.random.randrange(1, 32))
            yield self.mutation("tile", f"{way}: {identity}", change, must)

    def consistent(self, count: int) -> Iterator[Mutation]:
        """An entry, its tile and (sometimes) the tile above rewritten so that they agree with each other, not with the signature."""
        for number in range(count):
            entry = self.pick(lambda e: self.logs[e.origin]["size"] > WIDTH)
            origin, index = entry.origin, entry.index // WIDTH
            bundle, tile = self.document(BUNDLES, f"{origin}|{index}"), self.document(TILES, f"{origin}|0|{index}")
            entries = decode_bundle(bundle["data"])
            entries[entry.index % WIDTH] = entry.leaf.replace(b'"v":1', b'"v":2')
            bundle["data"], tile["data"] = encode_bundle(entries), tile_hashes(entries)
            change: Change = {(BUNDLES, bundle["_id"]): bundle, (TILES, tile["_id"]): tile}
            must = [Where(("tile",), origin, subject=f"0/{index}"), Where(("bundle",), origin, subject=str(index))]
            may: list[Where] = []
            if number % 2:
                log, every = self._rewritten(entry)
                above = self.document(TILES, f"{origin}|1|0")
                above["data"] = every[1, 0]
                change |= {(TILES, above["_id"]): above, (LOGS, origin): log}
                must = [Where(("root",), origin, 0, log["size"] - 1)]
                may = [Where(("leaf", "event_altered", "chain", "tile", "bundle", "log", "fork"), origin)]
                may += [Where(("fork",)), Where(("leaf",))]
            yield self.mutation("consistent rewriting", f"{entry.id} {number % 2}", change, must, may=may)

    def _rewritten(
        self, entry: Entry, leaf: bytes | None = None
    ) -> tuple[dict[str, Any], dict[tuple[int, int], bytes]]:
        """The log's document with size, root and frontier over a changed entry, its checkpoint as it was; and all tiles."""
        leaves = [each.leaf for each in self.entries[entry.origin]]
        leaves[entry.index] = leaf or entry.leaf.replace(b'"v":1', b'"v":2')
        growth = grow(0, {}, leaves)
        log = self.document(LOGS, entry.origin)
        log |= {"root": growth.root, "frontier": list(growth.frontier.hashes)}
        return log, growth.tiles

    # -- logs' documents -----------------------------------------------------------------------------------------------

    def log_fields(self, count: int) -> Iterator[Mutation]:
        ways = [
            "size",
            "root",
            "short root",
            "frontier",
            "short frontier",
            "long frontier",
            "vkey",
            "dc",
            "own",
            "state",
            "previous",
            "next",
            "opened_at",
            "seal",
        ]
        own_only = ["marks", "term"]
        for number in range(count):
            origin = self.random.choice(sorted(self.logs))
            log = self.document(LOGS, origin)
            pool = ways + (own_only if log["own"] else [])
            way = pool[number % len(pool)]
            subject, may = way, []
            match way:
                case "size":
                    log["size"] = max(0, log["size"] + self.random.choice([-1, 1, -100, 256, 1 << 20, -(1 << 7)]))
                case "root":
                    log["root"] = self.flip(log["root"])
                case "short root":
                    log["root"], subject = log["root"][:31], "root"
                case "frontier":
                    log["frontier"] = self.flip_any(log["frontier"])
                case "short frontier":
                    log["frontier"], subject = log["frontier"][:-1], "frontier"
                case "long frontier":
                    log["frontier"], subject = [*log["frontier"], bytes(32)], "frontier"
                case "vkey":
                    log["vkey"] = self.flip_text(log["vkey"])
                case "dc":
                    log["dc"] = self.random.choice(["nyc", "fra" if log["dc"] == "iad" else "iad"])
                    may = [Where(("unsequenced", "sequence", "leaf", "run", "event_missing", "log", "event_altered"))]
                case "own":
                    log["own"] = not log["own"]
                    may = [Where(("log", "unsequenced", "behind"))]
                case "state":
                    log["state"] = self.flip_text(log["state"])
                case "previous":
                    log["previous"] = self.flip_text(log["previous"])
                    may = [Where(("log",), subject="next")]
                case "next":
                    log["next"] = self.flip_text(log["next"])
                    may = [Where(("log",), subject="state")]
                    if log["state"] == "open":
                        subject = "state"
                    if not log["own"] and log["state"] == "open":
                        continue  # a copy whose log has ended, and does not know it yet
                case "opened_at":
                    if log["next"]:
                        log["opened_at"] += 1 << 45
                        may = [Where(("log",), subject="opened_at")]
                        must_origin = log["next"]
                    elif log["previous"]:
                        log["opened_at"] -= 1 << 42
                        must_origin = origin
                    else:
                        continue
                    may.append(Where(("log", "sequence", "unsequenced", "behind")))
                    yield self.mutation(
                        "log",
                        f"{way}: {origin}",
                        {(LOGS, origin): log},
                        [Where(("log",), must_origin, subject="opened_at")],
                        may=may,
                    )
                    continue
                case "seal":
                    log["seal"] = self.flip_text(log["seal"])
                case "marks":
                    at = self.random.randrange(len(log["marks"]))
                    node, epoch, q = log["marks"][at]
                    log["marks"][at][2] = self.random.choice([q + 1, q - 1, q + 5000, 0, q ^ (1 << 20)])
                    subject = f"marks {node}:{epoch}"
                case "term":
                    log["term"] += 1 << self.random.randrange(3, 40)
            yield self.mutation(
                "log", f"{way}: {origin}", {(LOGS, origin): log}, [Where(("log",), origin, subject=subject)], may=may
            )

    def checkpoints(self, count: int) -> Iterator[Mutation]:
        ways = [
            "text",
            "signature",
            "truncate",
            "empty",
            "other log",
            "size line",
            "old",
            "no signature",
            "root line",
            "not ours",
        ]
        for number in range(count):
            way = ways[number % len(ways)]
            origin = self.random.choice(sorted(self.logs))
            log = self.document(LOGS, origin)
            text = log["checkpoint"]
            head, _, tail = text.partition("\n\n")
            match way:
                case "text":
                    log["checkpoint"] = f"{self.flip_text(head)}\n\n{tail}"
                case "signature":
                    at = self.random.randrange(len(tail) - 40, len(tail) - 6)
                    log["checkpoint"] = head + "\n\n" + tail[:at] + ("B" if tail[at] != "B" else "C") + tail[at + 1 :]
                case "truncate":
                    log["checkpoint"] = text[: self.random.randrange(len(text))]
                case "empty":
                    log["checkpoint"] = ""
                case "other log":
                    log["checkpoint"] = self.logs[self.random.choice([each for each in self.logs if each != origin])][
                        "checkpoint"
                    ]
                case "size line":
                    lines = head.split("\n")
                    lines[1] = str(int(lines[1]) + self.random.choice([-1, 1, 256]))
                    log["checkpoint"] = "\n".join(lines) + "\n\n" + tail
                case "root line":
                    lines = head.split("\n")
                    lines[2] = base64.b64encode(self.random.randbytes(32)).decode()
                    log["checkpoint"] = "\n".join(lines) + "\n\n" + tail
                case "no signature":
                    log["checkpoint"] = head + "\n\n"
                case "not ours":
                    if log["own"] or log["state"] != "open":
                        continue
                    log["checkpoint"] = head + "\n\n" + tail.split("\n")[0] + "\n"
                case "old":
                    older = [
                        s[LOGS][origin]["checkpoint"] for s in self.extra["snapshots"] if origin in s.get(LOGS, {})
                    ]
                    older = [note for note in older if note and note != text]
                    if not older:
                        continue
                    log["checkpoint"] = self.random.choice(older)
            if log["checkpoint"] == text:
                continue
            yield self.mutation(
                "checkpoint", f"{way}: {origin}", {(LOGS, origin): log}, [Where(("checkpoint",), origin)]
            )

    def rollbacks(self, count: int) -> Iterator[Mutation]:
        """The whole document of an own log as it was."""
        olds = [
            (origin, snapshot[LOGS][origin])
            for snapshot in self.extra["snapshots"]
            for origin in snapshot.get(LOGS, {})
            if self.logs[origin]["own"] and 0 < snapshot[LOGS][origin]["size"] < self.logs[origin]["size"]
        ]
        for number in range(count if olds else 0):
            origin, old = olds[number % len(olds)]
            may = [Where(("log", "fork", "unsequenced", "sequence", "chain", "run"))]
            yield self.mutation(
                "rollback",
                f"{origin} to {old['size']}",
                {(LOGS, origin): copy.deepcopy(old)},
                [Where(("behind",), origin)],
                may=may,
            )

    def lost_logs(self, count: int) -> Iterator[Mutation]:
        for number in range(count):
            origin = sorted(self.logs)[number % len(self.logs)]
            log = self.document(LOGS, origin)
            del log[self.random.choice(["root", "size", "marks", "frontier", "checkpoint"])]
            after: dict[str, Any] | None = self.random.choice([None, log])
            may = [Where(("log", "unsequenced", "sequence", "chain"))]
            must = [Where(("log",), origin, subject="document")]
            yield self.mutation("lost log", origin, {(LOGS, origin): after}, must, may=may, between=True)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def runs(self, count: int) -> Iterator[Mutation]:
        ways = ["q", "count", "index", "n", "e", "dc", "log", "delete", "rename", "unset", "false"]
        for number in range(count):
            way = ways[number % len(ways)]
            identity = self.random.choice(sorted(self.documents[RUNS]))
            run = self.document(RUNS, identity)
            origin = run["log"]
            change: Change = {(RUNS, identity): run}
            span = range(run["index"], run["index"] + run["count"])
            match way:
                case "q" | "index":
                    run[way] = max(0, run[way] + self.random.choice([-1, 1, 5, -3, 300]))
                    if run[way] == self.documents[RUNS][identity][way]:
                        run[way] += 1
                case "count":
                    run["count"] = self.random.choice([0, -1, run["count"] + 1, run["count"] + 700, run["count"] - 1])
                case "e":
                    run["e"] += 1 + self.random.randrange(5)
                case "n" | "dc" | "log":
                    run[way] = self.flip_text(run[way])
                case "delete":
                    change = {(RUNS, identity): None}
                case "rename":
                    run["_id"] = identity[:-1] + chr(ord(identity[-1]) ^ 1)
                    if run["_id"] in self.documents[RUNS]:
                        continue
                    change = {(RUNS, identity): None, (RUNS, run["_id"]): run}
                case "unset":
                    del run[self.random.choice(["q", "count", "index", "n", "e", "dc", "log"])]
                case "false":
                    run["q"] += 50_000 + self.random.randrange(1000)
                    run["_id"] = f"{origin}|{run['n']}:{run['e']}|{run['q']:012d}"
                    if run["n"] == "opened" or [run["n"], run["e"]] not in [
                        mark[:2] for mark in self.logs[origin]["marks"]
                    ]:
                        continue  # of a term that is over, nobody would ask for it
                    change = {(RUNS, run["_id"]): run}
            subject = next(reversed(change))[1]
            must = [Where(("run",), origin, subject=subject, within=span)]
            may = [Where(("run",), origin), Where(("sequence",), first=-1)]
            yield self.mutation("run", f"{way}: {identity}", change, must, may=may)

    def cosignatures(self, count: int) -> Iterator[Mutation]:
        ways = [
            "size",
            "text",
            "log signature",
            "cosignature",
            "role",
            "cosigner",
            "origin",
            "truncate",
            "rename",
            "unset",
        ]
        for number in range(count):
            way = ways[number % len(ways)]
            identity = self.random.choice(sorted(self.documents[COSIGNATURES]))
            item = self.document(COSIGNATURES, identity)
            head, _, tail = item["note"].partition("\n\n")
            lines = tail.split("\n")
            change: Change = {(COSIGNATURES, identity): item}
            subject = identity
            match way:
                case "size":
                    item["size"] = item["size"] ^ (1 << self.random.randrange(20))
                case "text":
                    item["note"] = f"{self.flip_text(head)}\n\n{tail}"
                case "log signature" | "cosignature":
                    at = 0 if way == "log signature" else 1
                    place = self.random.randrange(len(lines[at]) - 30, len(lines[at]) - 4)
                    lines[at] = lines[at][:place] + ("B" if lines[at][place] != "B" else "C") + lines[at][place + 1 :]
                    item["note"] = head + "\n\n" + "\n".join(lines)
                case "role":
                    item["role"] = "mirror" if item["role"] == "witness" else "witness"
                case "cosigner" | "origin":
                    item[way] = self.flip_text(item[way])
                case "truncate":
                    item["note"] = item["note"][: self.random.randrange(len(item["note"]))]
                case "rename":
                    item["_id"] = subject = identity + "x"
                    change = {(COSIGNATURES, identity): None, (COSIGNATURES, item["_id"]): item}
                case "unset":
                    del item[self.random.choice(["size", "note", "role", "cosigner", "origin"])]
            may = [Where(("log",), subject="document")] if way == "origin" else []
            yield self.mutation(
                "cosignature",
                f"{way}: {identity}",
                change,
                [Where(("cosignature",), subject=subject)],
                may=may,
                between=True,
            )

    def witnessed(self, count: int) -> Iterator[Mutation]:
        ways = ["size", "root", "note", "old", "empty"]
        for number in range(count):
            way = ways[number % len(ways)]
            origin = self.random.choice(sorted(self.documents[WITNESSED]))
            item = self.document(WITNESSED, origin)
            match way:
                case "size":
                    item["size"] = self.random.choice([0, item["size"] - 1, item["size"] + 1, item["size"] ^ (1 << 16)])
                case "root":
                    item["root"] = self.flip(item["root"])
                case "note":
                    head, _, tail = item["note"].partition("\n\n")
                    item["note"] = f"{self.flip_text(head)}\n\n{tail}"
                case "old":
                    item["size"] //= 2
                case "empty":
                    item["note"] = ""
            yield self.mutation(
                "witnessed",
                f"{way}: {origin}",
                {(WITNESSED, origin): item},
                [Where(("cosignature",), origin, subject="witnessed")],
            )

    def writers(self, count: int) -> Iterator[Mutation]:
        edge = [
            (collection, identity)
            for collection in (BUNDLES, TILES)
            for identity in self.blobs(collection)
            if len(self.documents[collection][identity]["data"]) < (8192 if collection == TILES else 10**9)
            and (
                collection == TILES
                or self.logs[identity.rpartition("|")[0]]["size"] // WIDTH == int(identity.rpartition("|")[2])
            )
        ]
        for number in range(count):
            collection, identity = edge[number % len(edge)]
            document = self.document(collection, identity)
            origin = identity.split("|")[0]
            document["ver"] |= 1 << self.random.randrange(40, 62)
            subject = (
                f"bundle {identity.rpartition('|')[2]}"
                if collection == BUNDLES
                else "tile " + "/".join(identity.rsplit("|", 2)[1:])
            )
            yield self.mutation(
                "writer", identity, {(collection, identity): document}, [Where(("writer",), origin, subject=subject)]
            )

    # -- forks ---------------------------------------------------------------------------------------------------------

    def forks(self, count: int, seed: bytes) -> Iterator[Mutation]:
        """Signed with the log's own key: a second root of the same size, and rewritten histories."""
        own = [origin for origin, log in self.logs.items() if log["own"]]
        for number in range(count):
            origin = sorted(own)[number % len(own)]
            sealed = self.logs[origin]["state"] == "sealed"
            signer = Signer.log(origin, derive(seed, "log"))
            entry = self.random.choice(self.entries[origin][1:])
            log = self.document(LOGS, origin)
            outcome = REFUSED if sealed else SEALED
            may = [Where(("event_altered", "chain", "fork", "leaf", "log"))]
            if number % 4 < 2:
                other = self.random.randbytes(32)
                log["checkpoint"] = self._signed(signer, origin, log["size"], other)
                change: Change = {(LOGS, origin): log}
                must = [Where(("fork",), origin, subject=f"{log['size']} {base64.b64encode(other).decode()}")]
            else:
                at = int(entry.leaf.partition(b'"at":')[2].partition(b",")[0])
                leaf = entry.leaf.replace(f'"at":{at}'.encode(), f'"at":{at + 1}'.encode())
                change, root = self._history(entry, leaf, signer)
                must = [Where(("fork",), origin, subject=f"{log['size']} {base64.b64encode(log['root']).decode()}")]
                must += [Where(ALTERED, origin, entry.index, entry.index)]
                del root
            yield self.mutation("fork", f"{number % 4}: {origin} {entry.index}", change, must, may=may, outcome=outcome)

    @staticmethod
    def _signed(signer: Signer, origin: str, size: int, root: bytes) -> str:
        text = Checkpoint(origin, size, root).text
        return str(Note(text, (signer.sign(text),)))

    def _history(self, entry: Entry, leaf: bytes, signer: Signer) -> tuple[Change, bytes]:
        origin = entry.origin
        log, tiles = self._rewritten(entry, leaf)
        log["checkpoint"] = self._signed(signer, origin, log["size"], log["root"])
        index = entry.index // WIDTH
        bundle = self.document(BUNDLES, f"{origin}|{index}")
        entries = decode_bundle(bundle["data"])
        entries[entry.index % WIDTH] = leaf
        bundle["data"] = encode_bundle(entries)
        change: Change = {(LOGS, origin): log, (BUNDLES, bundle["_id"]): bundle}
        for (level, number), data in tiles.items():
            tile = self.document(TILES, f"{origin}|{level}|{number}")
            if tile["data"] != data:
                change[TILES, tile["_id"]] = {**tile, "data": data}
        return change, log["root"]


def every(own: Generator, copied: Generator, seed: bytes) -> list[Mutation]:
    """The corpus."""
    found: list[Mutation] = []
    for generator, share in ((own, 2), (copied, 1)):
        found += generator.event_fields(96 * share)
        found += generator.event_whole(75 * share)
        found += generator.bundles(60 * share)
        found += generator.tiles(55 * share)
        found += generator.consistent(6)
        found += generator.log_fields(32 * share)
        found += generator.checkpoints(18 * share)
        found += generator.rollbacks(6)
        found += generator.lost_logs(6)
        found += generator.runs(33 * share)
        found += generator.cosignatures(20)
        found += generator.witnessed(10)
        found += generator.writers(8)
    found += own.forks(8, seed)
    return found
