"""Arms: (route, connector, country, network, class), with their cells, their breakers and what is known of them in this second."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.breaker import OPEN, Breakers
from controlplane.routing.features import fixed_hash
from controlplane.routing.statistics import BINS, LEVELS, Statistics, share_below
from controlplane.routing.tuning import Tuning

__all__ = ["ArmName", "Arms"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class ArmName(NamedTuple):
    """What an arm is."""

    route: str
    connector: str
    country: str
    network: str
    cls: str


class Arms:
    """A growing table; a number, once given, stays. Estimates are computed once an epoch, for the arms that are asked for."""

    def __init__(self, tuning: Tuning, statistics: Statistics, breakers: Breakers) -> None:
        self._tuning, self._statistics, self._breakers = tuning, statistics, breakers
        self._numbers: dict[ArmName, int] = {}
        self.names: list[ArmName] = []
        self.routes: dict[str, int] = {}
        self._below = {cls: share_below(own.deadline_ms / 1000) for cls, own in tuning.classes.items()}
        self._early_below = share_below(tuning.early_ms / 1000)
        self._epoch = 1
        room = 256
        self._fresh = np.zeros(room, dtype=np.int64)
        self.chain = np.zeros((room, LEVELS), dtype=np.int64)
        self.layers = np.zeros((room, 2), dtype=np.int64)
        """Breakers: of the route, of route × network."""
        self.route = np.zeros(room, dtype=np.int64)
        self.hash = np.zeros(room, dtype=np.uint64)
        self._class_below = np.zeros((room, BINS))
        self.p = np.zeros(room)
        self.strength = np.zeros(room)
        self.curve = np.zeros((room, BINS))
        self.in_time = np.zeros(room)
        self.latency = np.zeros(room)
        self.early = np.zeros(room)
        self.outcomes = np.zeros(room)
        self.receipts = np.zeros(room)
        self.watched = np.zeros(room)

    def __len__(self) -> int:
        return len(self.names)

    def of(self, name: ArmName) -> int:
        """The number of an arm."""
        number = self._numbers.get(name)
        if number is not None:
            return number
        if len(self.names) >= self._tuning.cells and name.network:
            return self.of(name._replace(network=""))
        number = self._numbers[name] = len(self.names)
        if number == len(self._fresh):
            self._grow()
        self.names.append(name)
        self.chain[number] = self._statistics.chain(*name)
        self.layers[number] = (
            self._breakers.cell(name.route),
            self._breakers.cell(f"{name.route}\t{name.country}\t{name.network}"),
        )
        self.route[number] = self.routes.setdefault(name.route, len(self.routes))
        self.hash[number] = fixed_hash(name.route)
        self._class_below[number] = self._below[name.cls]
        self.p[number], self.strength[number], self.early[number] = self._tuning.prior, 1.0, 0.5
        self.curve[number], self.in_time[number] = np.linspace(1 / BINS, 1.0, BINS), 1.0  # until it is asked for
        return number

    def expire(self) -> None:
        """A new epoch: estimates are taken again when asked for."""
        self._epoch += 1

    def refresh(self, arms: Ints, now_ms: int) -> None:
        """Make the estimates of these arms those of this epoch."""
        stale = np.unique(arms[self._fresh[arms] != self._epoch])
        if not len(stale):
            return
        found = self._statistics.estimate(self.chain[stale], self._class_below[stale], self._early_below, now_ms)
        self.p[stale], self.strength[stale], self.curve[stale] = found.p, found.strength, found.curve
        self.in_time[stale], self.latency[stale] = found.in_time, found.latency
        self.early[stale], self.watched[stale] = found.early, found.watched
        self.outcomes[stale], self.receipts[stale] = found.outcomes, found.receipts
        self._fresh[stale] = self._epoch

    def state(self, arms: Ints) -> Ints:
        """The worse of the two breakers of each arm: CLOSED, HALF_OPEN or OPEN."""
        return np.asarray(self._breakers.state[self.layers[arms]].max(axis=-1))

    def under(self, breaker: int) -> Ints:
        """The statistics' cells that a breaker stands for: a route's own, down to its networks; or one route × network."""
        layers = self.layers[: len(self.names)]
        whole = np.flatnonzero(layers[:, 0] == breaker)
        if len(whole):
            return np.unique(self.chain[whole][:, :4])
        return np.unique(self.chain[np.flatnonzero(layers[:, 1] == breaker), 0])

    def open_names(self) -> list[str]:
        """Breakers that are open, by name: the route, or route, country and network with tabs between."""
        return [self._breakers.name(int(cell)) for cell in np.flatnonzero(self._breakers.state == OPEN)]

    def _grow(self) -> None:
        for key, old in list(vars(self).items()):
            if isinstance(old, np.ndarray) and key != "_early_below":
                setattr(self, key, np.concatenate([old, np.zeros_like(old)]))
