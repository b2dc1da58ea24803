"""Alerts: from what is seen of the deployment to conditions, and from conditions over time to alerts. Pure: no I/O, time comes in (ms since the epoch).

A rule says what is wrong now, and how long it must last before somebody is told. `advance` keeps the state of each alert:
pending → firing → resolved, and back. Nothing here is a cause that nobody feels: each rule is a symptom with a next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from controlplane.domain.catalog import CallbackEndpoint, Connector
from controlplane.domain.node_state import SeenNode, joined

__all__ = ["RULES", "Alert", "Change", "Condition", "Member", "RouteRate", "Seen", "Severity", "advance", "conditions"]

_CLEAR_MS = 20_000
"""A condition that is gone for so long is over: one that flickers is one alert."""
_MIN_SUBMITS = 20
_REFUSED_SHARE = 0.2
_MIN_FINISHED = 50
_FELL = 0.2
_WAITS_SECONDS = 60.0
_PARKED = 100
_LAG_SECONDS = 60.0


class Severity(StrEnum):
    """How soon somebody has to look."""

    CRITICAL = "critical"
    """Messages are not delivered, or could be lost: now."""
    WARNING = "warning"
    """Something is worse than it should be: today."""


class Condition(NamedTuple):
    """Something that is wrong at this moment."""

    kind: str
    subject: str
    """What it is about: a connector's, route's, node's … name. Kind and subject are the alert's identity."""
    severity: Severity
    what: str
    next_step: str
    after_ms: int = 0
    """How long it must last before it is an alert."""
    tenant: str = ""
    """Whose it is, where only one tenant is concerned."""

    @property
    def id(self) -> str:
        """`<kind>:<subject>`."""
        return f"{self.kind}:{self.subject}"


class RouteRate(NamedTuple):
    """How many of the messages of a route that came to their end were delivered: lately, and before."""

    route: str
    finished: int
    delivered: int
    finished_before: int
    delivered_before: int


class Member(NamedTuple):
    """A member of a replica set."""

    host: str
    set: str
    healthy: bool
    state: str
    lag_seconds: float | None


class Seen(NamedTuple):
    """What the rules look at. What could not be read is None, and its rules say nothing: an alert of theirs stays as it is."""

    nodes: Sequence[SeenNode]
    connectors: Sequence[Connector]
    endpoints: Sequence[CallbackEndpoint] = ()
    routes: Sequence[RouteRate] | None = None
    ledger_alarms: Sequence[Mapping[str, str]] | None = None
    members: Sequence[Member] | None = None
    callbacks_parked: int | None = None


def conditions(seen: Seen) -> list[Condition]:
    """Everything that is wrong."""
    return [found for rule in RULES.values() for found in rule(seen)]


# -- rules ---------------------------------------------------------------------------------------------------------------


def _nodes(seen: Seen) -> Iterator[Condition]:
    for node in seen.nodes:
        name = node.state.node
        if node.status == "gone":
            yield Condition(
                "node-gone",
                name,
                Severity.CRITICAL,
                f"Node {name} has said nothing for {_span(node.age_seconds)}.",
                "The other nodes take its messages over. Look at its process and host; `DELETE /v1/nodes/<name>` forgets one that will not come back.",
            )
        elif node.status == "not_ready":
            wrong = "; ".join(f"{check}: {said}" for check, said in node.state.checks.items() if said != "ok")
            yield Condition(
                "node-not-ready",
                name,
                Severity.CRITICAL,
                f"Node {name} takes no messages: {wrong}.",
                "Clients are answered 503 there; other nodes go on. Look at MongoDB first, then at the node's log.",
                10_000,
            )
        if node.counts and (said := node.state.checks.get("former_messages", "ok")) != "ok":
            yield Condition(
                "former-messages",
                name,
                Severity.WARNING,
                f"Node {name} holds back what was open before: {said}.",
                "Messages from before this datacenter was away wait until the peers have said what they took over.",
                60_000,
            )


def _connectors(seen: Seen) -> Iterator[Condition]:
    running = [node for node in seen.nodes if node.counts]
    for connector in seen.connectors:
        state = joined(connector.name, seen.nodes)
        if not connector.enabled or state is None or not running:
            continue
        name, error = connector.name, state["last_error"]
        why = f" The last error: {error}." if error else ""
        bound, wanted = state["bound"], len(state["binds"])
        if connector.max_binds:
            wanted = min(wanted, connector.max_binds)
        if not bound:
            yield Condition(
                "connector-down",
                name,
                Severity.CRITICAL,
                f"No bind of connector {name} is bound on any of {len(running)} nodes.{why}",
                "Its messages go to other routes, or wait. `POST /v1/connectors/test` says what the carrier answers.",
                10_000,
            )
        elif bound < wanted:
            yield Condition(
                "bind-down",
                name,
                Severity.WARNING,
                f"{bound} of {wanted} binds of connector {name} are bound.{why}",
                "The others carry on with less throughput. See the bind's last error; the carrier may allow fewer sessions.",
                60_000,
            )
        yield from _traffic(name, state)


def _traffic(name: str, state: Mapping[str, Any]) -> Iterator[Condition]:
    recent = state["recent"]
    asked, bad = sum(recent.values()), recent["refused"] + recent["unanswered"]
    if asked >= _MIN_SUBMITS and bad >= _REFUSED_SHARE * asked:
        yield Condition(
            "submit-errors",
            name,
            Severity.CRITICAL if bad > asked / 2 else Severity.WARNING,
            f"{bad / asked:.0%} of {asked} submits to {name} failed in the last minute: "
            f"{recent['refused']} refused, {recent['unanswered']} without answer.",
            "GET /v1/connectors/<name> counts the SMPP statuses. Ask the carrier about them, or disable the connector's routes.",
            20_000,
        )
    if state["oldest_seconds"] > _WAITS_SECONDS and state["live"]:
        yield Condition(
            "queue-waits",
            name,
            Severity.WARNING,
            f"{state['queued']} messages wait for {name}, the oldest for {_span(state['oldest_seconds'])}; "
            f"{state['throughput']:g} parts a second go out, {state['rate']:g} are allowed.",
            "More comes in than the carrier takes: raise rate, window or binds as the contract allows, or send less.",
            30_000,
        )


def _breakers(seen: Seen) -> Iterator[Condition]:
    held = {item for node in seen.nodes if node.counts for item in node.state.held_back}
    for item in sorted(held, key=lambda one: (one.route, one.country, one.network)):
        place = " ".join(part for part in (item.country, item.network) if part)
        where = f" to {place}" if place else ""
        yield Condition(
            "route-held-back",
            f"{item.route}/{item.country}/{item.network}".rstrip("/"),
            Severity.WARNING,
            f"Route {item.route}{where} is held back: it does not deliver at present.",
            "Messages of tenants in mode `learned` take other routes; probes find out when it is good again. GET /v1/routing has the break.",
        )


def _routes(seen: Seen) -> Iterator[Condition]:
    for rate in seen.routes or ():
        if rate.finished < _MIN_FINISHED or rate.finished_before < _MIN_FINISHED:
            continue
        now, before = rate.delivered / rate.finished, rate.delivered_before / rate.finished_before
        if before - now >= _FELL:
            yield Condition(
                "delivery-fell",
                rate.route,
                Severity.CRITICAL if now < before / 2 else Severity.WARNING,
                f"Route {rate.route} delivered {now:.0%} of {rate.finished} messages in the last 10 minutes, {before:.0%} the day before.",
                "Compare destinations and error codes with the carrier; take the route out meanwhile (`enabled`: false).",
            )


def _callbacks(seen: Seen) -> Iterator[Condition]:
    if (seen.callbacks_parked or 0) >= _PARKED:
        yield Condition(
            "callbacks-wait",
            "",
            Severity.WARNING,
            f"Callbacks of {seen.callbacks_parked} messages wait for another try.",
            "A receiver fails. GET /v1/callbacks/deliveries says which and how; they are retried for three days.",
            60_000,
        )
    for endpoint in seen.endpoints:
        if endpoint.disabled_reason and not endpoint.enabled:
            yield Condition(
                "callback-disabled",
                endpoint.id,
                Severity.WARNING,
                f"Callbacks of tenant {endpoint.tenant} to endpoint {endpoint.id} have stopped: {endpoint.disabled_reason}.",
                "Mend the receiver, enable the endpoint, and replay what it missed.",
                tenant=endpoint.tenant,
            )


def _ledger(seen: Seen) -> Iterator[Condition]:
    for alarm in seen.ledger_alarms or ():
        about_one = alarm["kind"] in ("not-cosigned", "behind", "forked")
        severity = Severity.CRITICAL if alarm["kind"] in ("forked", "findings") else Severity.WARNING
        subject = alarm["kind"] + (f"/{alarm['what'].split(' ', 1)[0]}" if about_one else "")
        yield Condition("ledger", subject, severity, alarm["what"], alarm["next_step"], 15_000)


def _members(seen: Seen) -> Iterator[Condition]:
    for member in seen.members or ():
        if not member.healthy:
            yield Condition(
                "mongodb-member",
                f"{member.set}/{member.host}",
                Severity.CRITICAL,
                f"MongoDB member {member.host} of {member.set} is {member.state}.",
                "A majority goes on without it; another loss may stop the datacenter. Look at the host and at `journalctl` of its mongod.",
                15_000,
            )
        elif (member.lag_seconds or 0.0) > _LAG_SECONDS:
            yield Condition(
                "mongodb-lag",
                f"{member.set}/{member.host}",
                Severity.WARNING,
                f"MongoDB member {member.host} of {member.set} is {_span(member.lag_seconds or 0.0)} behind its primary.",
                "Majority writes become slow when two of three fall behind. Look at its disk and network.",
                30_000,
            )


RULES = {
    "nodes": _nodes,
    "connectors": _connectors,
    "breakers": _breakers,
    "routes": _routes,
    "callbacks": _callbacks,
    "ledger": _ledger,
    "members": _members,
}
_KINDS_OF = {
    "routes": ("delivery-fell",),
    "ledger_alarms": ("ledger",),
    "members": ("mongodb-member", "mongodb-lag"),
    "callbacks_parked": ("callbacks-wait",),
}
"""What the rules of a field of `Seen` say: nothing of it is over while the field cannot be read."""


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3600:.0f} h"


# -- over time -----------------------------------------------------------------------------------------------------------


class Alert(msgspec.Struct, kw_only=True):
    """One alert as it stands. Times in ms."""

    id: str
    kind: str
    subject: str
    severity: str
    what: str
    next_step: str
    tenant: str = ""
    state: str = "pending"
    """pending, firing or resolved."""
    since: int
    """When the condition began."""
    fired_at: int | None = None
    last_seen: int
    resolved_at: int | None = None
    acknowledged: dict[str, Any] | None = None
    """{by, at, note}, until it is resolved."""
    silenced: dict[str, Any] | None = None
    """{by, at, until, reason}: nobody is told of it before `until`."""


class Change(NamedTuple):
    """One line of an alert's history."""

    alert: str
    what: str
    """fired or resolved."""
    at: int
    text: str


def advance(known: Iterable[Alert], seen: Seen, now_ms: int) -> tuple[list[Alert], list[Change], list[str]]:
    """(alerts that are new or changed, lines of history, ids of pending ones that came to nothing)."""
    found = {condition.id: condition for condition in conditions(seen)}
    blind = {kind for field, kinds in _KINDS_OF.items() if getattr(seen, field) is None for kind in kinds}
    changed: list[Alert] = []
    history: list[Change] = []
    dropped: list[str] = []
    for alert in known:
        condition = found.pop(alert.id, None)
        if condition is not None:
            changed.append(_goes_on(alert, condition, now_ms, history))
        elif alert.kind not in blind and alert.state != "resolved" and now_ms - alert.last_seen >= _CLEAR_MS:
            if alert.state == "pending" and alert.fired_at is None:
                dropped.append(alert.id)
                continue
            if alert.state == "firing":
                history.append(Change(alert.id, "resolved", now_ms, alert.what))
            alert.state, alert.resolved_at, alert.acknowledged = "resolved", now_ms, None
            changed.append(alert)
    for condition in found.values():
        alert = Alert(
            id=condition.id,
            kind=condition.kind,
            subject=condition.subject,
            severity=condition.severity.value,
            what=condition.what,
            next_step=condition.next_step,
            tenant=condition.tenant,
            since=now_ms,
            last_seen=now_ms,
        )
        changed.append(_goes_on(alert, condition, now_ms, history))
    return changed, history, dropped


def _goes_on(alert: Alert, condition: Condition, now_ms: int, history: list[Change]) -> Alert:
    """The condition is there: an alert that was resolved begins anew, a pending one may have lasted long enough."""
    if alert.state == "resolved" or (alert.state == "pending" and now_ms - alert.last_seen >= _CLEAR_MS):
        alert.state, alert.since, alert.resolved_at = "pending", now_ms, None
    alert.what, alert.next_step = condition.what, condition.next_step
    alert.severity, alert.tenant = condition.severity.value, condition.tenant
    alert.last_seen = now_ms
    if alert.state == "pending" and now_ms - alert.since >= condition.after_ms:
        alert.state, alert.fired_at = "firing", now_ms
        history.append(Change(alert.id, "fired", now_ms, alert.what))
    return alert
