"""The product's learner as a policy: it is driven as a node drives it."""

from __future__ import annotations

import hashlib

import numpy as np

from bench.routing.view import View
from bench.routing.world import Flags, Floats
from controlplane.routing.decision import CANDIDATE, HEADER, OUTLOOK, same
from controlplane.routing.learner import Break, Learner, Terms, Tuning
from controlplane.routing.router import Candidate, RouteRequest

__all__ = ["Ours"]


class Ours:
    """Keeps the record of each decision, for the judge."""

    def __init__(self, view: View, tuning: Tuning | None = None) -> None:
        self._view = view
        self.learner = Learner(tuning or Tuning(), node="bench")
        self.route = {name: at for at, name in enumerate(view.names)}
        self._requests: dict[int, RouteRequest] = {}
        self._plans: dict[tuple[int, ...], tuple[Candidate, ...]] = {}
        self.records: dict[int, bytes] = {}
        self.breaks: list[Break] = []

    def choose(self, rows: list[int], now_ms: int) -> list[list[int]]:
        view = self._view
        requests = [view.request(row) for row in rows]
        terms = [Terms(float(view.value[row]), 1.0, float(view.latency_price[row])) for row in rows]
        decisions = self.learner.decide(requests, [self._plan(row) for row in rows], now_ms, terms)
        for row, request, decision in zip(rows, requests, decisions, strict=True):
            self._requests[row] = request
            self.records[row] = decision.record
        return [[self.route[name] for name in decision.ranked] for decision in decisions]

    def _plan(self, row: int) -> tuple[Candidate, ...]:
        """The same object for messages of the same kind, as the static router has them."""
        view = self._view
        of = view.candidates(row)
        key = (int(view.network[row]), *of, *view.prices[row, of].astype(int).tolist())
        if (found := self._plans.get(key)) is None:
            found = self._plans[key] = tuple(view.offers(row))
        return found

    def accepted(self, row: int, route: int, now_ms: int) -> None:
        request = self._requests.pop(row)
        self.learner.submitted(request.mid, self._view.names[route], request, now_ms)

    def refused(self, row: int, route: int, now_ms: int) -> None:
        self.learner.refused(self._view.names[route], self._requests[row], now_ms, permanent=False)

    def receipt(self, row: int, now_ms: int, *, delivered: bool) -> None:
        self.learner.receipt(f"m{row:07d}", delivered, now_ms)

    def feedback(self, row: int, now_ms: int, *, converted: bool) -> None:
        self.learner.feedback(f"m{row:07d}", converted, f"tenant-{int(self._view.tenant[row])}", now_ms)

    def tick(self, now_ms: int) -> None:
        self.learner.tick(now_ms)
        while self.learner.breaks:
            self.breaks.append(self.learner.breaks.popleft())

    # For the judge.

    def predictions(self) -> tuple[Floats, Flags]:
        """P(delivered in time) that each decision expected of its choice, and whether it chose another route than the one it thought best."""
        p, explored = np.full(self._view.count, np.nan), np.zeros(self._view.count, bool)
        for row, record in self.records.items():
            count, chosen = record[1], record[3]
            table = np.frombuffer(record, CANDIDATE, count, HEADER.size)
            p[row] = OUTLOOK.unpack_from(record, len(record) - OUTLOOK.size)[0] / 65535
            explored[row] = (
                table["propensity"][chosen] < 0.5
            )  # the best one has the largest share, and budgets are below a half
        return p, explored

    def replayed(self, every: int = 10) -> tuple[int, int]:
        """Of every tenth record: how many there are, and how many give the same decision bit for bit."""
        some = [record for row, record in self.records.items() if row % every == 0]
        return len(some), sum(same(record) for record in some)

    def digest(self) -> str:
        """Of all records in order: the same after the same events."""
        digest = hashlib.sha256()
        for row in sorted(self.records):
            digest.update(self.records[row])
        return digest.hexdigest()
