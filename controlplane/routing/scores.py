"""The score table: what follows for a (content, candidates, terms), computed for many at once and used until the next refresh."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.catalog import MessageClass
from controlplane.routing.arms import ArmName, Arms
from controlplane.routing.breaker import HALF_OPEN, OPEN
from controlplane.routing.calibration import Calibration
from controlplane.routing.choose import EXCLUDED, FRESH, NO_BIND, OPEN_BREAKER, PROBE, YOUNG, Inputs, Rules, weigh
from controlplane.routing.decision import CANDIDATE, NEAR_EQUALS, OTP, TRANSACTIONAL, Choice
from controlplane.routing.features import Content, Contents, buckets
from controlplane.routing.model import Model, logit, sigmoid
from controlplane.routing.router import Candidate
from controlplane.routing.trust import Trust
from controlplane.routing.tuning import Terms, Tuning

__all__ = ["Asked", "Line", "Row", "Scores"]

_LINES = 5_000
_CLASS_FLAGS = {MessageClass.OTP.value: OTP, MessageClass.TRANSACTIONAL.value: TRANSACTIONAL}
_MOST = 255
"""Candidates of one decision: what the record can count. The static order's first are taken."""


class Line:
    """Candidates of one plan, in the static order: what of them does not change with the message."""

    __slots__ = ("arms", "blob", "candidates", "connectors", "flags", "names", "prices")

    def __init__(self, candidates: tuple[Candidate, ...]) -> None:
        self.candidates = candidates
        """Kept, so that the plan's identity stays taken."""
        shown = candidates[:_MOST]
        self.names = tuple(candidate.route.name for candidate in shown)
        self.connectors = tuple(candidate.route.connector for candidate in shown)
        self.prices = np.array([candidate.price for candidate in shown], dtype="<u4")
        self.flags = np.array([0 if candidate.healthy else NO_BIND for candidate in shown], dtype=np.uint8)
        encoded = [name.encode()[:255] for name in self.names]
        self.blob = b"".join(bytes([len(name)]) + name for name in encoded)
        self.arms: dict[tuple[str, str, str], NDArray[np.int64]] = {}
        """By country, network and class."""


class Asked(NamedTuple):
    """What a row is for, and its key: line and content by their identity."""

    line: Line
    content: Content
    terms: Terms
    view: str
    """Whose trust in receipts: a tenant with feedback of its own, or ""."""


class Row:
    """A scored (content, candidates, terms): all of a decision that does not depend on the message's id and the saved surplus."""

    __slots__ = (
        "best",
        "choices",
        "digest",
        "explored",
        "flags",
        "floor",
        "line",
        "most",
        "need",
        "order",
        "outlook",
        "plain",
        "propensity",
        "rules",
        "utility",
    )

    line: Line
    digest: int
    flags: int
    rules: tuple[float, ...]
    """value, price factor, latency price, budget, gamma, delta, alpha, young share."""
    explored: bytes
    """The record's candidates where exploration is allowed."""
    plain: bytes
    """The same where it is not."""
    best: int
    propensity: list[float]
    utility: list[float]
    floor: float
    need: float
    most: float
    """Largest surplus that is kept."""
    order: tuple[int, ...]
    outlook: list[bytes]
    """Per candidate: the record's end, if that one is chosen."""
    choices: dict[tuple[int, bool], Choice]
    """Those that were made, by candidate and whether exploration was allowed."""

    def choose(self, chosen: int, *, explored: bool) -> Choice:
        """What follows if a candidate is chosen."""
        choice = self.choices.get((chosen, explored))
        if choice is None:
            line, order = self.line, (chosen, *[i for i in self.order if i != chosen])
            ranked = (*map(line.candidates.__getitem__, order), *line.candidates[len(order) :])
            tail = (self.explored if explored else self.plain) + line.blob + self.outlook[chosen]
            choice = self.choices[chosen, explored] = Choice(ranked, tail)
        return choice


class Scores:
    """Scores what is asked, in one go."""

    def __init__(
        self, tuning: Tuning, arms: Arms, contents: Contents, model: Model, calibration: Calibration, trust: Trust
    ) -> None:
        self._tuning, self._arms, self._contents = tuning, arms, contents
        self._model, self._calibration, self._trust = model, calibration, trust
        self._lines: dict[int, Line] = {}
        self._rules: dict[tuple[Terms, str], tuple[float, ...]] = {}
        self._rows: dict[Asked, Row] = {}
        self.known: dict[Hashable, Row] = {}
        """The same rows by keys of whoever asks, who fills it; emptied with them."""
        self._checked = np.zeros((0, 3), dtype=bool)
        """By the number of the route: whether feedback has found it honest, rather honest than not, faking."""
        self.connectors: dict[str, str] = {}
        """Of each route that was ever asked for."""

    def line(self, candidates: tuple[Candidate, ...]) -> Line:
        """The candidates' line, recognised by their identity."""
        found = self._lines.get(id(candidates))
        if found is None:
            if len(self._lines) >= _LINES:
                self._lines.clear()
            found = self._lines[id(candidates)] = Line(candidates)
            self.connectors.update(zip(found.names, found.connectors, strict=True))
        return found

    def expire(self) -> None:
        """Forget all rows; trust may have changed."""
        self._rows.clear()
        self.known.clear()
        self._checked = np.zeros((0, 3), dtype=bool)

    def rows(self, asked: Sequence[Asked], now_ms: int) -> list[Row]:
        """A row for each."""
        new = [item for item in dict.fromkeys(asked) if item not in self._rows]
        if new:
            self._rows.update(zip(new, self._score(new, now_ms), strict=True))
        return [self._rows[item] for item in asked]

    def _score(self, asked: Sequence[Asked], now_ms: int) -> list[Row]:
        n = len(asked)
        counts = np.array([len(item.line.names) for item in asked])
        there = np.arange(int(counts.max())) < counts[:, np.newaxis]
        arms = np.zeros(there.shape, dtype=np.int64)
        table = np.zeros(there.shape, dtype=CANDIDATE)
        arms[there] = np.concatenate([self._line_arms(item) for item in asked])
        table["price"][there] = np.concatenate([item.line.prices for item in asked])
        flags = np.zeros(there.shape, dtype=np.uint8)
        flags[there] = np.concatenate([item.line.flags for item in asked])
        self._arms.refresh(arms[there], now_ms)
        state = self._arms.state(arms)
        flags |= np.where(state == OPEN, OPEN_BREAKER, np.where(state == HALF_OPEN, PROBE, 0)).astype(np.uint8)
        usable = there & (flags & EXCLUDED == 0)
        flags |= self._novelty(np.where(there, self._arms.outcomes[arms], 0.0), usable, self._arms.route[arms])
        table["flags"] = np.where(there, flags, 0)
        table["latency"] = self._arms.latency[arms]
        worth = self._worths(asked, arms)
        chances = [np.minimum(chance * worth, 1.0) for chance in self._chances(asked, arms)]
        for name, chance in zip(("p", "low", "high"), chances, strict=True):
            table[name] = _quantised(chance)
        classes = np.array([self._calibration.number(item.content.cls) for item in asked])
        outlook = np.stack([_quantised(self._calibration.apply(classes, chance)) for chance in chances], axis=-1)

        rules = [self._rules_of(item.terms, item.content.cls) for item in asked]
        columns = np.array(rules).T
        low, p, high = (table[name].astype(np.float64) / 65535.0 for name in ("low", "p", "high"))
        latency, price = table["latency"].astype(np.float64), table["price"].astype(np.float64)
        weighed = weigh(
            Rules._make([*columns[:-1], columns[-1] > 0]),
            Inputs(p, low, high, latency, price, table["flags"].astype(np.int64), there),
        )
        table["utility"], table["propensity"] = weighed.utility, weighed.propensity
        alone = table.copy()
        alone["propensity"] = 0.0
        alone["propensity"][np.arange(n), weighed.best] = 1.0
        made = zip(
            asked,
            rules,
            counts.tolist(),
            weighed.best.tolist(),
            weighed.propensity.tolist(),
            weighed.utility.tolist(),
            weighed.floor.tolist(),
            weighed.need.tolist(),
            weighed.order.tolist(),
            table,
            alone,
            outlook,
            strict=True,
        )
        return [self._row(*parts) for parts in made]

    def _row(
        self,
        item: Asked,
        rules: tuple[float, ...],
        count: int,
        best: int,
        propensity: list[float],
        utility: list[float],
        floor: float,
        need: float,
        order: list[int],
        table: NDArray[np.void],
        alone: NDArray[np.void],
        outlook: NDArray[np.uint16],
    ) -> Row:
        row = Row()
        row.line, row.digest, row.rules = item.line, item.content.digest, rules[:-1]
        row.flags = _CLASS_FLAGS.get(item.content.cls, 0) | (NEAR_EQUALS if rules[-1] else 0)
        row.best, row.floor, row.need = best, floor, need
        row.propensity, row.utility, row.order = propensity[:count], utility[:count], tuple(order[:count])
        row.explored, row.plain = table[:count].tobytes(), alone[:count].tobytes()
        row.outlook = [one.tobytes() for one in outlook[:count]]
        row.choices = {}
        row.most = self._tuning.bank * rules[0]
        return row

    def _line_arms(self, item: Asked) -> NDArray[np.int64]:
        content, line = item.content, item.line
        place = content.country, content.network, content.cls
        found = line.arms.get(place)
        if found is None:
            found = line.arms[place] = np.array(
                [
                    self._arms.of(ArmName(route, connector, *place))
                    for route, connector in zip(line.names, line.connectors, strict=True)
                ],
                dtype=np.int64,
            )
        return found

    def _chances(self, asked: Sequence[Asked], arms: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
        """P(receipt in time) with its interval: p, low, high."""
        hashes = self._contents.hashes[np.array([item.content.row for item in asked])]
        wide = np.broadcast_to(hashes[:, np.newaxis, :], (*arms.shape, hashes.shape[1]))
        index = buckets(wide, self._arms.hash[arms])
        p = self._arms.p[arms]
        eta = logit(p) + self._model.mean[index].sum(axis=-1)
        spread = self._tuning.z * np.sqrt(
            1.0 / (self._arms.strength[arms] * p * (1.0 - p)) + self._model.variance[index].sum(axis=-1)
        )
        return sigmoid(eta), sigmoid(eta - spread), sigmoid(eta + spread)

    def _novelty(
        self, outcomes: NDArray[np.float64], usable: NDArray[np.bool_], routes: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """YOUNG for routes (n, K) of which too little is known, or nothing good, where there is one of which much is; FRESH where there is none.

        Where none of those that are known can be used, what is left is known best by its outcomes.
        """
        if len(self._checked) != len(self._arms.routes):
            self._checked = np.array(
                [
                    (self._trust.checked(route), self._trust.plausible(route), self._trust.caught(route))
                    for route in self._arms.routes
                ]
            )
        checked, plausible, caught = np.moveaxis(self._checked[routes], -1, 0)
        established = outcomes >= self._tuning.established
        enough = np.where(
            checked, self._tuning.young, np.where(plausible, self._tuning.established, self._tuning.unaudited)
        )
        known = (outcomes >= enough) & ~caught
        left = np.where(usable & ~caught, outcomes, 0.0)
        most = left.max(axis=1, keepdims=True)
        known |= ~(known & usable).any(axis=1, keepdims=True) & (left > 0.5 * most)
        begun = established.any(axis=1, keepdims=True)
        fresh = ~begun & (outcomes < self._tuning.fresh)
        return np.where(begun & ~known, YOUNG, np.where(fresh, FRESH, 0)).astype(np.uint8)

    def _worths(self, asked: Sequence[Asked], arms: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(delivered) over P(receipt) of candidates (n, K): 1 where receipts are what they should be."""
        views = {item.view for item in asked}
        if not self._trust.shared and views == {""}:
            return np.ones(arms.shape)
        worth = {view: self._trust.worth(self._arms.routes, view) for view in views}
        return np.stack([worth[item.view] for item in asked])[
            np.arange(len(asked))[:, np.newaxis], self._arms.route[arms]
        ]

    def _rules_of(self, terms: Terms, cls: str) -> tuple[float, ...]:
        found = self._rules.get((terms, cls))
        if found is None:
            if len(self._rules) >= _LINES:
                self._rules.clear()
            own, tuning = self._tuning.classes[cls], self._tuning
            exact = (*terms, own.budget, tuning.gamma, own.delta, tuning.alpha, own.young_share, float(own.near_equals))
            found = self._rules[terms, cls] = tuple(np.array(exact, dtype="<f4").astype(np.float64).tolist())
        return found


def _quantised(chance: NDArray[np.float64]) -> NDArray[np.uint16]:
    """As records hold it."""
    return np.rint(chance * 65535.0).astype("<u2")
