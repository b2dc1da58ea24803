"""Retrieval: which routes may carry a message. Exact, by hard rules; the same rules find the candidates and explain the exclusions."""

from __future__ import annotations

from controlplane.domain.catalog import Route, Snapshot
from controlplane.routing.router import Candidate, Exclusion, RouteRequest

__all__ = ["PrefixIndex", "candidate", "exclusion", "unreachable"]


class PrefixIndex:
    """Enabled routes of one snapshot by prefix: a number's routes are found in as many look-ups as prefixes have lengths."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.version = snapshot.version
        self.snapshot = snapshot
        self._by_prefix: dict[str, list[Route]] = {}
        for route in snapshot.routes.values():
            connector = snapshot.connectors.get(route.connector)
            if route.enabled and connector is not None and connector.enabled:
                for prefix in route.prefixes:
                    self._by_prefix.setdefault(prefix, []).append(route)
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix}, reverse=True)
        self.longest = max(self._lengths, default=0)
        """Digits of a number that matter here."""

    def of(self, to: str) -> dict[str, tuple[str, Route]]:
        """Routes for a number: name → (longest prefix of that route which matches, route)."""
        digits = to.removeprefix("+")
        found: dict[str, tuple[str, Route]] = {}
        for length in self._lengths:
            prefix = digits[:length]
            for route in self._by_prefix.get(prefix, ()):
                found.setdefault(route.name, (prefix, route))
        return found


def exclusion(route: Route, request: RouteRequest) -> Exclusion | None:
    """The first hard rule by which this route, whose prefix matches, may not carry the message."""
    if route.name in request.tried:
        return Exclusion(route.name, "tried", "it refused this message already")
    if request.cls not in route.classes:
        return Exclusion(route.name, "class", f"it carries {', '.join(sorted(route.classes))}, not {request.cls}")
    if request.sender and request.sender_type not in route.sender_types:
        return Exclusion(
            route.name,
            "sender_type",
            f"it carries senders {', '.join(sorted(route.sender_types))}, not {request.sender_type}",
        )
    price = route.price * request.parts
    if request.max_price is not None and price > request.max_price:
        return Exclusion(route.name, "max_price", f"it costs {price}, and max_price is {request.max_price}")
    return None


def unreachable(route: Route, snapshot: Snapshot) -> Exclusion:
    """Why a route was not even looked at for this number."""
    connector = snapshot.connectors.get(route.connector)
    if not route.enabled:
        return Exclusion(route.name, "disabled", "the route is switched off")
    if connector is None or not connector.enabled:
        return Exclusion(route.name, "connector_disabled", f"its connector {route.connector} is switched off")
    return Exclusion(
        route.name, "prefix", f"its prefixes {', '.join(route.prefixes) or 'none'} do not match the number"
    )


def candidate(route: Route, prefix: str, request: RouteRequest, *, healthy: bool) -> Candidate:
    """The route as a candidate for this message."""
    return Candidate(route, route.price * request.parts, prefix, healthy)
