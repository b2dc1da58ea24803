"""What nodes say of a connector, put together."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.domain.latency import BUCKETS, bucket
from controlplane.domain.node_state import Bind, ConnectorState, NodeState, SeenNode, joined


def _histogram(**seconds):
    counts = [0] * BUCKETS
    for count, value in seconds.values():
        counts[bucket(value)] += count
    return counts


def _seen(node, *connectors, age=1.0, gone=False, **fields):
    state = NodeState(
        node=node, datacenter="a", epoch=1, version="1", started_at=0, connectors=list(connectors), **fields
    )
    return SeenNode(state=state, age_seconds=age, gone=gone)


def _connector(name="x", **fields):
    return ConnectorState(**{"name": name, "live": True, "queued": 1, "rate": 10.0, **fields})


class TestJoined:
    """A connector is what all its nodes that are there say; one that is gone says nothing."""

    def test_counts_add_and_the_worst_wait_is_shown(self):
        one = _connector(
            queued=2, oldest_seconds=4.0, throughput=3.0, recent={"submitted": 8, "refused": 2, "unanswered": 0}
        )
        two = _connector(
            queued=5, oldest_seconds=9.0, throughput=1.5, recent={"submitted": 10, "refused": 0, "unanswered": 0}
        )
        found = joined("x", [_seen("n1", one), _seen("n2", two)])
        assert (found["queued"], found["oldest_seconds"], found["throughput"], found["rate"]) == (7, 9.0, 4.5, 20.0)
        assert (found["success"], found["nodes"]) == (0.9, 2)

    def test_a_node_that_is_gone_or_stopped_does_not_count(self):
        found = joined(
            "x",
            [_seen("n1", _connector()), _seen("n2", _connector(), gone=True), _seen("n3", _connector(), stopping=True)],
        )
        assert (found["nodes"], found["queued"]) == (1, 1)

    def test_nobody_has_it(self):
        assert joined("y", [_seen("n1", _connector())]) is None

    def test_live_where_one_is(self):
        down = _connector(
            live=False, binds=[Bind(name="x/1", bound=False, in_flight=0, window=10, last_error="refused")]
        )
        up = _connector(binds=[Bind(name="x/1", bound=True, in_flight=3, window=10, last_error="older")])
        found = joined("x", [_seen("n1", down), _seen("n2", up)])
        assert (found["live"], found["live_nodes"], found["bound"], found["in_flight"], found["window"]) == (
            True,
            1,
            1,
            3,
            10,
        )
        assert found["last_error"] == "refused"
        assert [bind["node"] for bind in found["binds"]] == ["n1", "n2"]

    def test_quantiles_are_those_of_all_together(self):
        fast = _connector(response=_histogram(a=(99, 0.015)))
        slow = _connector(response=_histogram(a=(1, 4.0)))
        found = joined("x", [_seen("n1", fast), _seen("n2", slow)])["response_seconds"]
        assert found["p50"] == pytest.approx(0.015, abs=0.006)
        assert found["p95"] <= 0.02


class TestStatus:
    """One word for a node, of which `gone` is only for one that did not say good-bye."""

    @pytest.mark.parametrize(
        ("fields", "gone", "status"),
        [
            ({}, False, "running"),
            ({"ready": False}, False, "not_ready"),
            ({}, True, "gone"),
            ({"stopping": True}, True, "stopped"),
        ],
    )
    def test_word(self, fields, gone, status):
        assert _seen("n", gone=gone, **fields).status == status

    def test_what_is_written_is_read(self):
        state = _seen("n", _connector(response=_histogram(a=(1, 1.0)))).state
        assert msgspec.convert(msgspec.to_builtins(state), NodeState) == state

    def test_words_of_a_newer_version_are_understood(self):
        document = msgspec.to_builtins(_seen("n").state) | {"invented_later": 1}
        assert msgspec.convert(document, NodeState).node == "n"
