"""How far receipts can be trusted, from what tenants say came of their messages.

Within one tenant, country and class, the share of messages that converted, given a receipt, differs between routes only by what the receipts are
worth. So a route's honesty is its conversions over those that its peers' rates predict, unless that may be chance. And of messages that
converted, which were surely delivered, the share with a receipt says how many receipts go missing:
P(delivered) = P(receipt) × honest / heard. A comparison with peers is worth no more than its weaker side. A route is checked when its feedback
shows it honest, and caught when it shows it faking: then it is never more than explored while anything else is known.

Hostile tenants: feedback is counted up to a cap per tenant, number range and time; a tenant's own feedback moves its own view; what others see is
the sum over tenants, each capped, without the quarter (one at least) that says the worst of the route and, of three or more, that which says the
best. So it takes two to move it, and of eight and more tenants over a quarter. A route is checked only where it is so too with no tenant louder than
all but the loudest quarter together: a tenant's own messages make it loud on a route that others hardly tried.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.catalog import MessageClass
from controlplane.routing.tuning import Tuning

__all__ = ["FULL", "Trust", "Trusted"]

_HONEST = math.log(20.0)
"""Odds that a route is as honest as thought before its feedback is looked at."""
_CELLS = 50_000
_WINDOWS = 20_000
_ENOUGH = 0.3
_SETTLED = 0.05
"""A route's honesty is settled when it is this improbable that it is thought of wrongly."""
_EXTREME = 4
"""One of so many voices is left out at either end: as many may lie and move nobody."""
_GUARDED = 3
_PEERS = 10.0
"""Messages with which a peer's conversion rate has half its say."""

Key = tuple[str, str, str, str]
"""Tenant, route, country, class."""
Counts = list[float]
"""Converted and all, with receipt; converted and all, without one."""


class Trusted(NamedTuple):
    """What a route's receipts are worth."""

    honest: float
    """Share of its positive receipts that are true."""
    heard: float
    """Share of its deliveries that have a receipt."""


FULL = Trusted(1.0, 1.0)


class _Evidence(NamedTuple):
    """Of a route in one tenant's feedback."""

    honest: float
    """Conversions with a receipt, where there are peers …"""
    expected: float
    """… and how many there should be."""
    heard: float
    """Conversions with a receipt …"""
    converted: float
    """… and all."""

    def plus(self, other: _Evidence) -> _Evidence:
        return _Evidence(*(a + b for a, b in zip(self, other, strict=True)))


_NOTHING = _Evidence(0.0, 0.0, 0.0, 0.0)


class Trust:
    """Feedback of all tenants, decayed, with peers' kept apart."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._own: dict[Key, tuple[int, Counts]] = {}
        self._peers: dict[str, tuple[int, dict[Key, tuple[int, Counts]]]] = {}
        self._windows: dict[tuple[str, str], tuple[int, int]] = {}
        self._views: dict[str, dict[str, Trusted]] = {}
        self._shared: dict[str, Trusted] = {}
        self.usual = FULL
        """Of a route of which nothing is known."""
        self._checked: set[str] = set()
        self._plausible: set[str] = set()
        self._caught: set[str] = set()
        self.guarded = False
        """Whether enough tenants give feedback that one alone cannot vouch for a route."""
        self.changed = False
        """Whether `refresh` has something to do."""

    def tell(self, key: Key, prefix: str, now_ms: int, *, delivered: bool, converted: bool) -> bool:
        """Feedback on a message; False where it is above the tenant's cap and not counted."""
        tenant = key[0]
        ranges, everything = self._tuning.feedback_per_prefix, self._tuning.feedback_per_tenant
        if not (self._room(tenant, prefix, ranges, now_ms) and self._room(tenant, "", everything, now_ms)):
            return False
        if key not in self._own and len(self._own) >= _CELLS:
            self._own = {kept: value for kept, value in self._own.items() if self._worth(value, now_ms) > 0.5}
            if len(self._own) >= _CELLS:
                return False
        counts = self._decayed(self._own.get(key), now_ms)
        first = 0 if delivered else 2
        counts[first] += converted
        counts[first + 1] += 1.0
        self._own[key] = now_ms, counts
        self.changed = True
        return True

    def worth(self, routes: Mapping[str, int], tenant: str = "") -> NDArray[np.float64]:
        """(routes,): P(delivered) over P(receipt) of numbered routes, as a tenant sees it; without one, as all do."""
        found = np.full(len(routes), self.usual.honest / self.usual.heard)
        for known in (self.shared, self.of(tenant) or {}):
            for route, trusted in known.items():
                number = routes.get(route)
                if number is not None:
                    found[number] = trusted.honest / trusted.heard
        return found

    def of(self, tenant: str) -> dict[str, Trusted] | None:
        """Trust by route as a tenant with feedback of its own sees it; routes that are not in it have `shared`'s."""
        return self._views.get(tenant)

    @property
    def shared(self) -> dict[str, Trusted]:
        """Trust by route as tenants without feedback see it; routes that are not in it have `usual`."""
        return self._shared

    def checked(self, route: str) -> bool:
        """Whether feedback has found a route honest; where nobody gives any, nobody waits for it."""
        return not self._views or route in self._checked

    def plausible(self, route: str) -> bool:
        """Whether enough tenants say enough of a route that it is rather honest than not; where too few give feedback, all routes are."""
        return not self.guarded or route in self._plausible

    def caught(self, route: str) -> bool:
        """Whether feedback has found a route faking receipts."""
        return route in self._caught

    def refresh(self, now_ms: int) -> bool:
        """Compute views again, where feedback came; whether it did."""
        if not self.changed:
            return False
        self.changed = False
        evidence = self._evidence(now_ms)
        self.guarded = len(evidence) >= _GUARDED
        voices = self._voices(evidence)
        pooled = self._pooled(voices)
        self._shared = {route: _view(seen, self.usual, self._tuning.trust_strength) for route, seen in pooled.items()}
        spikes = {
            route: _spike(seen.honest, seen.expected, self.usual.honest)
            for route, seen in pooled.items()
            if seen.expected >= self._tuning.checked
        }
        self._checked = {
            route
            for route, spike in spikes.items()
            if spike > 1.0 - _SETTLED and (not self.guarded or self._vouched(voices[route], 1.0 - _SETTLED))
        }
        self._plausible = {route for route in pooled if not self.guarded or self._vouched(voices[route], 0.5)}
        self._caught = {route for route, spike in spikes.items() if spike < _SETTLED}
        self._views = {
            tenant: {
                route: _view(seen, self._shared.get(route, self.usual), self._tuning.view_strength)
                for route, seen in routes.items()
            }
            for tenant, routes in evidence.items()
        }
        return True

    def dump(self, now_ms: int) -> bytes:
        """This node's own feedback as of now."""
        rows = [
            [*key, *(round(count, 4) for count in self._decayed(value, now_ms))] for key, value in self._own.items()
        ]
        return zlib.compress(json.dumps([now_ms, sorted(rows)], separators=(",", ":")).encode(), 1)

    def merge(self, peer: str, state: bytes) -> bool:
        """Take a peer's `dump`; False where a newer one is known. Raises ValueError for what is no dump."""
        at, cells = _load(state)
        known = self._peers.get(peer)
        if known is not None and known[0] >= at:
            return False
        self._peers[peer] = at, cells
        self.changed = True
        return True

    def restore(self, state: bytes) -> None:
        """Take this node's own `dump` in place of what it has."""
        _, self._own = _load(state)
        self.changed = True

    def _room(self, tenant: str, prefix: str, cap: int, now_ms: int) -> bool:
        began, counted = self._windows.get((tenant, prefix), (now_ms, 0))
        if now_ms - began >= self._tuning.feedback_window_ms:
            began, counted = now_ms, 0
        if counted >= cap:
            return False
        if len(self._windows) >= _WINDOWS:
            oldest = now_ms - self._tuning.feedback_window_ms
            self._windows = {key: window for key, window in self._windows.items() if window[0] > oldest}
            if len(self._windows) >= _WINDOWS:
                return False
        self._windows[tenant, prefix] = began, counted + 1
        return True

    def _decayed(self, value: tuple[int, Counts] | None, now_ms: int) -> Counts:
        if value is None:
            return [0.0, 0.0, 0.0, 0.0]
        factor = 0.5 ** ((now_ms - value[0]) / self._tuning.feedback_half_life_ms)
        return [count * factor for count in value[1]]

    def _worth(self, value: tuple[int, Counts], now_ms: int) -> float:
        counts = self._decayed(value, now_ms)
        return counts[1] + counts[3]

    def _evidence(self, now_ms: int) -> dict[str, dict[str, _Evidence]]:
        """Tenant → route → evidence."""
        groups: dict[tuple[str, str, str], dict[str, Counts]] = defaultdict(dict)
        for cells in (self._own, *(self._peers[peer][1] for peer in sorted(self._peers))):
            for (tenant, route, country, cls), value in cells.items():
                counts = self._decayed(value, now_ms)
                group = groups[tenant, country, cls]
                group[route] = [a + b for a, b in zip(group[route], counts, strict=True)] if route in group else counts
        found: dict[str, dict[str, _Evidence]] = defaultdict(dict)
        for (tenant, _, cls), group in groups.items():
            expected = self._tuning.conversion if cls == MessageClass.OTP else None
            for route, (honest, heard, silent, _) in group.items():
                rate = _rate([counts for other, counts in group.items() if other != route], expected)
                told = (0.0, 0.0) if rate is None else rate.against(honest, heard)
                found[tenant][route] = (
                    found[tenant].get(route, _NOTHING).plus(_Evidence(*told, honest, honest + silent))
                )
        return found

    def _voices(self, evidence: dict[str, dict[str, _Evidence]]) -> dict[str, list[_Evidence]]:
        """What tenants say of a route, each up to the cap."""
        cap, heard_cap = self._tuning.trust_cap, self._tuning.heard_cap
        voices: dict[str, list[_Evidence]] = defaultdict(list)
        for routes in evidence.values():
            for route, seen in routes.items():
                voices[route].append(
                    _Evidence(
                        *_capped(seen.honest, seen.expected, cap), *_capped(seen.heard, seen.converted, heard_cap)
                    )
                )
        return voices

    def _pooled(self, voices: dict[str, list[_Evidence]]) -> dict[str, _Evidence]:
        """What all tenants together say of a route, but for the extremes; and `usual`, what they say of all routes."""
        pooled = {
            route: _Evidence(
                *_without_extremes([(one.honest, one.expected) for one in found]),
                *_without_extremes([(one.heard, one.converted) for one in found]),
            )
            for route, found in voices.items()
        }
        general = _NOTHING
        for one in pooled.values():
            general = general.plus(_Evidence(0.0, 0.0, *_capped(one.heard, one.converted, self._tuning.trust_cap)))
        self.usual = Trusted(1.0, _view(general, FULL, self._tuning.trust_strength).heard)
        return pooled

    def _vouched(self, voices: list[_Evidence], spike: float) -> bool:
        """Whether a route is found honest, with this probability at least, where no tenant is louder than all but the loudest quarter together.

        What only a few have tried, they cannot answer for.
        """
        limit = sum(sorted((voice.expected for voice in voices), reverse=True)[_extreme(len(voices)) :])
        seen, expected = _without_extremes([_capped(voice.honest, voice.expected, limit) for voice in voices])
        return expected >= self._tuning.checked and _spike(seen, expected, self.usual.honest) > spike


def _view(seen: _Evidence, prior: Trusted, k: float) -> Trusted:
    return Trusted(
        _honesty(seen.honest, seen.expected, prior.honest), (seen.heard + k * prior.heard) / (seen.converted + k)
    )


def _honesty(seen: float, expected: float, prior: float) -> float:
    """Honest as thought before, or as the counts say: mixed by how likely each is (a spike and a slab, counts as of Poisson).

    An honest route is not marked down for bad luck, and a faking one is found out by some ten conversions that are missing.
    """
    spike = _spike(seen, expected, prior)
    return min(1.0, spike * prior + (1.0 - spike) * (seen + prior) / (expected + 1.0))


def _spike(seen: float, expected: float, prior: float) -> float:
    """How probable it is that a route is as honest as thought before."""
    usual = max(expected * prior, 1e-9)
    log_odds = _HONEST + (seen * math.log(usual / seen) if seen else 0.0) - (usual - seen)
    return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, log_odds))))


def _capped(seen: float, expected: float, cap: float) -> tuple[float, float]:
    scale = min(1.0, cap / max(expected, 1e-9))
    return min(seen, expected) * scale, expected * scale


def _extreme(voices: int) -> int:
    return max(1, voices // _EXTREME)


def _without_extremes(voices: list[tuple[float, float]]) -> tuple[float, float]:
    """Sums of (seen, expected) without the quarter of the voices that misses most, one at least, and, of three or more, that which misses least."""
    extreme = _extreme(len(voices))
    kept = sorted(voices, key=lambda voice: voice[1] - voice[0], reverse=True)[extreme:]
    kept = kept[:-extreme] if len(kept) > extreme else kept
    return sum(seen for seen, _ in kept), sum(expected for _, expected in kept)


class _Rate(NamedTuple):
    """A conversion rate given a receipt."""

    rate: float
    messages: float
    """How many it is known from."""

    def against(self, honest: float, heard: float) -> tuple[float, float]:
        """Conversions and how many there should be of `heard` messages: a comparison is worth no more than its weaker side."""
        scale = 1.0 / (1.0 + heard / self.messages)
        return honest * scale, heard * self.rate * scale


def _rate(peers: list[Counts], expected: float | None) -> _Rate | None:
    """That of peer routes; each has a say of at most one, so that no large one decides alone. Without peers what is expected."""
    total = weight = variance = 0.0
    for converted, heard, _, _ in peers:
        say = heard / (heard + _PEERS)
        total += say * (converted + 0.5) / (heard + 1.0)
        weight += say
        variance += say * say / max(heard, 1e-9)
    if weight >= _ENOUGH:
        return _Rate(total / weight, weight * weight / variance)
    return None if expected is None else _Rate(expected, math.inf)


def _load(state: bytes) -> tuple[int, dict[Key, tuple[int, Counts]]]:
    try:
        at, rows = json.loads(zlib.decompress(state))
        cells = {
            (str(tenant), str(route), str(country), str(cls)): (int(at), [float(count) for count in counts])
            for tenant, route, country, cls, *counts in rows
        }
    except (zlib.error, TypeError, ValueError) as error:
        raise ValueError("not a dump of feedback") from error
    if any(len(counts) != 4 for _, counts in cells.values()):
        raise ValueError("not a dump of feedback: each row has four counts")
    return int(at), cells
