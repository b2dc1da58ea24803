"""Every number of the learned engine that can be tuned, and what a tenant's messages are worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from controlplane.domain.catalog import MessageClass

__all__ = ["HOUR", "ClassTuning", "Terms", "Tuning"]

HOUR = 3_600_000
"""Milliseconds."""


class Terms(NamedTuple):
    """What a tenant's messages of one class are worth: U = value × P(delivered in time) − price factor × price − latency × seconds."""

    value: float
    """Minor units that a message delivered in time is worth."""
    price: float = 1.0
    """How much a minor unit of price weighs; 1 = as it is, 0 = price does not matter."""
    latency: float = 0.0
    """Minor units that a second of expected latency costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTuning:
    """What differs between classes of messages."""

    deadline_ms: int
    """A message without receipt for this long was not delivered in time."""
    mature_ms: int
    """Age at which the content model learns from a message, all outcomes alike; ≤ deadline_ms."""
    remember_ms: int
    """How long a message is remembered after its submit: for late receipts and feedback; ≥ deadline_ms."""
    budget: float
    """Largest probability that a decision explores, a little below the share that is allowed.

    First messages of new routes and probes of broken ones are included.
    """
    delta: float
    """Routes whose utility, in units of `value`, may be within this of the best are plausible."""
    terms: Terms
    """Where a tenant sets none."""
    near_equals: bool = False
    """Explore only routes whose estimated (not just possible) utility is within `delta`."""
    young_share: float = 0.8
    """Part of the budget for routes that are not known yet and look better than the best known one."""


def _classes() -> dict[str, ClassTuning]:
    return {
        MessageClass.OTP: ClassTuning(
            deadline_ms=30_000,
            mature_ms=30_000,
            remember_ms=HOUR,
            budget=0.005,
            delta=0.06,
            near_equals=True,
            terms=Terms(50.0, 1.0, 0.05),
        ),
        MessageClass.TRANSACTIONAL: ClassTuning(
            deadline_ms=600_000,
            mature_ms=120_000,
            remember_ms=2 * HOUR,
            budget=0.0095,
            delta=0.05,
            terms=Terms(20.0, 1.0, 0.005),
        ),
        MessageClass.MARKETING: ClassTuning(
            deadline_ms=24 * HOUR,
            mature_ms=600_000,
            remember_ms=25 * HOUR,
            budget=0.048,
            delta=0.10,
            terms=Terms(8.0, 1.0, 0.0),
        ),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Of the whole engine."""

    classes: dict[str, ClassTuning] = field(default_factory=_classes)
    refresh_ms: int = 1_000
    """Scores are as old as this at most."""

    # Statistics: per level of the hierarchy, from route × network × class up to all.
    half_lives_ms: tuple[int, ...] = (HOUR, HOUR, 2 * HOUR, 6 * HOUR, 7 * 24 * HOUR, 14 * 24 * HOUR)
    strengths: tuple[float, ...] = (20.0, 20.0, 20.0, 10.0)
    """Tries that the level above counts for, as a Beta prior; from route × network × class up to route."""
    prior_votes: float = 2.0
    """Carriers that the prior below counts for; and a carrier's level counts as the mean of its routes and one route of all carriers' level."""
    prior: float = 0.9
    """P(delivered) before anything was seen."""
    curve_strength: float = 30.0
    """Receipts that the level above counts for in a delay curve."""
    pool: int = 50_000
    """Messages of one class that are remembered; above it the oldest are thinned, survivors carrying the weight."""
    cells: int = 100_000
    refusal: float = 0.2
    """A refused submit counts as this share of a failed try: the message goes another way."""
    reset_strength: float = 10.0
    """Tries that a cell still counts for after a break."""
    mute_ms: int = 1_800_000
    """How long peers' counts of such a cell are muted."""

    # The content model.
    model_half_life_ms: int = 12 * HOUR
    model_sd: float = 0.45
    """Prior standard deviation of all features together, on the logit."""
    damping: float = 1.0
    """The diagonal of the Hessian is taken this many times, because hashed features overlap."""

    # Calibration.
    calibration_half_life_ms: int = 2 * HOUR
    calibration_strength: float = 10.0
    """Precision with which each knot's shift is drawn to none: some hundred messages at 90 %."""
    calibration_bond: float = 3.0
    """Times that, a class's shift is drawn to that of all classes."""

    # The choice.
    gamma: float = 20.0
    """Inverse-gap weight (SquareCB); the gap is in units of `value`."""
    z: float = 1.645
    """Half-width of intervals in standard deviations: 90 %."""
    alpha: float = 0.01
    """Cumulative estimated utility stays above (1 − alpha) × the static order's."""
    fresh: int = 100
    """Outcomes of a route up to which it is taken at its best, while none is established."""
    young: int = 60
    """Outcomes before a route is known."""
    established: int = 2_000
    """Outcomes of another candidate without which a route that is not known is not held back: there is nothing better to hold on to."""
    unaudited: int = 20_000
    """Outcomes with which a route is known although feedback does not say that it is honest, where three tenants or more give any.

    Many: one tenant's traffic alone may bring them. With fewer tenants, `established`.
    """
    bank: float = 200.0
    """Largest saved surplus over the constraint, in units of `value`."""

    # Feedback.
    feedback_half_life_ms: int = 6 * HOUR
    feedback_window_ms: int = 600_000
    feedback_per_prefix: int = 20
    """Counted feedback of one tenant on one route and number prefix in a window: busy routes leave room for others."""
    feedback_per_tenant: int = 2_000
    trust_strength: float = 10.0
    """Conversions that the usual share of receipts counts for in a route's."""
    view_strength: float = 200.0
    """Conversions that a route's share of receipts counts for in a tenant's view of it."""
    trust_cap: float = 50.0
    """Largest number of expected conversions with which one tenant counts in what all share."""
    heard_cap: float = 500.0
    """The same for conversions that say how many receipts go missing."""
    checked: float = 10.0
    """Expected conversions that must show a route honest before it is known, where tenants give feedback; `unaudited` outcomes do as well."""
    conversion: float = 0.3
    """Share of one-time passwords that are used, taken as the peers' where a tenant's messages have gone by one route only."""

    # Breakers.
    early_ms: int = 20_000
    """Age at which a missing receipt is compared with what the route used to show."""
    usual_after_ms: int = 300_000
    """After that time what was seen at the early mark becomes part of what the route used to show."""
    brownout: float = 0.20
    """Loss of delivery for which the detector is tuned; it sees larger ones sooner."""
    alarm: float = 16.0
    """Log-likelihood ratio of an alarm: exp(alarm) observations between false ones."""
    recovery: float = 20.0
    """The same for good news, which can wait: a usual rate that is 3 points too low gives about one false alarm in a week."""
    silence: float = 13.0
    """The same for silence."""
    silence_windows_ms: tuple[int, ...] = (*range(4_000, 13_000, 1_000), 14_000, 17_000, 22_000, 30_000, 45_000, 90_000)
    open_ms: int = 30_000
    """First pause of an open breaker; doubled each time up to open_max_ms."""
    open_max_ms: int = 120_000
