"""Counts of messages by time, tenant, route and class, in two resolutions: minutes for five weeks, hours for 400 days.

`{_id: "<dc>/<node>:<epoch>:<step>:<at>:<tenant>", dc, step (60 or 3600), at (s since the epoch), t, changed (ms), rows: [{route, class, currency, <counts>}],
expires}`; under t "*" stands the sum over all tenants, so that whoever looks at all of them need not read each. A term writes only its own documents, and each whole: to write one again changes nothing, and what different terms counted adds up. So a node may
die between two writes and loses the last seconds of its counts, nothing else. Those of other datacenters are copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from pymongo import ASCENDING, IndexModel, ReplaceOne

from controlplane.domain.statistics import FIELDS
from controlplane.store.client import Database, Document, border

__all__ = ["HOUR", "MINUTE", "STATISTICS", "Bunch", "Series", "Statistics"]

STATISTICS = "statistics"
MINUTE, HOUR = 60, 3_600
_KEPT = {MINUTE: timedelta(days=35), HOUR: timedelta(days=400)}
_BY = {"route": "$rows.route", "class": "$rows.class", "tenant": "$t", "datacenter": "$dc"}
_BATCH = 500
_ALL = "*"
"""No tenant may be called so."""

_LATEST = 2**33
"""s since the epoch: in the 23rd century."""
_Text = Annotated[str, msgspec.Meta(max_length=1_024)]
_CopiedRow = msgspec.defstruct(
    "_CopiedRow",
    [
        ("route", _Text),
        ("cls", _Text, msgspec.field(name="class")),
        ("currency", _Text),
        *((name, Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)], 0) for name in FIELDS),
    ],
    omit_defaults=True,
)


class _Copied(msgspec.Struct, rename={"id": "_id"}):
    """A document as a peer may give it; what else it says is left out."""

    id: _Text
    dc: _Text
    step: Literal[60, 3_600]
    at: Annotated[int, msgspec.Meta(ge=0, le=_LATEST)]
    t: _Text
    changed: Annotated[int, msgspec.Meta(ge=0, le=_LATEST * 1_000)]
    rows: list[_CopiedRow]  # type: ignore[valid-type]  # made of FIELDS


class Bunch(NamedTuple):
    """One tenant's rows of one minute or hour, as one term counted them."""

    step: int
    at: int
    """Its beginning, s since the epoch."""
    tenant: str
    rows: Mapping[tuple[str, str, str], Sequence[int]]
    """(route, class, currency) → a row of domain.statistics."""


class Series(NamedTuple):
    """Sums for one value of `by` and one point in time."""

    key: str
    at: int
    counts: dict[str, int]
    prices: dict[str, int]


class Statistics:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, *, datacenter: str) -> None:
        self._bunches = database[STATISTICS]
        self._dc = datacenter

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._bunches.create_indexes(
                [
                    IndexModel([("step", ASCENDING), ("at", ASCENDING), ("t", ASCENDING)], name="time"),
                    IndexModel([("t", ASCENDING), ("step", ASCENDING), ("at", ASCENDING)], name="tenant"),
                    IndexModel([("dc", ASCENDING), ("changed", ASCENDING)], name="changed"),
                    IndexModel([("expires", ASCENDING)], name="ttl", expireAfterSeconds=0),
                ]
            )

    async def save(self, term: str, bunches: Sequence[Bunch], now_ms: int) -> None:
        """Write each whole, and their sum. `term`: `<node>:<epoch>`; `bunches` are all that the term has of their minutes and hours."""
        whole = [*bunches, *_of_all(bunches)]
        documents = [self._document(term, bunch, now_ms + n // _BATCH) for n, bunch in enumerate(whole)]
        await self._replace(documents)

    def _document(self, term: str, bunch: Bunch, now_ms: int) -> Document:
        rows = [
            {"route": route, "class": cls, "currency": currency}
            | {name: value for name, value in zip(FIELDS, row, strict=True) if value}
            for (route, cls, currency), row in bunch.rows.items()
        ]
        return {
            "_id": f"{self._dc}/{term}:{bunch.step}:{bunch.at}:{bunch.tenant}",
            "dc": self._dc,
            "step": bunch.step,
            "at": bunch.at,
            "t": bunch.tenant,
            "changed": now_ms,
            "rows": rows,
            "expires": datetime.fromtimestamp(bunch.at, UTC) + _KEPT[bunch.step],
        }

    async def _replace(self, documents: Sequence[Document]) -> None:
        for first in range(0, len(documents), _BATCH):
            writes = [
                ReplaceOne({"_id": document["_id"]}, document, upsert=True)
                for document in documents[first : first + _BATCH]
            ]
            with border():
                await self._bunches.bulk_write(writes, ordered=False)

    async def series(
        self, *, since: int, until: int, step: int, by: str, tenant: str | None, where: Mapping[str, str] | None = None
    ) -> list[Series]:
        """Sums from `since` to before `until` (s) in steps (s) by route, class, tenant or datacenter; of one tenant or of all.

        `where` narrows to one value of those. Minutes are read where the step or an end asks for them, else hours.
        """
        fine = bool(step % HOUR or since % HOUR or until % HOUR)
        match: Document = {"step": MINUTE if fine else HOUR, "at": {"$gte": since, "$lt": until}}
        match["t"] = tenant if tenant is not None else {"$ne": _ALL} if by == "tenant" else _ALL
        narrowed = {_BY[name].removeprefix("$"): value for name, value in (where or {}).items()}
        match |= {name: value for name, value in narrowed.items() if "." not in name}
        inside = {name: value for name, value in narrowed.items() if "." in name}
        at = {"$subtract": ["$at", {"$mod": [{"$subtract": ["$at", since]}, step]}]}
        pipeline: list[Document] = [
            {"$match": match},
            {"$unwind": "$rows"},
            *([{"$match": inside}] if inside else []),
            {
                "$group": {
                    "_id": {"at": at, "key": _BY[by], "currency": "$rows.currency"},
                    **{name: {"$sum": f"$rows.{name}"} for name in FIELDS},
                }
            },
        ]
        with border():
            cursor = await self._bunches.aggregate(pipeline, maxTimeMS=20_000)
            documents = await cursor.to_list()
        return _series(documents)

    # -- copies of other datacenters' ----------------------------------------------------------------------------------

    async def changed_since(self, changed: int, limit: int) -> list[Document]:
        """This datacenter's documents written at or after `changed` (ms), oldest first, for a peer. Few share one `changed` (`save`), so that a limit never stands still."""
        with border():
            found = (
                await self._bunches.find({"dc": self._dc, "changed": {"$gte": changed}}, {"expires": 0})
                .sort("changed", ASCENDING)
                .limit(limit)
                .to_list()
            )
        return [_plain(document) for document in found]

    async def newest_of(self, dc: str) -> int:
        """Up to where a datacenter's documents have been copied, ms; 0 for none."""
        with border():
            found = await self._bunches.find_one({"dc": dc}, {"changed": 1}, sort=[("changed", -1)])
        return int(found["changed"]) if found else 0

    async def copy(self, dc: str, documents: Iterable[Mapping[str, Any]]) -> None:
        """Keep what a peer says of itself, and nothing that it says of others. Raises ValueError for what is no such document."""
        await self._replace([_checked(dc, document) for document in documents])


def _checked(dc: str, document: Mapping[str, Any]) -> Document:
    try:
        found = msgspec.convert(document, _Copied)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a document of statistics: {error}") from None
    if found.dc != dc or not found.id.startswith(f"{dc}/"):
        raise ValueError(f"statistics of {found.dc!r} from {dc}")
    plain: Document = msgspec.to_builtins(found)
    return plain | {"expires": datetime.fromtimestamp(found.at, UTC) + _KEPT[found.step]}


def _of_all(bunches: Iterable[Bunch]) -> list[Bunch]:
    """The sum over tenants of each minute and hour."""
    sums: dict[tuple[int, int], dict[tuple[str, str, str], list[int]]] = {}
    for bunch in bunches:
        total = sums.setdefault((bunch.step, bunch.at), {})
        for key, row in bunch.rows.items():
            total[key] = [a + b for a, b in zip(total[key], row, strict=True)] if key in total else list(row)
    return [Bunch(step, at, _ALL, rows) for (step, at), rows in sums.items()]


def _plain(value: Any) -> Any:
    """Without the driver's own kind of integers, which other codecs do not know."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, int) else value


def _series(documents: Iterable[Document]) -> list[Series]:
    found: dict[tuple[str, int], Series] = {}
    for document in documents:
        key, at, currency = (document["_id"].get(name) for name in ("key", "at", "currency"))
        one = found.setdefault((key, at), Series(key, at, dict.fromkeys(FIELDS, 0), {}))
        for name in FIELDS:
            one.counts[name] += document[name]
        if document["price"]:
            one.prices[currency] = one.prices.get(currency, 0) + document["price"]
    return [found[identity] for identity in sorted(found, key=lambda pair: (pair[0] or "", pair[1]))]
