"""A decision and its record: compact, versioned, and enough to make the same decision again.

Record, little-endian: a header of 64 bytes, 24 bytes per candidate in the static order, their names, each after its length, and the outlook.

    header     version u8, candidates u8, flags u8, chosen u8, model u32, features u32, seed u64, at u64 ms,
               value, price factor, latency price, budget, gamma, delta, alpha, young share, surplus: f32
    candidate  p, low, high: u16 / 65535; flags u8; 0 u8; price u32; latency s f32 | utility f32, propensity f32
    outlook    p, low, high of the chosen one, calibrated: u16 / 65535; not in version 1

What stands before the bar is what score and choice go by, and quantised before they do. `replay` takes it from there.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.catalog import Route
from controlplane.routing.choose import FRESH, NO_BIND, OPEN_BREAKER, PROBE, YOUNG, Inputs, Rules, Weighed, pick, weigh

__all__ = [
    "CANDIDATE",
    "HEADER",
    "OUTLOOK",
    "Candidate",
    "Choice",
    "Decision",
    "Excluded",
    "Outlook",
    "Scored",
    "Unpacked",
    "replay",
    "same",
    "unpack",
    "words",
]

HEADER = struct.Struct("<BBBBIIQQ9f")
"""64 bytes."""
_LEAD = -HEADER.size % 3
"""Bytes behind the header that complete its last three: what is behind them is the same text in each message's record."""
CANDIDATE = np.dtype(
    [
        ("p", "<u2"),
        ("low", "<u2"),
        ("high", "<u2"),
        ("flags", "u1"),
        ("zero", "u1"),
        ("price", "<u4"),
        ("latency", "<f4"),
        ("utility", "<f4"),
        ("propensity", "<f4"),
    ]
)
OUTLOOK = struct.Struct("<HHH")
VERSION = 2
_FORMER = 1
EXPLORED, SHADOW, NEAR_EQUALS, OTP, TRANSACTIONAL = 1, 2, 4, 8, 16
"""Bits of the header's flags: exploration was allowed; recorded only; the rule for explored routes; the class (neither: marketing)."""
_RULES = {NO_BIND: "no_bind", OPEN_BREAKER: "breaker_open"}


class Scored(NamedTuple):
    """One candidate as it was scored."""

    route: str
    p: float
    """P(delivered within the class's deadline), trust in receipts included: what routes are compared by."""
    low: float
    high: float
    """90 % interval of p."""
    latency: float
    """Expected seconds to the receipt, of those delivered in time."""
    price: int
    """Minor units for the whole message."""
    utility: float
    """value × p − price − latency, by the tenant's terms, in minor units."""
    propensity: float
    """Probability with which it was chosen."""
    probe: bool = False
    """Its breaker is half open."""
    young: bool = False
    """Too few outcomes to be known."""


class Excluded(NamedTuple):
    """A candidate that the engine itself left out, and its rule: breaker_open or no_bind. With no other left it is used all the same."""

    route: str
    rule: str


class Outlook(NamedTuple):
    """What is expected of the chosen route, in the light of what became of such expectations: it was chosen because it looked good, and that may be luck."""

    p: float
    """P(delivered within the class's deadline)."""
    low: float
    high: float
    """90 % interval."""


class Unpacked(NamedTuple):
    """A record, readable."""

    model: str
    """Version of what was learned, hex."""
    features: str
    """Hash of the message's features, hex."""
    at: int
    """ms since the epoch."""
    seed: int
    cls: str
    shadow: bool
    """The static order was used."""
    explored: bool
    """Whether the conservative constraint allowed exploration."""
    value: float
    price_factor: float
    latency_price: float
    budget: float
    surplus: float
    """Estimated utility saved over the constraint, before this message."""
    candidates: tuple[Scored, ...]
    excluded: tuple[Excluded, ...]
    chosen: str
    outlook: Outlook


@dataclass(frozen=True, slots=True)
class Candidate:
    """A route that may carry it."""

    route: Route
    price: int
    """Minor units for the whole message."""
    prefix: str
    """The prefix that matched."""
    healthy: bool
    """Whether its connector has a live bind here."""


class Choice:
    """One candidate chosen by one row of scores: what all such decisions have in common."""

    __slots__ = ("candidates", "reason", "tail", "text")

    def __init__(self, candidates: tuple[Candidate, ...], tail: bytes) -> None:
        self.candidates = candidates
        """The chosen one, then in which order to fall back."""
        self.tail = tail
        """The record behind its header."""
        self.text = ""
        """The rest of it as text, once somebody has asked for it …"""
        self.reason = ""
        """… and why, in words."""


class Decision:
    """What was decided for one message. Only its record is kept; the rest is read out of it when asked for."""

    __slots__ = ("choice", "header")

    def __init__(self, header: bytes, choice: Choice) -> None:
        self.header = header
        self.choice = choice

    @property
    def chosen(self) -> str:
        """The route."""
        return self.choice.candidates[0].route.name

    @property
    def ranked(self) -> tuple[str, ...]:
        """Routes: the chosen one, then in which order to fall back."""
        return tuple([candidate.route.name for candidate in self.choice.candidates])

    @property
    def record(self) -> bytes:
        """As this module says."""
        return self.header + self.choice.tail

    @property
    def encoded(self) -> str:
        """The record as text (base64url without padding), as events keep it."""
        choice = self.choice
        if not choice.text:
            choice.text = urlsafe_b64encode(choice.tail[_LEAD:]).rstrip(b"=").decode()
        return urlsafe_b64encode(self.header + choice.tail[:_LEAD]).decode() + choice.text

    @property
    def candidates(self) -> tuple[Scored, ...]:
        """In the static order."""
        return unpack(self.record).candidates

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        """Candidates that were left out."""
        return unpack(self.record).excluded

    @property
    def reason(self) -> str:
        """Why the first was chosen, in words."""
        if not self.choice.reason:
            self.choice.reason = words(self.record)
        return self.choice.reason


def unpack(record: bytes | str) -> Unpacked:
    """A record (or Decision.encoded) in readable form. Raises ValueError for what is none."""
    header, table, names, outlook = _parts(record)
    _, _, flags, chosen, model, features, seed, at, value, price, latency, budget, *_, surplus = header
    scored = tuple(
        Scored(
            name,
            float(row["p"]) / 65535,
            float(row["low"]) / 65535,
            float(row["high"]) / 65535,
            float(row["latency"]),
            int(row["price"]),
            float(row["utility"]),
            float(row["propensity"]),
            bool(row["flags"] & PROBE),
            bool(row["flags"] & (YOUNG | FRESH)),
        )
        for name, row in zip(names, table, strict=True)
    )
    excluded = tuple(
        Excluded(name, rule)
        for name, row in zip(names, table, strict=True)
        for bit, rule in _RULES.items()
        if row["flags"] & bit
    )
    cls = "otp" if flags & OTP else "transactional" if flags & TRANSACTIONAL else "marketing"
    return Unpacked(
        f"{model:08x}",
        f"{features:08x}",
        at,
        seed,
        cls,
        bool(flags & SHADOW),
        bool(flags & EXPLORED),
        value,
        price,
        latency,
        budget,
        surplus,
        scored,
        excluded,
        names[chosen],
        outlook or Outlook(*scored[chosen][1:4]),
    )


def replay(record: bytes | str) -> tuple[str, NDArray[np.float32], NDArray[np.float32]]:
    """Choose again from the inputs in the record: the chosen route, utilities and propensities (K,). Raises ValueError for what is no record."""
    header, table, names, _ = _parts(record)
    seed, surplus = header[6], header[-1]
    weighed = _weigh(header, table)
    best = int(weighed.best[0])
    if surplus >= weighed.need[0]:
        propensity = weighed.propensity[0]
        chosen = pick(propensity.tolist(), best, seed)
    else:
        propensity, chosen = np.where(np.arange(len(table)) == best, 1.0, 0.0), best
    return names[chosen], weighed.utility[0].astype("<f4"), propensity.astype("<f4")


def same(record: bytes | str) -> bool:
    """Whether a replay gives the recorded decision bit for bit."""
    header, table, names, _ = _parts(record)
    chosen, utility, propensity = replay(record)
    return (
        chosen == names[header[3]]
        and utility.tobytes() == table["utility"].tobytes()
        and propensity.tobytes() == table["propensity"].tobytes()
    )


def words(record: bytes | str) -> str:
    """Why the chosen route was chosen, in plain English."""
    seen = unpack(record)
    by_name = {item.route: item for item in seen.candidates}
    out = {item.route for item in seen.excluded}
    chosen = by_name[seen.chosen]
    usable = [item for item in seen.candidates if item.route not in out] or list(seen.candidates)
    said = f"{chosen.route}: " + _why(chosen, usable, seen)
    if seen.excluded:
        reasons = {"breaker_open": "not delivering at present", "no_bind": "no live bind"}
        said += "; left out: " + ", ".join(f"{item.route} ({reasons[item.rule]})" for item in seen.excluded)
    return said


def _why(chosen: Scored, usable: list[Scored], seen: Unpacked) -> str:
    likely, low, high = seen.outlook
    about = f"{likely:.1%} likely to be delivered in time ({low:.1%} to {high:.1%}), price {chosen.price}"
    others = [item for item in usable if item.route != chosen.route]
    if chosen.route in {item.route for item in seen.excluded}:
        return f"nothing better is left; {about}"
    if not others:
        return f"the only usable route; {about}"
    first = max(usable, key=lambda item: item.propensity)
    if first is not chosen:
        what = (
            "probe of a route that comes back"
            if chosen.probe
            else "first messages of a route"
            if chosen.young
            else "exploration"
        )
        return f"{what} with probability {chosen.propensity:.2%}, {first.route} is thought best; {about}"
    if chosen.young and chosen.utility < max(item.utility for item in usable):
        return f"first messages of a route, while little is known of any; {about}"
    best_p = max(usable, key=lambda item: item.p)
    near = [item for item in usable if item.p >= best_p.p - 0.01]
    if chosen in near and chosen.price == min(item.price for item in near) and len(near) > 1:
        dearest = "cheapest" if any(item.price > chosen.price for item in near) else "as cheap as any"
        return f"{dearest} of {len(near)} within 1 % of the best delivery; {about}"
    if chosen is best_p:
        return f"best delivery of {len(usable)}; {about}"
    return f"best balance of delivery and price of {len(usable)} ({best_p.route}: {best_p.p:.1%} for {best_p.price}); {about}"


def _parts(record: bytes | str) -> tuple[tuple[int, ...], NDArray[np.void], list[str], Outlook | None]:
    try:
        data = urlsafe_b64decode(record + "=" * (-len(record) % 4)) if isinstance(record, str) else record
        header = HEADER.unpack_from(data)
        version, count, chosen = header[0], header[1], header[3]
        if version not in {_FORMER, VERSION}:
            raise ValueError(f"a decision of version {version}, and only {_FORMER} and {VERSION} are known")
        table = np.frombuffer(data, CANDIDATE, count, HEADER.size)
        names, at = [], HEADER.size + count * CANDIDATE.itemsize
        for _ in range(count):
            names.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        outlook = None
        if version == VERSION:
            outlook = Outlook(*(part / 65535 for part in OUTLOOK.unpack_from(data, at)))
            at += OUTLOOK.size
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise ValueError("not the record of a decision") from error
    if at != len(data) or chosen >= count:
        raise ValueError("not the record of a decision: lengths do not fit")
    return header, table, names, outlook


def _weigh(header: tuple[int, ...], table: NDArray[np.void]) -> Weighed:
    flags = header[2]
    value, price, latency, budget, gamma, delta, alpha, young_share = (np.array([float(x)]) for x in header[8:16])
    rules = Rules(
        value, price, latency, budget, gamma, delta, alpha, young_share, np.array([bool(flags & NEAR_EQUALS)])
    )
    p, low, high = (table[name].astype(np.float64)[np.newaxis] / 65535.0 for name in ("p", "low", "high"))
    inputs = Inputs(
        p,
        low,
        high,
        table["latency"].astype(np.float64)[np.newaxis],
        table["price"].astype(np.float64)[np.newaxis],
        table["flags"].astype(np.int64)[np.newaxis],
        np.ones((1, len(table)), dtype=bool),
    )
    return weigh(rules, inputs)
