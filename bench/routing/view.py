"""What a gateway sees of a world: requests, candidates with their prices, what tenants pay for; and, as it happens, answers, receipts, feedback."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np

from bench.routing.world import CLASSES, Floats, Ints, World
from controlplane.domain.catalog import MESSAGE_CLASSES, Route, SenderType
from controlplane.routing.router import Candidate, RouteRequest

__all__ = ["Policy", "View"]


class Policy(Protocol):
    """What decides. Times are in ms since the epoch; rows and routes are numbers in the view."""

    def choose(self, rows: list[int], now_ms: int, /) -> list[list[int]]:
        """Of each message, its candidates: the chosen one, then in which order to fall back when a submit fails."""
        ...

    def accepted(self, row: int, route: int, now_ms: int, /) -> None:
        """The carrier took it."""
        ...

    def refused(self, row: int, route: int, now_ms: int, /) -> None:
        """The carrier answered the submit with an error."""
        ...

    def receipt(self, row: int, now_ms: int, /, *, delivered: bool) -> None:
        """A final receipt came."""
        ...

    def feedback(self, row: int, now_ms: int, /, *, converted: bool) -> None:
        """The tenant says whether the one-time password was used."""
        ...

    def tick(self, now_ms: int, /) -> None:
        """A second is over."""
        ...


class View:
    """The part of a world that is not secret."""

    def __init__(self, world: World) -> None:
        self._world = world
        m = world.messages
        self.count, self.routes = world.count, len(world.carriers.name)
        self.names = world.carriers.name
        self.at_ms: Ints = m.at_ms
        self.cls: Ints = m.cls
        self.tenant: Ints = m.tenant
        self.origin: Ints = m.origin
        self.country: Ints = m.country
        self.local_hour: Floats = m.local_hour
        self.url, self.ucs2, self.parts, self.template = m.url, m.ucs2, m.parts, m.template
        prefixes = sorted(
            ((prefix, at) for at, (_, _, prefix) in enumerate(world.networks)), key=lambda item: -len(item[0])
        )
        self.networks = len(prefixes)
        self.countries = len(world.countries)
        self.network_country: Ints = world.network_country
        self.network: Ints = np.array([next(at for prefix, at in prefixes if to.startswith(prefix, 1)) for to in m.to])
        """By the number's range; a ported one is elsewhere."""
        self.value: Floats = world.tenants.value[m.tenant, m.cls]
        self.latency_price: Floats = world.latency_price[m.cls]
        self.reports = world.tenants.reports[m.tenant] & (m.cls == 0)
        """Whether feedback will come."""
        self.deadline_ms: Ints = (1_000 * world.deadline_s).astype(np.int64)
        self.available, self.prices = world.available, world.prices

    def candidates(self, row: int) -> list[int]:
        """Cheapest first, as a static router would have them."""
        of = np.flatnonzero(self.available[row])
        found: list[int] = of[np.argsort(self.prices[row, of], kind="stable")].tolist()
        return found

    @cached_property
    def _catalog(self) -> list[Route]:
        carriers, countries = self._world.carriers, self._world.countries
        prefixes = [
            tuple(prefix for at, _, prefix in self._world.networks if covers[at])
            for covers in carriers.covers[:, : len(countries)]
        ]
        return [
            Route(name=name, connector=supplier, prefixes=prefixes[at], price=int(carriers.price[at].min()))
            for at, (name, supplier) in enumerate(zip(carriers.name, carriers.supplier, strict=True))
        ]

    def request(self, row: int) -> RouteRequest:
        """The message as the product's router gets it."""
        m = self._world.messages
        return RouteRequest(
            tenant=self._world.tenants.name[int(m.tenant[row])],
            to=m.to[row],
            sender_type=SenderType.ALPHANUMERIC,
            cls=MESSAGE_CLASSES[CLASSES[int(m.cls[row])]],
            parts=int(m.parts[row]),
            sender="Shop",
            body=m.body[row],
            encoding="ucs2" if m.ucs2[row] else "gsm7",
            origin=self._world.parameters["tenants"]["origins"][int(m.origin[row])],
            mid=f"m{row:07d}",
            at=int(m.at_ms[row]),
        )

    def offers(self, row: int) -> list[Candidate]:
        """Its candidates as the product's router gets them, cheapest first."""
        of = self.candidates(row)
        prefix = self._world.networks[int(self.network[row])][2]
        return [Candidate(self._catalog[route], int(self.prices[row, route]), prefix, healthy=True) for route in of]
