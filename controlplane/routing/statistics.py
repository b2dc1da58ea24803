"""Decayed counts in a hierarchy of cells, and what they say about an arm (route, connector, country, network, class).

Levels, finest first: 0 route × network × class, 1 route × country × class, 2 route × class, 3 route, 4 connector, 5 all. Each level is the Beta
prior of the one below; from connectors up it is routes that count, not messages. From level 3 on classes with different deadlines share a cell, so a try counts there as much as its deadline could show
(F(deadline), F the delay curve), and the estimate is of delivery at any time; going down it is multiplied by F(deadline) again.

Counts are kept with forward decay (Cormode et al., ICDE 2009): an event at t adds 2^((t − landmark) / half-life), whatever the order of arrival,
so the counts of several nodes add. A node's own counts are kept apart from the others'.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.tuning import HOUR, Tuning

__all__ = [
    "BINS",
    "EARLY_GOOD",
    "EARLY_TRIES",
    "GOOD",
    "LATE",
    "LEVELS",
    "TRIES",
    "WIDTH",
    "Estimates",
    "Statistics",
    "bin_of",
    "share_below",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TRIES, GOOD, LATE, EARLY_TRIES, EARLY_GOOD, CURVE = range(6)
BINS = 24
WIDTH = CURVE + BINS
LEVELS = 6
_CLASSLESS = 3
"""From this level on cells are shared by all classes."""
_FIRST_S, _RATIO = 0.2, 1.8
_EDGES = _FIRST_S * _RATIO ** np.arange(BINS)
"""Upper edges of the delay curve's bins in seconds: 0.2 s to 41 h; the last takes all that is later."""
_MIDDLES = _EDGES / _RATIO**0.5
_REBASE_MS = 24 * HOUR
_HEADER = struct.Struct("<BQI")
_VERSION = 1


def bin_of(seconds: Floats) -> Ints:
    """The bin of each delay."""
    return np.minimum(np.searchsorted(_EDGES, seconds), BINS - 1)


def share_below(seconds: float) -> Floats:
    """Which share of each bin lies below a delay, taking bins as uniform in the logarithm."""
    return np.asarray(np.clip(np.log(max(seconds, 1e-9) / (_EDGES / _RATIO)) / np.log(_RATIO), 0.0, 1.0))


def reached(curves: Floats, seconds: Floats) -> Floats:
    """F(delay) of n cumulative curves (n, BINS) at n delays, uniform in the logarithm within a bin."""
    place = np.log(np.maximum(seconds, 1e-9) / (_FIRST_S / _RATIO)) / np.log(_RATIO)
    at = np.clip(place.astype(np.int64), 0, BINS - 1)
    rows = np.arange(len(curves))
    before = np.where(at > 0, curves[rows, at - 1], 0.0)
    return np.asarray(before + np.clip(place - at, 0.0, 1.0) * (curves[rows, at] - before))


def _prior_curve() -> Floats:
    """Before anything was seen: log-normal around 5 s, as most receipts of mobile networks are."""
    weights = np.exp(-0.5 * (np.log(_MIDDLES / 5.0) / 1.2) ** 2)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


class Estimates(NamedTuple):
    """What is known of n arms."""

    p: Floats
    """(n,) P(receipt within the deadline)."""
    strength: Floats
    """(n,) tries that p is worth: its variance is about p(1 − p) / strength."""
    curve: Floats
    """(n, BINS) cumulative delay curve of all receipts that come."""
    in_time: Floats
    """(n,) F(deadline)."""
    latency: Floats
    """(n,) expected seconds of those in time."""
    early: Floats
    """(n,) P(receipt within `early_ms`)."""
    outcomes: Floats
    """(n,) decayed outcomes of the route."""
    receipts: Floats
    """(n,) decayed receipts in the route's delay curve."""
    watched: Floats
    """(n,) decayed messages in the route's early rate."""


class Statistics:
    """The cells of one node, and those of its peers."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._half = np.array(tuning.half_lives_ms, dtype=np.float64)
        self._index: dict[str, int] = {"": 0}
        """Cell 0 takes what finds no room, and is always empty."""
        self._level = np.zeros(1024, dtype=np.int64)
        self._own = np.zeros((1024, WIDTH))
        self._others = np.zeros((1024, WIDTH))
        self._muted = np.zeros(1024)
        """Until when (ms) the others' counts of a cell are taken for stale, because a break was seen here."""
        self._ref = 0
        self._peers: dict[str, tuple[int, Ints, NDArray[np.float32]]] = {}
        self.evidence = np.zeros(1024)
        """Per cell: tries of messages under way that count as not delivered (see pool)."""
        self._prior_curve = _prior_curve()
        self._supplier: dict[int, int] = {}
        """Cell of a route → cell of its connector."""
        self._levels_at = -1
        self._levels = np.zeros(0)

    def chain(self, route: str, connector: str, country: str, network: str, cls: str) -> list[int]:
        """The LEVELS cells of an arm."""
        cells = [
            self._cell(f"0\t{route}\t{country}\t{network}\t{cls}"),
            self._cell(f"1\t{route}\t{country}\t{cls}"),
            self._cell(f"2\t{route}\t{cls}"),
            self._cell(f"3\t{route}"),
            self._cell(f"4\t{connector}"),
            self._cell("5"),
        ]
        self._supplier[cells[3]] = cells[4]
        self._levels_at = -1
        return cells

    def add(self, chains: Ints, at: Ints, increments: Floats, in_time: Floats) -> None:
        """Count events: chains (n, LEVELS), at (n,) ms of the submits, increments (n, WIDTH), in_time (n,) F(deadline) of the arms."""
        if not len(at):
            return
        self._rebase(int(at.max()))
        self._levels_at = -1
        classless = increments.copy()
        classless[:, TRIES] *= in_time
        for level in range(LEVELS):
            weight = np.exp2((at - self._ref) / self._half[level])
            np.add.at(
                self._own, chains[:, level], (classless if level >= _CLASSLESS else increments) * weight[:, np.newaxis]
            )
        self._own[0] = 0.0

    def estimate(self, chains: Ints, below: Floats, early_below: Floats, now_ms: int) -> Estimates:
        """Estimates of n arms: chains (n, LEVELS), below (n, BINS) = share_below(deadline), early_below (BINS,) = share_below(early_ms)."""
        self._rebase(now_ms)
        tuning, rows = self._tuning, self._rows(chains, now_ms)
        tries = rows[:, :, TRIES] + self.evidence[chains]
        good, early_tries, early_good = rows[:, :, GOOD], rows[:, :, EARLY_TRIES], rows[:, :, EARLY_GOOD]
        curve = np.broadcast_to(self._prior_curve, (len(chains), BINS))
        for level in reversed(range(LEVELS)):
            seen = rows[:, level, CURVE:]
            k = tuning.curve_strength
            curve = (seen + k * curve) / (seen.sum(axis=1, keepdims=True) + k)
        in_time = np.maximum((curve * below).sum(axis=1), 1e-3)
        p = self._carriers(now_ms)[chains[:, _CLASSLESS + 1]]
        early = p * (curve * early_below).sum(axis=1)
        strength = np.full(len(chains), tuning.strengths[_CLASSLESS])
        for level in reversed(range(_CLASSLESS + 1)):
            k = tuning.strengths[level]
            if level == _CLASSLESS - 1:
                p = p * in_time
            p = np.clip((good[:, level] + k * p) / (tries[:, level] + k), 1e-3, 1.0 - 1e-3)
            early = (early_good[:, level] + k * early) / (early_tries[:, level] + k)
            strength = tries[:, level] + 1.0 / (1.0 / k + 1.0 / strength)
        return Estimates(
            p,
            strength,
            np.cumsum(curve, axis=1),
            in_time,
            (curve * below * _MIDDLES).sum(axis=1) / in_time,
            np.clip(early, 0.01, 0.99),
            rows[:, _CLASSLESS, TRIES],
            rows[:, _CLASSLESS, CURVE:].sum(axis=1),
            rows[:, _CLASSLESS, EARLY_TRIES],
        )

    def reset(self, cells: Iterable[int], now_ms: int, *, strength: float, ratio: float, mute_ms: int) -> None:
        """After a break: keep `strength` tries at most of what a cell knows, at `ratio` times its old level; peers' counts are muted."""
        for cell in set(cells) - {0}:
            scale = np.exp2((self._ref - now_ms) / self._half[self._level[cell]])
            keep = min(1.0, strength / max(self._own[cell, TRIES] * scale, 1e-9))
            row = self._own[cell, :CURVE]
            row *= keep
            row[GOOD] = min(row[GOOD] * ratio, row[TRIES])
            row[EARLY_GOOD] = min(row[EARLY_GOOD] * ratio, row[EARLY_TRIES])
            self._muted[cell] = now_ms + mute_ms

    def level_view(self, level: int, now_ms: int) -> dict[tuple[str, ...], Floats]:
        """The cells of a level by their names, decayed to now, peers included: for reports."""
        self._rebase(now_ms)
        return {
            tuple(key.split("\t")[1:]): self._rows(np.array([[cell]]), now_ms, np.array([level]))[0, 0]
            for key, cell in self._index.items()
            if key and int(key[0]) == level
        }

    def dump(self, now_ms: int) -> bytes:
        """This node's own counts as of now. Counts are float32, delay curves bfloat16; compressed."""
        self._rebase(now_ms)
        keys = list(self._index)[1:]
        cells = np.array([self._index[key] for key in keys], dtype=np.int64)
        rows = self._own[cells] * self._scale(self._level[cells], now_ms)[:, np.newaxis]
        kept = rows[:, TRIES] + rows[:, EARLY_TRIES] + rows[:, CURVE:].sum(axis=1) > 0.01
        rows = rows[kept].astype("<f4")
        curves = np.ascontiguousarray(rows[:, CURVE:]).view("<u4") >> 16
        names = "\n".join(key for key, keep in zip(keys, kept, strict=True) if keep).encode()
        body = names + np.ascontiguousarray(rows[:, :CURVE]).tobytes() + curves.astype("<u2").tobytes()
        return _HEADER.pack(_VERSION, now_ms, len(names)) + zlib.compress(body, 1)

    def merge(self, peer: str, state: bytes, now_ms: int) -> bool:
        """Take a peer's `dump`; False where a newer one is known. Raises ValueError for what is no dump."""
        at, keys, rows = _load(state)
        known = self._peers.get(peer)
        if known is not None and known[0] >= at:
            return False
        cells = np.array([self._cell(key) for key in keys], dtype=np.int64)
        self._peers[peer] = at, cells, rows
        self._rebase(now_ms)
        self._sum_others()
        return True

    def restore(self, state: bytes) -> None:
        """Take this node's own `dump` of before a restart in place of what it has. Raises ValueError for what is no dump."""
        at, keys, rows = _load(state)
        self._rebase(at)
        cells = np.array([self._cell(key) for key in keys], dtype=np.int64)
        self._own[:] = 0.0
        self._own[cells] = rows / self._scale(self._level[cells], at)[:, np.newaxis]
        self._own[0] = 0.0

    def _carriers(self, now_ms: int) -> Floats:
        """Per connector's cell, the level that a route of it starts from.

        Not of all its messages but of its routes, a vote each: a busy route says much about itself and little about the next one.
        """
        if self._levels_at == now_ms and len(self._levels) == len(self._level):
            return self._levels
        routes, connectors = (np.fromiter(part, np.int64) for part in (self._supplier, self._supplier.values()))
        row = self._rows(routes[:, np.newaxis], now_ms, np.array([_CLASSLESS]))[:, 0]
        tries, size = row[:, TRIES] + self.evidence[routes], len(self._level)
        vote = tries / (tries + self._tuning.strengths[_CLASSLESS])
        votes = np.bincount(connectors, vote, size)
        yes = np.bincount(connectors, vote * np.minimum(row[:, GOOD] / np.maximum(tries, 1e-9), 1.0), size)
        voice = votes / (votes + 1.0)
        prior, k = self._tuning.prior, self._tuning.prior_votes
        general = ((voice * yes / np.maximum(votes, 1e-9)).sum() + k * prior) / (voice.sum() + k)
        self._levels_at, self._levels = now_ms, (yes + general) / (votes + 1.0)
        return self._levels

    def _rows(self, chains: Ints, now_ms: int, levels: Ints | None = None) -> Floats:
        levels = np.arange(LEVELS) if levels is None else levels
        rows = self._own[chains]
        if self._peers:
            trusted = np.where(self._muted[chains] > now_ms, 0.0, 1.0)
            rows = rows + self._others[chains] * trusted[:, :, np.newaxis]
        return np.asarray(rows * self._scale(levels, now_ms)[np.newaxis, :, np.newaxis])

    def _scale(self, levels: Ints, now_ms: int) -> Floats:
        return np.asarray(np.exp2((self._ref - now_ms) / self._half[levels]))

    def _rebase(self, now_ms: int) -> None:
        """Move the landmark, so that weights stay far from what a float can hold."""
        if now_ms - self._ref < _REBASE_MS:
            return
        if self._ref:
            self._own *= self._scale(self._level, now_ms)[:, np.newaxis]
        self._ref = now_ms
        self._sum_others()

    def _sum_others(self) -> None:
        self._levels_at = -1
        self._others[:] = 0.0
        for peer in sorted(self._peers):  # one order of addition, whatever the order of arrival
            at, cells, rows = self._peers[peer]
            weight = np.exp2((at - self._ref) / self._half[self._level[cells]])
            np.add.at(self._others, cells, rows * weight[:, np.newaxis])
        self._others[0] = 0.0

    def _cell(self, key: str) -> int:
        cell = self._index.get(key)
        if cell is not None:
            return cell
        cell = len(self._index)
        if cell >= self._tuning.cells:
            return 0
        if cell == len(self._level):
            self._level, self._muted, self.evidence = (
                np.concatenate([a, np.zeros_like(a)]) for a in (self._level, self._muted, self.evidence)
            )
            self._own, self._others = (np.concatenate([a, np.zeros_like(a)]) for a in (self._own, self._others))
        self._index[key] = cell
        self._level[cell] = int(key[0])
        return cell


def _load(state: bytes) -> tuple[int, Sequence[str], NDArray[np.float32]]:
    try:
        version, at, size = _HEADER.unpack_from(state)
        if version != _VERSION:
            raise ValueError(f"statistics of version {version}, and only {_VERSION} is known")
        body = zlib.decompress(state[_HEADER.size :])
        keys = body[:size].decode().split("\n") if size else []
        n = len(keys)
        counts = np.frombuffer(body, "<f4", n * CURVE, size).reshape(n, CURVE)
        curves = np.frombuffer(body, "<u2", n * BINS, size + n * CURVE * 4).reshape(n, BINS)
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise ValueError("not a dump of routing statistics") from error
    levels = {str(level) for level in range(LEVELS)}
    if not all(key[:1] in levels for key in keys):
        raise ValueError("a dump of routing statistics with unknown levels")
    return at, keys, np.hstack([counts, (curves.astype("<u4") << 16).view("<f4")])
