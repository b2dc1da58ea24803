"""The steps that Ansible takes are those of `pulumi up`, in an order that is safe, without a secret."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra import render
from infra.config import parse_secrets
from infra.desired import declared, desired
from infra.plan import plan
from infra.steps import SCOPES, ordered, steps
from tests.unit.infra.sample import AUTHORITY, LEDGER_KEY, sample_region

REGION = sample_region()
TOPOLOGY = plan(REGION)
ALL = steps(REGION, TOPOLOGY)


def names(found: list[dict[str, Any]], *kinds: str) -> list[str]:
    return [one["name"] for one in found if one["kind"] in kinds]


def live(**primaries: str) -> list[dict[str, Any]]:
    return [{"set": one.name, "primary": primaries.get(one.name.replace("-", "_"))} for one in TOPOLOGY.sets]


def test_every_bundle_of_an_up_is_a_step_with_the_same_specification() -> None:
    installs = {(one["host"], one["spec"]["name"]): one["spec"] for one in ALL if one["verb"] == "install"}
    bundles = {place: bundle.as_spec() for place, bundle in render.everything(REGION, TOPOLOGY).items()}
    assert {place: {k: v for k, v in spec.items() if k != "keep"} for place, spec in installs.items()} == bundles
    assert {place[1]: spec["keep"] for place, spec in installs.items() if "keep" in spec} == {
        "secret-key": ["/etc/heliograph/node/secret-key"],
        "ledger": ["/etc/heliograph/ledger/key"],
    }


def test_the_order() -> None:
    kinds = [one["kind"] for one in ALL]
    assert list(dict.fromkeys(kinds)) == [
        "host", "image", "member", "set", "router", "shards", "base", "carrier", "node", "ledger",
    ]  # fmt: skip
    sets = [one["set"] for one in ALL if one["kind"] == "member"]
    assert list(dict.fromkeys(sets)) == ["fra-config", "fra-a", "fra-b"]
    assert sets == sorted(sets, key=["fra-config", "fra-a", "fra-b"].index)


@pytest.mark.parametrize("primary", [1, 2, 3])
def test_the_present_primary_comes_last_in_its_set(primary: int) -> None:
    [one] = [m.endpoint for m in TOPOLOGY.shards[0].members if m.host == f"fra-{primary}"]
    found = ordered(ALL, live(fra_a=one), "mongodb")
    of_set = [step["endpoint"] for step in found if step.get("set") == "fra-a"]
    assert of_set[-1] == one
    assert sorted(of_set) == sorted(m.endpoint for m in TOPOLOGY.shards[0].members)
    positions = [found.index(step) for step in found if step.get("set") == "fra-a"]
    assert positions == list(range(positions[0], positions[0] + 3))


def test_scopes() -> None:
    everything = ordered(ALL, live(), "everything")
    assert sorted(names(everything, *{one["kind"] for one in ALL})) == sorted(one["name"] for one in ALL)
    mongodb, nodes = (ordered(ALL, live(), scope) for scope in ("mongodb", "nodes"))
    assert {one["kind"] for one in mongodb} == {"image", "member", "router"}
    assert {one["kind"] for one in nodes} == {"image", "carrier", "node", "ledger"}
    versions = REGION.mongodb.image.reference, REGION.control_plane.image.reference
    of_versions = {one["name"] for one in ALL if any(version in json.dumps(one["spec"]) for version in versions)}
    assert of_versions <= {one["name"] for one in [*mongodb, *nodes]} | set(names(ALL, "set", "shards"))
    assert not {one["name"] for one in mongodb} & {one["name"] for one in nodes}
    with pytest.raises(ValueError, match="is no scope; there are everything, nodes, mongodb"):
        ordered(ALL, live(), "all")
    assert SCOPES[0] == "everything"


def test_the_inventory_holds_no_secret() -> None:
    values = {
        "sshKey": "an ssh key",
        "authorityCertificate": AUTHORITY,
        "authorityKey": "an authority's key",
        "secretKey": "s" * 40,
        "adminKey": "an admin key",
        "ledgerKey": LEDGER_KEY,
    }
    document = desired(REGION, parse_secrets(values))
    text = json.dumps(document["inventory"])
    for name in ("sshKey", "authorityKey", "secretKey", "adminKey", "ledgerKey"):
        assert values[name] not in text
    assert document["client"]["secret_key"] == values["secretKey"]
    assert document["client"]["urls"] == [node.url for node in TOPOLOGY.nodes]


def test_ansible_finds_the_hosts_and_the_controller() -> None:
    every = declared(REGION, TOPOLOGY)["all"]
    assert set(every["children"]["region"]["hosts"]) == {"fra-1", "fra-2", "fra-3"}
    assert every["hosts"]["controller"]["ansible_connection"] == "local"
    assert json.loads(every["vars"]["heliograph_features"]["stdin"])["version"] == REGION.mongodb.version
    assert json.loads(every["vars"]["heliograph_balancer"]["off"]["stdin"])["running"] is False
