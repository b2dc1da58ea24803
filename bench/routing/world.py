"""A seeded world of carriers, networks, tenants and messages, whose truth is known: what each route would have done with each message.

A world is drawn from `parameters.toml` and a seed, before any policy runs, and nothing in it depends on what a policy does. So all policies of a seed
meet the same messages and the same luck (their differences are paired), and regret is exact: the oracle knows every parameter.

Of a message on a route, the truth is

    P(delivered)             = reach(network) x sigmoid(logit(route, network, class, origin, encoding, hour, drift)) x filters(URL, keyword), then events
    P(within the deadline T) = P(delivered) x F(T), F the mixture of two lognormals of the latency
    U                        = value x P(within T) - price - latency price x E[latency | within T]

and a receipt, where it is not missing, comes a lognormal lag or a long tail after the delivery, or after the failure.
A submit may be refused at once; then nothing is paid, and the message can go to another route.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "REFUSAL_SECONDS", "Event", "Outcome", "World", "load"]

Parameters = dict[str, Any]
Floats = NDArray[np.float64]
Small = NDArray[np.float32]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

CLASSES = ("otp", "transactional", "marketing")
KINDS = ("direct", "aggregator", "grey")
REFUSAL_SECONDS = 1.0
"""What a refused submit costs, at the price of latency."""
_CHUNK = 4_096
_BEGIN_MS = 1_788_220_800_000
"""2026-09-01T00:00:00Z; the hour of the day is drawn."""
_GOLDEN = 0.6180339887498949

_KEYWORD = "prize"
_PLAIN = {
    "otp": (
        "{n} is your code for {t}.",
        "Your {t} verification code: {n}",
        "{t}: use {n} to sign in",
        "Code {n}. {t} will never ask for it.",
    ),
    "transactional": (
        "{t}: your order {n} was dispatched today and arrives tomorrow",
        "{t}: payment of {n} received, thank you",
        "Your appointment {n} at {t} is tomorrow at nine",
        "{t}: your balance statement {n} is ready",
    ),
    "marketing": (
        "{t}: new autumn collection in all shops, offer {n}",
        "Only this week at {t}: two for one with code {n}",
        "{t} members save more, your personal code is {n}",
        "We miss you at {t}, come back with voucher {n} and enjoy free delivery",
    ),
}


def load(path: Path | None = None) -> Parameters:
    """The fixed parameters; of another file for experiments."""
    with (path or Path(__file__).with_name("parameters.toml")).open("rb") as file:
        return tomllib.load(file)


class Event(NamedTuple):
    """What happens in the world: seconds from its beginning."""

    kind: str
    begins: float
    ends: float
    route: int
    """-1: several."""
    network: int = -1
    """-1: all."""


class Outcome(NamedTuple):
    """What became of one message on one route; times in ms since the epoch."""

    delivered: bool
    in_time: bool
    receipt_at: int
    """0: none comes."""
    receipt_delivered: bool
    converted_at: int
    """0: the tenant does not say."""
    converted: bool


@dataclass(frozen=True)
class Messages:
    """One row each, by time."""

    at_ms: Ints
    second: Floats
    """From the beginning."""
    country: Ints
    network: Ints
    """Where the recipient is."""
    cls: Ints
    tenant: Ints
    origin: Ints
    url: Flags
    keyword: Flags
    ucs2: Flags
    parts: Ints
    template: Ints
    to: list[str]
    body: list[str]
    local_hour: Floats


@dataclass(frozen=True)
class Tenants:
    name: list[str]
    origin: Ints
    value: Floats
    """Tenant x class: units for a delivery within the deadline."""
    reports: Flags
    """Whether it says which one-time passwords were used."""


@dataclass(frozen=True)
class Carriers:
    """What is true of each route; arrays over routes, the faking route second to last, the new one last."""

    name: list[str]
    supplier: list[str]
    kind: Ints
    covers: Flags
    """Route x country."""
    classes: Flags
    """Route x class."""
    price: Ints
    """Route x country, units a part, before price changes."""
    logit: Floats
    """Route x network x class."""
    origin: Floats
    url: Floats
    keyword: Floats
    ucs2: Floats
    evening_logit: Floats
    evening_latency: Floats
    mu: Floats
    """Log seconds of the median latency."""
    slow: Floats
    missing: Floats
    negative: Floats
    lag_mu: Floats
    tail: Floats
    appears: Floats
    """Second from which it can be used."""


def _phi(z: Floats) -> Floats:
    """The normal distribution function (Abramowitz and Stegun 7.1.26; error below 1.5e-7)."""
    x = np.abs(z) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    half = 0.5 * poly * np.exp(-x * x)
    return np.where(z < 0, half, 1 - half)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


class World:
    """All that happens in one seed."""

    def __init__(self, parameters: Parameters, seed: int) -> None:
        self.parameters, self.seed = parameters, seed
        rng = np.random.default_rng([seed, 20260901])
        time = parameters["time"]
        self.stationary_s = float(time["stationary_s"])
        self.end_s = self.stationary_s + float(time["breaks_s"])
        self.countries: list[dict[str, Any]] = parameters["country"]
        self.networks = [
            (at, name, prefix) for at, one in enumerate(self.countries) for name, prefix in one["networks"].items()
        ]
        self.network_country = np.array([country for country, _, _ in self.networks])
        self.deadline_s = np.array([float(parameters["classes"][cls]["deadline_s"]) for cls in CLASSES])
        self.latency_price = np.array([float(parameters["classes"][cls]["latency_price"]) for cls in CLASSES])
        self.begin_ms = _BEGIN_MS + int(rng.integers(0, 24 * 3_600)) * 1_000
        self.tenants = self._draw_tenants(rng)
        self.messages = self._draw_messages(rng)
        self.carriers = self._draw_carriers(rng)
        self._drift = self._draw_drift(rng)
        self._luck = self._draw_luck(rng)
        self._reach = rng.uniform(*parameters["networks"]["reachable"], len(self.networks))
        self.price_factors: list[tuple[float, int, int, float]] = []
        self.events = self._draw_events(rng)
        self._evaluate()

    # What a policy may see.

    @property
    def count(self) -> int:
        return len(self.messages.second)

    def candidates(self, i: int) -> Ints:
        """Routes that could carry message i."""
        return np.flatnonzero(self.available[i])

    def price(self, i: int, route: int) -> int:
        """Units for all parts, at that moment."""
        return int(self.prices[i, route])

    # What only the judge may see.

    def refuses(self, i: int, route: int) -> bool:
        """Whether the carrier answers the submit with an error."""
        return bool((self._luck["refuse"][i] + route * _GOLDEN) % 1.0 < self.refused[i, route])

    def best(self, i: int) -> tuple[int, float]:
        """The oracle's choice and its utility: the best of the routes that would take the message."""
        value, found = -math.inf, -1
        for route in self.candidates(i):
            if self.utility[i, route] > value and not self.refuses(i, route):
                value, found = float(self.utility[i, route]), int(route)
        return found, value

    def outcome(self, i: int, route: int) -> Outcome:
        """What happens after the carrier took it. The draws of a message are the same on all routes."""
        luck, of, m = self._luck, self.carriers, self.messages
        at, cls = int(m.at_ms[i]), int(m.cls[i])
        delivered = bool(luck["deliver"][i] < self.delivered[i, route])
        z = float(luck["latency"][i])
        p = self.parameters["latency"]
        if luck["slow"][i] < of.slow[route]:
            seconds = p["slow_median_s"] * math.exp(p["slow_sigma"] * z)
        else:
            seconds = math.exp(float(self.mu[i, route]) + p["sigma"] * z)
        in_time = delivered and seconds <= self.deadline_s[cls]
        receipt_at, says = 0, delivered
        if not self.silent[i, route] and luck["missing"][i] >= of.missing[route]:
            if route == self.faker:
                says = bool(luck["negative"][i] < self.parameters["events"]["faker"]["reported"])
                seconds = math.exp(float(of.mu[route]) + p["sigma"] * z)
            if says or route == self.faker or luck["negative"][i] < of.negative[route]:
                r = self.parameters["routes"]
                if luck["tail"][i] < of.tail[route]:
                    low, high = r["receipt_tail_s"]
                    lag = low * (high / low) ** float(luck["tail_s"][i])
                else:
                    lag = math.exp(float(of.lag_mu[route]) + r["receipt_lag_sigma"] * float(luck["lag"][i]))
                receipt_at = at + int(1_000 * (seconds + lag))
        converted_at, converted = self._conversion(i, at, seconds, delivered=delivered, in_time=in_time)
        return Outcome(delivered, in_time, receipt_at, says, converted_at, converted)

    def _conversion(self, i: int, at: int, seconds: float, *, delivered: bool, in_time: bool) -> tuple[int, bool]:
        luck, p = self._luck, self.parameters["tenants"]
        if self.messages.cls[i] != 0 or not self.tenants.reports[self.messages.tenant[i]]:
            return 0, False
        chance = p["converted"] if in_time else p["converted_late"] if delivered else p["converted_undelivered"]
        after = (seconds if delivered else 0.0) + p["conversion_median_s"] * math.exp(
            p["conversion_sigma"] * float(luck["convert_s"][i])
        )
        if luck["convert"][i] < chance and after < p["not_converted_after_s"]:
            return at + int(1_000 * after), True
        return at + 1_000 * int(p["not_converted_after_s"]), False

    # Drawing.

    def _draw_tenants(self, rng: np.random.Generator) -> Tenants:
        p = self.parameters["tenants"]
        count = p["count"]
        factor = rng.uniform(*p["value_factor"], count)
        value = np.array([self.parameters["classes"][cls]["value"] for cls in CLASSES])
        reports = rng.random(count) < p["report_conversions"]
        reports[rng.permutation(count)[:2]] = True
        return Tenants(
            [f"tenant-{n}" for n in range(count)],
            rng.integers(0, len(p["origins"]), count),
            factor[:, None] * value[None, :],
            reports,
        )

    def _draw_messages(self, rng: np.random.Generator) -> Messages:
        p, t = self.parameters, self.parameters["tenants"]
        count = int(rng.poisson(p["time"]["messages_per_s"] * self.end_s))
        second = np.sort(rng.uniform(0, self.end_s, count))
        weights = 1 / np.arange(1, t["count"] + 1) ** t["zipf"]
        tenant = rng.choice(t["count"], count, p=weights / weights.sum())
        shares = np.array([one["share"] for one in self.countries])
        mixes = rng.dirichlet(t["country_concentration"] * shares * len(shares), t["count"])
        country = _pick(rng, mixes[tenant])
        class_shares = np.array([p["classes"][cls]["share"] for cls in CLASSES])
        cls = _pick(rng, rng.dirichlet(8 * class_shares, t["count"])[tenant])
        by_country = [np.flatnonzero(self.network_country == at) for at in range(len(self.countries))]
        weight = [rng.dirichlet(np.full(len(found), 4.0)) for found in by_country]
        ranges, network = np.zeros(count, int), np.zeros(count, int)
        for at, found in enumerate(by_country):
            rows = np.flatnonzero(country == at)
            ranges[rows] = rng.choice(found, len(rows), p=weight[at])
            moved = rng.random(len(rows)) < p["networks"]["ported"]
            network[rows] = np.where(moved, rng.choice(found, len(rows), p=weight[at]), ranges[rows])
        template = rng.integers(0, t["templates"], count)
        shape = (t["count"], len(CLASSES), t["templates"])
        url, keyword = (
            rng.random(shape) < np.array([t[name][cls] for cls in CLASSES])[None, :, None]
            for name in ("url_share", "keyword_share")
        )
        ucs2 = rng.random(shape) < t["ucs2_share"]
        chosen = (tenant, cls, template)
        numbers = rng.integers(0, 10**9, count)
        codes = rng.integers(100_000, 1_000_000, count)
        offset = np.array([one["utc_offset_h"] for one in self.countries])
        at_ms = self.begin_ms + (1_000 * second).astype(np.int64)
        body = [
            self._body(*rows)
            for rows in zip(
                tenant.tolist(),
                cls.tolist(),
                template.tolist(),
                codes.tolist(),
                url[chosen],
                keyword[chosen],
                ucs2[chosen],
                strict=True,
            )
        ]
        lengths = np.array([len(text) for text in body])
        parts = np.where(
            ucs2[chosen], np.where(lengths > 70, -(-lengths // 67), 1), np.where(lengths > 160, -(-lengths // 153), 1)
        )
        return Messages(
            at_ms=at_ms,
            second=second,
            country=country,
            network=network,
            cls=cls,
            tenant=tenant,
            origin=self.tenants.origin[tenant],
            url=url[chosen],
            keyword=keyword[chosen],
            ucs2=ucs2[chosen],
            parts=parts,
            template=template,
            to=[self._number(at, number) for at, number in zip(ranges.tolist(), numbers.tolist(), strict=True)],
            body=body,
            local_hour=(at_ms / 3_600_000 + offset[country]) % 24,
        )

    def _body(self, tenant: int, cls: int, template: int, code: int, url: bool, keyword: bool, ucs2: bool) -> str:
        text = _PLAIN[CLASSES[cls]][template % 4].format(
            n=code, t=f"Shop{'ABCDEFGHIJKL'[tenant % 12]}{template // 4 or ''}"
        )
        if keyword:
            text += f" and win a {_KEYWORD}"
        if url:
            text += f" https://s{tenant}.example/{code % 10_000}"
        return text + " – łąć" if ucs2 else text

    def _number(self, network: int, number: int) -> str:
        country, _, prefix = self.networks[network]
        calling = {"DE": 2, "GB": 2, "FR": 2, "ES": 2, "IT": 2, "PL": 2, "BR": 2, "NG": 3}[
            self.countries[country]["code"]
        ]
        rest = self.countries[country]["digits"] - (len(prefix) - calling)
        return f"+{prefix}{number % 10**rest:0{rest}d}"

    def _draw_carriers(self, rng: np.random.Generator) -> Carriers:
        p = self.parameters["routes"]
        known = p["counts"][self.seed % len(p["counts"])]
        count, faker, new = known + 2, known, known + 1
        self.faker, self.new = faker, new
        n_country, n_network = len(self.countries), len(self.networks)
        kind = np.array([*_kinds(known, p), 2, 0])
        of = [p[KINDS[one]] for one in kind]
        suppliers = max(2, math.ceil(p["suppliers"] * known))
        supplier = np.concatenate([rng.permutation(np.resize(np.arange(suppliers), known)), [suppliers, suppliers + 1]])
        covers = rng.random((count, n_country)) < np.array([one["coverage"] for one in of])[:, None]
        least = min(p["least_per_country"], known)
        for at in range(n_country):
            lacking = rng.permutation(np.flatnonzero(~covers[:known, at]))
            covers[lacking[: max(0, least - int(covers[:known, at].sum()))], at] = True
        for route in np.flatnonzero(~covers[:known].any(axis=1)):
            covers[route, rng.integers(n_country)] = True
        covers[faker] = True
        covers[new] = False
        covers[new, rng.permutation(n_country)[: n_country // 2]] = True
        classes = np.ones((count, len(CLASSES)), bool)
        classes[:known, 2] = rng.random(known) >= p["no_marketing"]
        if not classes[:known, 2].any():
            classes[:, 2] = True
        for at in range(n_country):  # marketing must be able to go somewhere
            if not (covers[:known, at] & classes[:known, 2]).any():
                classes[np.flatnonzero(covers[:known, at]), 2] = True
        base = (
            np.array([rng.normal(*one["logit"]) for one in of])
            + rng.normal(0, p["supplier_sd"], suppliers + 2)[supplier]
        )
        events = self.parameters["events"]
        base[faker], base[new] = events["faker"]["logit"], events["new_route"]["logit"]
        network = (
            rng.normal(0, self.parameters["networks"]["sd"], n_network)[None, :]
            + rng.normal(0, p["country_sd"], (count, n_country))[:, self.network_country]
            + rng.normal(0, p["network_sd"], (count, n_network))
        )
        logit = base[:, None, None] + network[:, :, None] + rng.normal(0, p["class_sd"], (count, 1, len(CLASSES)))
        factor = np.array([rng.uniform(*one["price"], n_country) for one in of])
        factor[faker], factor[new] = events["faker"]["price"], events["new_route"]["price"]
        prices = np.array([one["price"] for one in self.countries])
        median = np.array([one["latency_median_s"] for one in of])
        median[new] = events["new_route"]["latency_median_s"]
        filters = rng.random(count) < np.array([one["url_filters"] for one in of])
        keywords = (rng.random(count) < p["keyword_filters"]) & (kind > 0)
        appears = np.zeros(count)
        appears[faker] = self.stationary_s + events["faker"]["at"]
        appears[new] = self.stationary_s + events["new_route"]["at"]
        return Carriers(
            name=[f"r{at:02d}" for at in range(count)],
            supplier=[f"c{at:02d}" for at in supplier],
            kind=kind,
            covers=covers,
            classes=classes,
            price=np.maximum(1, np.rint(prices[None, :] * factor)).astype(int),
            logit=logit,
            origin=rng.normal(0, p["origin_sd"], (count, len(self.parameters["tenants"]["origins"]))),
            url=np.where(filters, rng.uniform(*p["filtered_factor"], count), 1.0),
            keyword=np.where(keywords, rng.uniform(*p["filtered_factor"], count), 1.0),
            ucs2=np.where(rng.random(count) < p["ucs2_penalised"], p["ucs2_logit"], 0.0),
            evening_logit=rng.uniform(*p["evening_logit"], count),
            evening_latency=rng.uniform(*p["evening_latency"], count),
            mu=np.log(median) + rng.normal(0, self.parameters["latency"]["route_sigma"], count),
            slow=np.array([one["slow_share"] for one in of]),
            missing=rng.uniform(*p["missing_receipts"], count),
            negative=rng.uniform(*p["negative_receipts"], count),
            lag_mu=np.log(rng.uniform(*p["receipt_lag_median_s"], count)),
            tail=rng.uniform(*p["receipt_tail"], count),
            appears=appears,
        )

    def _draw_drift(self, rng: np.random.Generator) -> Floats:
        """Minute of the second part x route x country."""
        minutes = int((self.end_s - self.stationary_s) / 60) + 2
        shape = (minutes, len(self.carriers.name), len(self.countries))
        steps = rng.normal(0, self.parameters["drift"]["sd_per_root_hour"] / math.sqrt(60), shape)
        steps[0] = 0
        return np.cumsum(steps, axis=0)

    def _draw_luck(self, rng: np.random.Generator) -> dict[str, Floats]:
        uniform = ("deliver", "slow", "missing", "negative", "tail", "tail_s", "convert", "refuse")
        normal = ("latency", "lag", "convert_s")
        return {name: rng.random(self.count) for name in uniform} | {
            name: rng.normal(0, 1, self.count) for name in normal
        }

    def _draw_events(self, rng: np.random.Generator) -> list[Event]:
        """In order of time; the routes that they hit are those that the oracle would use most, with what happened before."""
        p = self.parameters["events"]
        events: list[Event] = []
        for kind, of in sorted(
            ((kind, of) for kind, of in p.items() if kind != "jitter_s"), key=lambda item: float(item[1]["at"])
        ):
            if kind in ("faker", "new_route"):
                route = self.faker if kind == "faker" else self.new
                events.append(Event(kind, float(self.carriers.appears[route]), self.end_s, route))
                continue
            begins = self.stationary_s + of["at"] + rng.uniform(-1, 1) * p["jitter_s"]
            ends = begins + of.get("lasts", self.end_s)
            if kind == "prices":
                self._draw_prices(rng, begins)
                events.append(Event(kind, begins, ends, -1))
                continue
            route, network = self._most_used(begins, events, of["rank"])
            events.append(Event(kind, begins, ends, route, network if kind == "network_outage" else -1))
        return events

    def _draw_prices(self, rng: np.random.Generator, begins: float) -> None:
        p = self.parameters["events"]["prices"]
        pairs = np.argwhere(self.carriers.covers[: self.faker])
        for at in rng.permutation(len(pairs))[: p["count"]]:
            self.price_factors.append(
                (begins, int(pairs[at][0]), int(pairs[at][1]), float(p["factors"][int(rng.integers(2))]))
            )

    def _most_used(self, begins: float, events: Sequence[Event], rank: int) -> tuple[int, int]:
        """Route, and the network it serves most."""
        rows = np.flatnonzero((self.messages.second >= begins - 600) & (self.messages.second < begins))
        truth = self._truth(rows, events)
        choice = np.argmax(np.where(truth["available"], truth["utility"], -np.inf), axis=1)
        route = int(np.argsort(-np.bincount(choice, minlength=len(self.carriers.name)), kind="stable")[rank - 1])
        network = np.bincount(self.messages.network[rows[choice == route]], minlength=len(self.networks))
        return route, int(np.argmax(network))

    # The truth.

    def _evaluate(self) -> None:
        """Message x route, for all of them."""
        shape = (self.count, len(self.carriers.name))
        self.available: Flags = np.zeros(shape, bool)
        self.silent: Flags = np.zeros(shape, bool)
        self.prices: Small = np.zeros(shape, np.float32)
        self.refused: Small = np.zeros(shape, np.float32)
        self.delivered: Small = np.zeros(shape, np.float32)
        self.in_time: Small = np.zeros(shape, np.float32)
        self.mu: Small = np.zeros(shape, np.float32)
        self.utility: Small = np.zeros(shape, np.float32)
        for low in range(0, self.count, _CHUNK):
            rows = np.arange(low, min(low + _CHUNK, self.count))
            for name, found in self._truth(rows, self.events).items():
                getattr(self, name)[rows] = found

    def _truth(self, rows: Ints, events: Sequence[Event]) -> dict[str, NDArray[Any]]:
        """Of these messages on every route: available, silent, prices, refused, delivered, in_time, mu, utility."""
        m, of, p = self.messages, self.carriers, self.parameters["routes"]
        second, country, network, cls = m.second[rows], m.country[rows], m.network[rows], m.cls[rows]
        routes = np.arange(len(of.name))[None, :]
        available = of.covers[:, country].T & of.classes[:, cls].T & (second[:, None] >= of.appears[None, :])
        prices = of.price[:, country].T * m.parts[rows][:, None].astype(float)
        for begins, route, where, factor in self.price_factors:
            prices[(second >= begins) & (country == where), route] *= factor
        prices = np.rint(prices)
        away = np.abs(m.local_hour[rows] - p["evening_hour"])
        evening = np.exp(-0.5 * (np.minimum(away, 24 - away) / p["evening_sd_h"]) ** 2)[:, None]
        logit = of.logit[:, network, cls].T + of.origin[:, m.origin[rows]].T - evening * of.evening_logit[None, :]
        logit = logit + m.ucs2[rows][:, None] * of.ucs2[None, :] + self._drifted(second, country)
        delivered = self._reach[network][:, None] * _sigmoid(logit)
        delivered *= np.where(m.url[rows][:, None], of.url[None, :], 1.0) * np.where(
            m.keyword[rows][:, None], of.keyword[None, :], 1.0
        )
        mu = of.mu[None, :] + np.log1p(evening * of.evening_latency[None, :])
        refused = np.full(delivered.shape, float(p["transient_refusals"]))
        silent = np.zeros(delivered.shape, bool)
        for event in events:
            if event.route < 0 or event.kind in ("faker", "new_route"):
                continue
            hit = ((second >= event.begins) & (second < event.ends))[:, None] & (routes == event.route)
            if event.network >= 0:
                hit &= (network == event.network)[:, None]
            q = self.parameters["events"][event.kind]
            if event.kind in ("outage", "network_outage"):
                silent |= hit
                delivered = np.where(hit, 0.0, delivered)
            elif event.kind == "brown_out":
                delivered = np.where(hit, np.maximum(0.0, delivered - q["points"]), delivered)
            else:
                refused = np.where(hit, q["refused"], refused)
                mu = mu + hit * math.log(q.get("latency", 1.0))
        in_time, seconds = self._latency(mu, self.deadline_s[cls][:, None])
        in_time *= delivered
        utility = (
            self.tenants.value[m.tenant[rows], cls][:, None] * in_time
            - prices
            - self.latency_price[cls][:, None] * seconds
        )
        return {
            "available": available,
            "silent": silent,
            "prices": prices,
            "refused": refused,
            "delivered": delivered,
            "in_time": in_time,
            "mu": mu,
            "utility": utility,
        }

    def _drifted(self, second: Floats, country: Ints) -> Floats:
        at = np.maximum(0.0, (second - self.stationary_s) / 60)
        minute = at.astype(int)
        part = (at - minute)[:, None]
        return (1 - part) * self._drift[minute, :, country] + part * self._drift[minute + 1, :, country]

    def _latency(self, mu: Floats, deadline: Floats) -> tuple[Floats, Floats]:
        """P(latency <= deadline), and the mean of the latencies that are."""
        p = self.parameters["latency"]
        log_t = np.log(deadline)
        total, seconds = np.zeros(mu.shape), np.zeros(mu.shape)
        slow_mu = np.full(mu.shape, math.log(p["slow_median_s"]))
        for weight, middle, sigma in (
            (1 - self.carriers.slow, mu, p["sigma"]),
            (self.carriers.slow, slow_mu, p["slow_sigma"]),
        ):
            total += weight[None, :] * _phi((log_t - middle) / sigma)
            seconds += weight[None, :] * np.exp(middle + sigma**2 / 2) * _phi((log_t - middle - sigma**2) / sigma)
        return total, seconds / np.maximum(total, 1e-12)


def _pick(rng: np.random.Generator, chances: Floats) -> Ints:
    """One column of each row, by its chances."""
    return np.minimum(
        (np.cumsum(chances, axis=1) < rng.random(len(chances))[:, None]).sum(axis=1), chances.shape[1] - 1
    )


def _kinds(count: int, p: Parameters) -> list[int]:
    """Largest remainders, so that each kind has its share; at least one direct route."""
    exact = np.array([p[kind]["share"] * count for kind in KINDS])
    whole = np.floor(exact).astype(int)
    for at in np.argsort(whole - exact)[: count - whole.sum()]:
        whole[at] += 1
    return [kind for kind, many in enumerate(whole) for _ in range(many)]
