"""The words of routing, and the protocol of a router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from controlplane.domain.catalog import MessageClass, SenderType
from controlplane.routing.decision import Candidate, Decision

__all__ = ["Candidate", "Exclusion", "Plan", "RouteRequest", "Router"]


class RouteRequest(NamedTuple):
    """What is to be routed."""

    tenant: str
    to: str
    """E.164 with +."""
    sender_type: SenderType
    cls: MessageClass
    parts: int
    max_price: int | None = None
    """Minor units for the whole message."""
    tried: tuple[str, ...] = ()
    """Routes that refused it already."""
    sender: str = ""
    body: str = ""
    """Only features of it are ever kept."""
    encoding: str = ""
    """gsm7 or ucs2."""
    origin: str = ""
    """Where the sender is: an ISO country or a datacenter's name."""
    mid: str = ""
    """Seeds the choice, so that it can be replayed."""
    at: int = 0
    """ms since the epoch; 0 = the router's own clock."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A route that may not, and the rule that says so."""

    route: str
    rule: str
    """disabled, connector_disabled, prefix, class, sender_type, max_price or tried."""
    detail: str


class Plan(NamedTuple):
    """Best first."""

    candidates: tuple[Candidate, ...]
    reason: str
    """Why the first was chosen, in words; or why there is none."""
    decision: Decision | None = None
    """What the learned engine decided, where it was asked; the order above is its own only in mode `learned`."""


class Router(Protocol):
    """Any engine that routes."""

    def plan(self, request: RouteRequest) -> Plan:
        """The routes that may carry it, ranked."""
        ...

    def explain(self, request: RouteRequest) -> tuple[Plan, tuple[Exclusion, ...]]:
        """The plan, and each route that is not in it with the rule that excluded it."""
        ...
