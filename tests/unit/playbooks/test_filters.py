"""What playbooks ask of the rules, through the filters that Ansible loads."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from controlplane.ops.runner import PLAYBOOKS


@pytest.fixture(scope="module")
def filters() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("filters", PLAYBOOKS / "filter_plugins" / "heliograph.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FilterModule().filters()


def status(**states: str) -> dict[str, Any]:
    members = [
        {
            "host": host,
            "state": state,
            "healthy": state != "DOWN",
            "answers": state != "DOWN",
            "why": "refused" if state == "DOWN" else "",
            "votes": 1,
        }
        for host, state in states.items()
    ]
    primary = next((host for host, state in states.items() if state == "PRIMARY"), None)
    return {"sets": [{"set": "fra-a", "primary": primary, "members": members}], "problems": []}


def test_refusals_look_at_members_alone(filters: dict[str, Any]) -> None:
    found = status(a="PRIMARY", b="SECONDARY", c="DOWN")
    assert filters["heliograph_refusals"](found, {"kind": "member", "endpoint": "b"})
    assert filters["heliograph_refusals"](found, {"kind": "router", "endpoint": "b"}) == []


def test_unwell(filters: dict[str, Any]) -> None:
    assert filters["heliograph_unwell"](status(a="PRIMARY", b="SECONDARY", c="SECONDARY")) == []
    assert filters["heliograph_unwell"](status(a="SECONDARY", b="SECONDARY", c="DOWN")) == [
        "fra-a has no primary",
        "fra-a: c is refused",
    ]


def test_nodes(filters: dict[str, Any]) -> None:
    answers = [
        {"heliograph_node": {"name": "one"}, "status": 200},
        {"heliograph_node": {"name": "two"}, "status": -1},
    ]
    assert filters["heliograph_node_refusals"](answers, ["two"]) == []
    assert filters["heliograph_node_refusals"](answers, ["one"]) == [
        "without one no node takes messages; bring another one back first"
    ]


def test_the_report(filters: dict[str, Any]) -> None:
    facts = [
        {"verify_host": "fra-1", "answer": {"installed": {"node-1": {"drift": ["x.env was changed"]}}}},
        {"verify_host": "fra-2", "msg": "cannot be reached"},
    ]
    sent = {"answer": [{"url": "https://n", "status": "unknown", "why": "no receipt"}]}
    report = filters["heliograph_report"](status(a="PRIMARY"), facts, sent)
    assert report["problems"] == [
        "fra-1: node-1: x.env was changed",
        "fra-2: cannot be reached",
        "a message through https://n is unknown: no receipt",
    ]
    assert report["sets"] == {"fra-a": {"a": "PRIMARY"}}


def test_the_key_goes_into_the_document(filters: dict[str, Any]) -> None:
    run = {"argv": ["verify"], "stdin": json.dumps({"api_key": "", "urls": []})}
    assert json.loads(filters["heliograph_keyed"](run, "k")["stdin"]) == {"api_key": "k", "urls": []}
    assert json.loads(run["stdin"])["api_key"] == ""


def test_chosen(filters: dict[str, Any]) -> None:
    nodes = [{"name": "fra-1-1", "host": "fra-1"}, {"name": "fra-1-2", "host": "fra-1"}, {"name": "x", "host": "y"}]
    assert filters["heliograph_chosen"](nodes, "fra-1", "") == ["fra-1-1", "fra-1-2"]
    assert filters["heliograph_chosen"](nodes, "", "x") == ["x"]
    assert filters["heliograph_chosen"](nodes, "", "") == []


def test_due_is_what_hosts_say_and_what_a_cut_left(filters: dict[str, Any]) -> None:
    known = [
        {"name": name, "host": host, "kind": kind, "verb": verb, "spec": {"name": name}}
        for name, host, kind, verb in [
            ("a on 1", "1", "member", "install"),
            ("a on 2", "2", "member", "install"),
            ("set", "1", "set", "run"),
            ("node on 1", "1", "node", "install"),
            ("router on 2", "2", "router", "install"),
        ]
    ]
    planned = filters["heliograph_planned"]
    assert [one["name"] for one in planned(known, "everything", "1")] == ["a on 1", "node on 1"]
    assert [one["name"] for one in planned(known, "mongodb", "1")] == ["a on 1"]

    def due(scope: str, *changing: str, left: tuple[str, ...] = ()) -> list[str]:
        asked = [
            {"steps_host": host, "answer": [{"change": one["name"] in changing} for one in planned(known, scope, host)]}
            for host in ("1", "2")
        ]
        return filters["heliograph_due"](known, scope, asked, left)

    assert due("everything") == ["set"]
    assert due("mongodb", "a on 2", "node on 1") == ["a on 2"]
    assert due("everything", "node on 1", left=("router on 2",)) == ["set", "node on 1", "router on 2"]
