"""Alert rules, and alerts over time."""

from __future__ import annotations

import pytest

from controlplane.domain.alerts import Alert, Member, RouteRate, Seen, advance, conditions
from controlplane.domain.catalog import CallbackEndpoint, Connector
from controlplane.domain.node_state import Bind, ConnectorState, HeldBack, NodeState, SeenNode

SECOND = 1_000


def _node(name="n1", *connectors, gone=False, age=1.0, **fields):
    state = NodeState(
        node=name, datacenter="a", epoch=1, version="1", started_at=0, connectors=list(connectors), **fields
    )
    return SeenNode(state=state, age_seconds=age, gone=gone)


def _binds(*bound, error=""):
    return [
        Bind(name=f"x/{n}", bound=up, in_flight=0, window=10, last_error="" if up else error)
        for n, up in enumerate(bound, 1)
    ]


def _state(*bound, error="", **fields):
    return ConnectorState(
        **{"name": "x", "live": any(bound), "queued": 0, "rate": 10.0, "binds": _binds(*bound, error=error), **fields}
    )


def _connector(**fields):
    return Connector(**{"name": "x", "host": "h", "port": 1, "system_id": "s", "password": "p", **fields})


def _kinds(seen):
    return [(found.kind, found.subject, found.severity.value) for found in conditions(seen)]


class TestRules:
    """Each rule speaks of what it is for, and of nothing that is well."""

    def test_all_is_well(self):
        seen = Seen(
            [_node("n1", _state(True))],
            [_connector()],
            routes=[RouteRate("r", 100, 95, 1000, 960)],
            ledger_alarms=[],
            members=[],
            callbacks_parked=3,
        )
        assert conditions(seen) == []

    def test_a_node_that_is_gone(self):
        assert _kinds(Seen([_node(gone=True, age=100)], [])) == [("node-gone", "n1", "critical")]

    def test_one_that_stopped_in_good_order_is_none(self):
        assert _kinds(Seen([_node(gone=True, stopping=True)], [])) == []

    def test_a_node_that_takes_no_messages(self):
        (found,) = conditions(Seen([_node(ready=False, checks={"store": "no commit for 9 s", "lease": "ok"})], []))
        assert (found.kind, "no commit for 9 s" in found.what) == ("node-not-ready", True)

    def test_a_connector_without_a_bind_on_any_node(self):
        seen = Seen([_node("n1", _state(False, error="ESME_RINVPASWD")), _node("n2", _state(False))], [_connector()])
        (found,) = conditions(seen)
        assert (found.kind, "ESME_RINVPASWD" in found.what, "2 nodes" in found.what) == ("connector-down", True, True)

    def test_a_connector_that_one_node_has_is_not_down(self):
        seen = Seen([_node("n1", _state(False)), _node("n2", _state(True))], [_connector()])
        assert _kinds(seen) == [("bind-down", "x", "warning")]

    def test_a_disabled_connector_is_no_alert(self):
        assert _kinds(Seen([_node("n1", _state(False))], [_connector(enabled=False)])) == []

    def test_a_limited_account_needs_no_more_than_its_limit(self):
        nodes = [_node("n1", _state(True)), _node("n2", _state(False))]
        assert _kinds(Seen(nodes, [_connector(max_binds=1)])) == []
        assert _kinds(Seen(nodes, [_connector(max_binds=2)])) == [("bind-down", "x", "warning")]

    @pytest.mark.parametrize(
        ("recent", "severity"),
        [
            ((19, 0, 0), None),
            ((15, 4, 0), None),
            ((80, 15, 6), "warning"),
            ((10, 5, 40), "critical"),
            ((0, 5, 5), None),
        ],
    )
    def test_submit_errors(self, recent, severity):
        counts = dict(zip(("submitted", "refused", "unanswered"), recent, strict=True))
        found = _kinds(Seen([_node("n1", _state(True, recent=counts))], [_connector()]))
        assert found == ([("submit-errors", "x", severity)] if severity else [])

    def test_messages_that_wait(self):
        seen = Seen([_node("n1", _state(True, queued=900, oldest_seconds=90.0))], [_connector()])
        assert _kinds(seen) == [("queue-waits", "x", "warning")]

    def test_routes_that_are_held_back(self):
        held = [HeldBack("r"), HeldBack("r", "DE", "26201")]
        nodes = [_node("n1", held_back=held), _node("n2", held_back=held[:1])]
        assert _kinds(Seen(nodes, [])) == [
            ("route-held-back", "r", "warning"),
            ("route-held-back", "r/DE/26201", "warning"),
        ]

    @pytest.mark.parametrize(
        ("rate", "severity"),
        [
            (RouteRate("r", 100, 70, 1000, 950), "warning"),
            (RouteRate("r", 100, 30, 1000, 950), "critical"),
            (RouteRate("r", 100, 80, 1000, 950), None),
            (RouteRate("r", 10, 0, 1000, 950), None),
            (RouteRate("r", 100, 0, 10, 10), None),
        ],
    )
    def test_delivery_fell(self, rate, severity):
        assert _kinds(Seen([], [], routes=[rate])) == ([("delivery-fell", "r", severity)] if severity else [])

    def test_callbacks(self):
        stopped = CallbackEndpoint(id="cb1", tenant="t", url="https://x", enabled=False, disabled_reason="410 Gone")
        off = CallbackEndpoint(id="cb2", tenant="t", url="https://x", enabled=False)
        found = conditions(Seen([], [], endpoints=[stopped, off], callbacks_parked=100))
        assert [(one.kind, one.subject, one.tenant) for one in found] == [
            ("callbacks-wait", "", ""),
            ("callback-disabled", "cb1", "t"),
        ]

    def test_ledger_alarms_keep_their_words_and_tell_cosigners_apart(self):
        alarms = [
            {"kind": "no-leader", "what": "No ledger leads.", "next_step": "Start it."},
            {"kind": "behind", "what": "b/mirror is 3 entries and 61 s behind a.", "next_step": "Wait."},
            {"kind": "behind", "what": "c/mirror is 3 entries and 61 s behind a.", "next_step": "Wait."},
        ]
        found = conditions(Seen([], [], ledger_alarms=alarms))
        assert [one.id for one in found] == ["ledger:no-leader", "ledger:behind/b/mirror", "ledger:behind/c/mirror"]
        assert found[0].next_step == "Start it."

    def test_mongodb(self):
        members = [
            Member("h1:1", "rs", True, "PRIMARY", 0.0),
            Member("h2:1", "rs", False, "DOWN", None),
            Member("h3:1", "rs", True, "SECONDARY", 300.0),
        ]
        assert _kinds(Seen([], [], members=members)) == [
            ("mongodb-member", "rs/h2:1", "critical"),
            ("mongodb-lag", "rs/h3:1", "warning"),
        ]

    def test_every_condition_says_what_to_do(self):
        for found in conditions(
            Seen([_node(gone=True), _node("n2", _state(False))], [_connector()], ledger_alarms=[], callbacks_parked=500)
        ):
            assert found.what.endswith((".", "…"))
            assert found.next_step.endswith(".")


DOWN = Seen([_node("n1", _state(False))], [_connector()])
UP = Seen([_node("n1", _state(True))], [_connector()])


def _play(*steps, known=()):
    """(seen, second) in turn; the alerts and the history."""
    alerts: dict[str, Alert] = {alert.id: alert for alert in known}
    history = []
    for seen, second in steps:
        changed, lines, dropped = advance(list(alerts.values()), seen, second * SECOND)
        alerts |= {alert.id: alert for alert in changed}
        for identity in dropped:
            del alerts[identity]
        history += [(line.what, line.at // SECOND) for line in lines]
    return alerts, history


class TestOverTime:
    """An alert is told once, after it has lasted, and is over after it has been away for a while."""

    def test_it_fires_after_its_time_and_once(self):
        alerts, history = _play((DOWN, 0), (DOWN, 5), (DOWN, 10), (DOWN, 20))
        assert history == [("fired", 10)]
        (alert,) = alerts.values()
        assert (alert.state, alert.since, alert.last_seen) == ("firing", 0, 20 * SECOND)

    def test_what_did_not_last_is_forgotten(self):
        assert _play((DOWN, 0), (UP, 5), (UP, 30)) == ({}, [])

    def test_it_is_resolved_after_a_while_and_not_by_a_flicker(self):
        _, history = _play((DOWN, 0), (DOWN, 10), (UP, 20), (DOWN, 25), (UP, 30), (UP, 46))
        assert history == [("fired", 10), ("resolved", 46)]

    def test_it_begins_anew(self):
        alerts, history = _play((DOWN, 0), (DOWN, 10), (UP, 40), (DOWN, 100), (DOWN, 110))
        assert history == [("fired", 10), ("resolved", 40), ("fired", 110)]
        assert next(iter(alerts.values())).since == 100 * SECOND

    def test_an_acknowledgement_ends_with_it_and_a_silence_does_not(self):
        alerts, _ = _play((DOWN, 0), (DOWN, 10))
        (alert,) = alerts.values()
        alert.acknowledged, alert.silenced = {"by": "p"}, {"until": 10**9}
        alerts, _ = _play((UP, 40), known=[alert])
        (alert,) = alerts.values()
        assert (alert.state, alert.acknowledged, alert.silenced) == ("resolved", None, {"until": 10**9})

    def test_a_second_pending_time_that_comes_to_nothing_writes_no_history(self):
        alerts, history = _play((DOWN, 0), (DOWN, 10), (UP, 40), (DOWN, 100), (UP, 105), (UP, 130))
        assert history == [("fired", 10), ("resolved", 40)]
        assert next(iter(alerts.values())).state == "resolved"

    def test_what_cannot_be_seen_is_not_over(self):
        sick = Seen([], [], members=[Member("h", "rs", False, "DOWN", None)])
        blind = Seen([], [], members=None)
        alerts, history = _play((sick, 0), (sick, 15), (blind, 100), (blind, 200))
        assert history == [("fired", 15)]
        assert next(iter(alerts.values())).state == "firing"
