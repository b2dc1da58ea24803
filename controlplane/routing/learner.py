"""All that one node has learned about routes, and how it decides. No I/O and no clock: time comes in, in ms since the epoch."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import deque
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from controlplane.domain.numbers import numbering
from controlplane.routing.arms import ArmName, Arms
from controlplane.routing.breaker import Breakers
from controlplane.routing.calibration import Calibration
from controlplane.routing.choose import pick
from controlplane.routing.decision import EXPLORED, HEADER, SHADOW, VERSION, Decision
from controlplane.routing.features import Contents, normalise
from controlplane.routing.model import Model
from controlplane.routing.pool import DELIVERED, LATE, PENDING
from controlplane.routing.router import Candidate, RouteRequest
from controlplane.routing.scores import Asked, Row, Scores
from controlplane.routing.statistics import GOOD, TRIES, Statistics
from controlplane.routing.statistics import LATE as LATE_COLUMN
from controlplane.routing.trust import Trust
from controlplane.routing.tuning import Terms, Tuning
from controlplane.routing.underway import Break, UnderWay, place

__all__ = ["Arm", "Break", "Learner", "Terms", "Tuning"]

_SINGLE = struct.Struct("<f")
_STATE = struct.Struct("<4sIIIII")
_MAGIC = b"HRS2"
_ACCOUNTS = 20_000
_WAITING = 20_000
_SLOW_EVERY_MS = 5_000
_PASSING = 5_000
_PASSING_MS = 30_000


class Arm(NamedTuple):
    """What feedback is about, where the message itself is no longer remembered."""

    route: str
    connector: str
    to: str
    """E.164 with +."""
    cls: str
    delivered: bool
    """Whether its receipt says so."""


def _key(request: RouteRequest, candidates: tuple[Candidate, ...], terms: Terms | None) -> Hashable:
    """Requests that have the same one are scored alike, until scores are computed anew. A row keeps its candidates, so that their identity stays taken."""
    return (
        id(candidates),
        hash(normalise(request.body)),
        numbering(request.to),
        request.tenant,
        request.cls,
        request.encoding,
        request.parts,
        request.sender_type,
        request.origin,
        terms,
    )


class Learner:
    """Scores and chooses routes; learns from submits, receipts and feedback. Not for several threads at once."""

    def __init__(self, tuning: Tuning | None = None, *, node: str) -> None:
        self.tuning = tuning = tuning or Tuning()
        self.node = node
        self._statistics = Statistics(tuning)
        self._breakers = Breakers(tuning)
        self._arms = Arms(tuning, self._statistics, self._breakers)
        self._contents = Contents()
        self._model = Model(tuning)
        self._calibration = Calibration(tuning)
        self._trust = Trust(tuning)
        self._scores = Scores(tuning, self._arms, self._contents, self._model, self._calibration, self._trust)
        self._under_way = UnderWay(
            tuning, self._statistics, self._breakers, self._arms, self._model, self._calibration, self._trust
        )
        self._waiting: dict[str, tuple[bool, str]] = {}
        """Feedback that came before the receipt: mid → converted, tenant."""
        self._passing: deque[tuple[str, bool, int]] = deque(maxlen=_PASSING)
        """Receipts of messages that another node submitted: mid, delivered, ms."""
        self._accounts: dict[tuple[str, str], float] = {}
        """Surplus over the conservative constraint by tenant and class."""
        self._next_tick = 0
        self._next_slow = 0
        self._epoch = 0
        self._version = 0

    # Deciding.

    def decide(
        self,
        requests: Sequence[RouteRequest],
        candidates: Sequence[Sequence[Candidate]],
        now_ms: int,
        terms: Sequence[Terms | None] | Terms | None = None,
        *,
        shadow: bool = False,
        dry: bool = False,
    ) -> list[Decision]:
        """One decision per request. `candidates` are each request's in the static router's order, at least one; as tuples they are recognised
        again. `terms`: one for all, one each, or the class's own. `shadow` is noted in the records: the static order is what will be used.
        `dry`: nothing will be sent, so nothing is booked on the tenant's account.
        """
        each: Sequence[Terms | None] = [terms] * len(requests) if terms is None or isinstance(terms, Terms) else terms
        if now_ms >= self._next_tick:
            self.tick(now_ms)
        self._make_room(len(requests))
        plans = [plan if isinstance(plan, tuple) else tuple(plan) for plan in candidates]
        asked = [self._asked(*of, now_ms) for of in zip(requests, plans, each, strict=True)]
        flags = SHADOW if shadow else 0
        return [
            self._choose(request, row, now_ms, flags, dry=dry)
            for request, row in zip(requests, self._scores.rows(asked, now_ms), strict=True)
        ]

    def decide_one(
        self,
        request: RouteRequest,
        candidates: tuple[Candidate, ...],
        now_ms: int,
        terms: Terms | None = None,
        *,
        shadow: bool = False,
        dry: bool = False,
    ) -> Decision:
        """`decide` for one request, which is how the path of a message asks."""
        if now_ms >= self._next_tick:
            self.tick(now_ms)
        key = _key(request, candidates, terms)
        row = self._scores.known.get(key)
        if row is None:
            self._make_room(1)
            [row] = self._scores.rows([self._asked(request, candidates, terms, now_ms)], now_ms)
            self._scores.known[key] = row
        return self._choose(request, row, now_ms, SHADOW if shadow else 0, dry=dry)

    def _asked(
        self, request: RouteRequest, candidates: tuple[Candidate, ...], terms: Terms | None, now_ms: int
    ) -> Asked:
        content = self._contents.of(request, now_ms)
        tenant = request.tenant
        return Asked(
            self._scores.line(candidates),
            content,
            terms or self.tuning.classes[content.cls].terms,
            tenant if self._trust.of(tenant) else "",
        )

    def _choose(self, request: RouteRequest, row: Row, now_ms: int, flags: int, *, dry: bool) -> Decision:
        account = request.tenant, request.cls
        surplus = self._accounts.get(account, 0.0)
        seed = int.from_bytes(
            hashlib.blake2b(f"{request.mid}\t{len(request.tried)}".encode(), digest_size=8).digest(), "little"
        )
        chosen, explored = row.best, surplus >= row.need
        if explored:
            flags |= EXPLORED
            chosen = pick(row.propensity, chosen, seed)
        header = HEADER.pack(
            VERSION,
            len(row.line.names),
            row.flags | flags,
            chosen,
            self._version,
            row.digest,
            seed,
            now_ms,
            *row.rules,
            surplus,
        )
        if not dry:
            self._book(account, surplus + row.utility[chosen] - row.floor, row.most)
        return Decision(header, row.choose(chosen, explored=explored))

    def _book(self, account: tuple[str, str], saved: float, most: float) -> None:
        if account not in self._accounts and len(self._accounts) >= _ACCOUNTS:
            self._accounts.clear()  # forgets surpluses, never debts: there are none
        self._accounts[account] = max(0.0, _SINGLE.unpack(_SINGLE.pack(min(saved, most)))[0])

    # Learning.

    def submitted(self, mid: str, route: str, request: RouteRequest, now_ms: int, *, connector: str = "") -> None:
        """The carrier took the message (submit_sm_resp ESME_ROK) at `now_ms`. `connector`: the route's, where no decision named it before."""
        arm = self._arm_of(route, request.to, request.cls, connector)
        self._make_room(1)
        content = self._contents.of(request, now_ms)
        self._under_way.add(request.cls, mid, arm, self._contents.hashes[content.row], now_ms)
        self._answered(arm, now_ms, accepted=True)

    def refused(
        self, route: str, request: RouteRequest, now_ms: int, *, permanent: bool = False, connector: str = ""
    ) -> None:
        """A submit error, or no answer. `permanent`: it is this message that cannot be sent, so the route's breaker is left alone."""
        arm = self._arm_of(route, request.to, request.cls, connector)
        self._under_way.refused(arm, now_ms, 1.0 if permanent else self.tuning.refusal)
        if not permanent:
            self._answered(arm, now_ms, accepted=False)

    def remembers(self, mid: str) -> bool:
        """Whether this message's receipt would still teach something here."""
        return self._under_way.find(mid) is not None

    def receipt(self, mid: str, delivered: bool, now_ms: int) -> None:
        """The message's final receipt; of a second one nothing is learned. That of another node's message is passed on to it with `export`."""
        taught = self._under_way.receipt(mid, delivered, now_ms)
        if taught is None:
            self._passing.append((mid, delivered, now_ms))
        elif taught:
            self._hear_out(mid, now_ms)

    def feedback(self, about: str | Arm, converted: bool, tenant: str, now_ms: int) -> None:
        """What the tenant says came of a message of its own: by its mid where that may still be remembered, else by its arm."""
        if isinstance(about, Arm):
            arm, delivered = self._arm_of(about.route, about.to, about.cls, about.connector), about.delivered
        else:
            found = self._under_way.find(about)
            if found is None:
                return
            arm, _, _, state = found
            if state == PENDING:
                if len(self._waiting) >= _WAITING:
                    del self._waiting[next(iter(self._waiting))]
                self._waiting[about] = converted, tenant
                return
            if state == LATE:
                return  # probably delivered late: it says nothing about receipts in time
            delivered = state == DELIVERED
        name = self._arms.names[arm]
        self._trust.tell(
            (tenant, name.route, name.country, name.cls),
            f"{name.route}\t{name.country}\t{name.network}",
            now_ms,
            delivered=delivered,
            converted=converted,
        )

    def tick(self, now_ms: int) -> None:
        """Labels that are due, breakers, forgetting; once a second is enough, and `decide` does it where nobody else did."""
        self._next_tick = now_ms + self.tuning.refresh_ms
        for mid in self._under_way.tick(now_ms):
            self._hear_out(mid, now_ms)
        self._breakers.tick(now_ms)
        if now_ms >= self._next_slow:
            self._next_slow = now_ms + _SLOW_EVERY_MS
            self._model.refresh(now_ms)
            self._calibration.refresh(now_ms)
            self._trust.refresh(now_ms)
        self._expire_scores(now_ms)

    # Sharing.

    def export(self, now_ms: int) -> bytes:
        """Sufficient statistics of what this node itself has seen, and receipts of the last seconds that belong to other nodes' messages."""
        self._under_way.count()
        passing = "\n".join(
            f"{mid}\t{delivered:d}\t{at}" for mid, delivered, at in self._passing if at > now_ms - _PASSING_MS
        )
        parts = (
            self._statistics.dump(now_ms),
            self._model.dump(now_ms),
            self._calibration.dump(now_ms),
            self._trust.dump(now_ms),
            zlib.compress(passing.encode(), 1),
        )
        return _STATE.pack(_MAGIC, *map(len, parts)) + b"".join(parts)

    def merge(self, node: str, state: bytes, now_ms: int) -> None:
        """Another node's `export`; the newest per node counts, so repeats and any order do no harm. Raises ValueError for what is none."""
        if node == self.node:
            return
        statistics, model, calibration, trust, passing = _split(state)
        self._statistics.merge(node, statistics, now_ms)
        self._model.merge(node, model, now_ms)
        self._calibration.merge(node, calibration, now_ms)
        self._trust.merge(node, trust)
        for mid, delivered, at in _receipts(passing):
            if self.remembers(mid):
                self.receipt(mid, delivered, at)

    def restore(self, state: bytes) -> None:
        """This node's own `export` of before a restart. Messages that were under way are told again by `submitted`, with their own times."""
        statistics, model, calibration, trust, passing = _split(state)
        self._statistics.restore(statistics)
        self._model.restore(model)
        self._calibration.restore(calibration)
        self._trust.restore(trust)
        self._passing = deque(_receipts(passing), maxlen=_PASSING)

    # What is known, for reports.

    @property
    def breaks(self) -> deque[Break]:
        """The last breaks that were seen, oldest first."""
        return self._under_way.breaks

    def open_breakers(self) -> list[tuple[str, str, str]]:
        """Route, country and network of the open ones; country and network are empty for a whole route."""
        return [place(name) for name in self._arms.open_names()]

    def surplus(self, tenant: str, cls: str) -> float:
        """Estimated utility saved over the conservative constraint."""
        return self._accounts.get((tenant, cls), 0.0)

    def routes(self, now_ms: int) -> dict[tuple[str, str], dict[str, float]]:
        """(route, class) → decayed tries, share delivered in time, share that came late."""
        return {
            (key[0], key[1]): {
                "tries": float(row[TRIES]),
                "in_time": float(row[GOOD] / max(row[TRIES], 1e-9)),
                "late": float(row[LATE_COLUMN] / max(row[TRIES], 1e-9)),
            }
            for key, row in self._statistics.level_view(2, now_ms).items()
        }

    # Inside.

    def _arm_of(self, route: str, to: str, cls: str, connector: str) -> int:
        place = numbering(to)
        connector = connector or self._scores.connectors.get(route, "")
        return self._arms.of(ArmName(route, connector, place.country, place.network, str(cls)))

    def _answered(self, arm: int, now_ms: int, *, accepted: bool) -> None:
        route, network = self._arms.layers[arm].tolist()
        alarms = self._breakers.submit((route, network), now_ms, accepted=accepted)
        if alarms:
            self._under_way.apply(alarms, now_ms)
            self._expire_scores(now_ms)

    def _hear_out(self, mid: str, now_ms: int) -> None:
        """What a tenant said of a message before its outcome was known."""
        if mid in self._waiting:
            self.feedback(mid, *self._waiting.pop(mid), now_ms)

    def _make_room(self, contents: int) -> None:
        """For so many new contents; when they are forgotten, so are the rows that name them."""
        if self._contents.room < contents:
            self._contents.clear()
            self._scores.expire()

    def _expire_scores(self, now_ms: int) -> None:
        self._epoch += 1
        self._version = zlib.crc32(f"{self.node}\t{self._epoch}\t{now_ms}".encode())
        self._arms.expire()
        self._scores.expire()


def _receipts(packed: bytes) -> list[tuple[str, bool, int]]:
    try:
        rows = [line.split("\t") for line in zlib.decompress(packed).decode().split("\n") if line]
        return [(mid, delivered == "1", int(at)) for mid, delivered, at in rows]
    except (zlib.error, ValueError) as error:
        raise ValueError("not the receipts of a learner") from error


def _split(state: bytes) -> list[bytes]:
    try:
        magic, *sizes = _STATE.unpack_from(state)
    except struct.error as error:
        raise ValueError("not the state of a learner") from error
    if magic != _MAGIC or len(state) != _STATE.size + sum(sizes):
        raise ValueError("not the state of a learner")
    ends = np.cumsum([_STATE.size, *sizes]).tolist()
    return [state[start:end] for start, end in pairwise(ends)]
