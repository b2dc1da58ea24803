"""What one node says of itself every few seconds, and what the nodes of a datacenter say of a connector together. Pure shapes and sums.

Nodes share nothing: whoever is asked about the datacenter reads what each of them wrote (store.node_states).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from controlplane.domain.latency import added, quantile

__all__ = ["Bind", "ConnectorState", "HeldBack", "NodeState", "SeenNode", "joined"]


class Bind(msgspec.Struct, frozen=True, kw_only=True):
    """One SMPP session of a node."""

    name: str
    """`<connector>/<number>`."""
    bound: bool
    in_flight: int
    """submit_sm without answer."""
    window: int
    bound_seconds: float | None = None
    """Since when it has been bound."""
    last_error: str = ""
    """Why it is not bound, or why the session before this one ended."""


class ConnectorState(msgspec.Struct, frozen=True, kw_only=True):
    """One connector as one node sees it."""

    name: str
    live: bool
    """Whether a bind could submit."""
    queued: int
    """Messages that wait for it on this node."""
    oldest_seconds: float = 0.0
    """For how long the first of them has been due."""
    rate: float
    """Parts a second allowed at present: the contract's, or less after throttling."""
    throughput: float = 0.0
    """Parts a second that had an outcome, over the last 10 s."""
    submitted: int = 0
    """Parts that the carrier took, since the node's start."""
    refused: dict[str, int] = {}
    """SMPP status by name → submits refused with it, since the node's start."""
    unanswered: int = 0
    """Submits without answer (timed out, or the connection was lost), since the node's start."""
    recent: dict[str, int] = {}
    """`submitted`, `refused`, `unanswered` of the last minute."""
    response: list[int] = []
    """Histogram (domain.latency) of submit → response, last minute."""
    receipt: list[int] = []
    """Histogram of submit → final receipt, by when the receipt came, last minute."""
    binds: list[Bind] = []


class HeldBack(msgspec.Struct, frozen=True):
    """A breaker of the router that is open."""

    route: str
    country: str = ""
    network: str = ""
    """Both empty: the whole route."""


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """One node."""

    node: str
    datacenter: str
    epoch: int
    version: str
    started_at: int
    """ms since the epoch, by the node's clock."""
    url: str = ""
    """Where the other nodes reach it."""
    ready: bool = True
    checks: dict[str, str] = {}
    """Name → "ok", or what is wrong (as /readyz)."""
    stopping: bool = False
    """It has ended, or is about to, in good order."""
    gauges: dict[str, float] = {}
    """As /metrics has them, without `heliograph_`."""
    connectors: list[ConnectorState] = []
    held_back: list[HeldBack] = []


class SeenNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node's last word, and how old it is by the database's clock."""

    state: NodeState
    age_seconds: float
    gone: bool
    """It has said nothing for longer than its lease lasts."""

    @property
    def status(self) -> str:
        """running, not_ready, stopped or gone."""
        if self.state.stopping:
            return "stopped"
        if self.gone:
            return "gone"
        return "running" if self.state.ready else "not_ready"

    @property
    def counts(self) -> bool:
        """Whether what it said describes the present."""
        return not (self.gone or self.state.stopping)


def joined(name: str, nodes: Sequence[SeenNode]) -> dict[str, Any] | None:
    """What the nodes that are there say of one connector together, as the API shows it; None where none of them has it."""
    found = [
        (seen.state.node, connector)
        for seen in nodes
        if seen.counts
        for connector in seen.state.connectors
        if connector.name == name
    ]
    if not found:
        return None
    states = [state for _, state in found]
    recent = _sum(state.recent for state in states)
    asked = sum(recent.values())
    binds = [{"node": node, **msgspec.to_builtins(bind)} for node, state in found for bind in state.binds]
    return {
        "name": name,
        "live": any(state.live for state in states),
        "nodes": len(states),
        "live_nodes": sum(state.live for state in states),
        "queued": sum(state.queued for state in states),
        "oldest_seconds": max(state.oldest_seconds for state in states),
        "rate": sum(state.rate for state in states),
        "throughput": round(sum(state.throughput for state in states), 2),
        "bound": sum(bind["bound"] for bind in binds),
        "in_flight": sum(bind["in_flight"] for bind in binds),
        "window": sum(bind["window"] for bind in binds if bind["bound"]),
        "submitted": sum(state.submitted for state in states),
        "refused": _sum(state.refused for state in states),
        "unanswered": sum(state.unanswered for state in states),
        "recent": {"submitted": 0, "refused": 0, "unanswered": 0} | recent,
        "success": round(recent.get("submitted", 0) / asked, 4) if asked else None,
        "response_seconds": _quantiles(state.response for state in states),
        "receipt_seconds": _quantiles(state.receipt for state in states),
        "last_error": next((bind["last_error"] for bind in binds if bind["last_error"] and not bind["bound"]), "")
        or next((bind["last_error"] for bind in binds if bind["last_error"]), ""),
        "binds": binds,
    }


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _quantiles(histograms: Iterable[Sequence[int]]) -> dict[str, float | None]:
    counts = added(histograms)
    return {"p50": quantile(counts, 0.5), "p95": quantile(counts, 0.95)}
