"""What must hold for every resource: pinned hosts, no secret where it shows, nothing that deletes data. Each rule also finds a resource that breaks it."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest

from infra import policy
from infra.policy import Resource
from tests.unit.infra.mocked import COMMAND, run_region, sample_secrets
from tests.unit.infra.sample import sample_value

COPY = "command:remote:CopyToRemote"
SECRET = ("sshKey", "authorityKey", "secretKey", "adminKey")


def secret_values() -> list[str]:
    return [str(sample_secrets()[name]) for name in SECRET]


@cache
def resources() -> list[Resource]:
    value = sample_value(mongodb={"image": {"archive": __file__}})
    return run_region(value).resources()


class TestSampleRegion:
    """Every resource of the sample region keeps every rule."""

    @pytest.mark.parametrize("rule", policy.RULES, ids=lambda rule: rule.__name__)
    def test_rule(self, rule):
        assert rule(resources()) == []

    def test_secrets(self):
        assert policy.secret_problems(resources(), secret_values()) == []

    def test_all(self):
        assert policy.broken(resources(), secret_values()) == []

    def test_the_rules_have_something_to_look_at(self):
        commands = [one for one in resources() if one.type == COMMAND]
        assert len(commands) > 40
        assert {one.verb() for one in commands} == {"", "image", "install", "keys", "run"}
        assert sum(one.type == COPY for one in resources()) == 3
        for value in secret_values():
            probe = json.dumps(value)[1:40]
            assert (
                any(probe in json.dumps(one.inputs) for one in resources()) or value == sample_secrets()["authorityKey"]
            )

    def test_the_authority_key_stays(self):
        """It signs on the operator's machine and goes to no host, not even as a secret."""
        body = [line for line in str(sample_secrets()["authorityKey"]).splitlines() if "-" not in line]
        assert not any(line in json.dumps(one.inputs) for one in resources() for line in body)

    def test_purge_is_what_the_user_asked_for(self):
        asked = run_region(sample_value(purge=True)).resources()
        assert policy.broken(asked, secret_values(), purge=True) == []
        problems = policy.broken(asked, secret_values())
        assert len(problems) == 9
        assert all("purges /var/lib/heliograph/data/fra-" in problem for problem in problems)


GOOD = Resource(
    COMMAND,
    "good",
    {
        "connection": {"host": "10.0.0.1", "hostKey": "ssh-ed25519 AAAA", "privateKey": "the-operators-key"},
        "create": "sudo -n python3 /usr/local/lib/heliograph/hostctl install",
        "update": "sudo -n python3 /usr/local/lib/heliograph/hostctl install",
        "delete": "sudo -n python3 /usr/local/lib/heliograph/hostctl remove",
        "stdin": json.dumps({"name": "x", "files": [], "purge": []}),
        "addPreviousOutputInEnv": False,
        "logging": "stderr",
    },
    frozenset({"connection.privateKey"}),
)
GONE = object()


def bad(path: str, value: Any, base: Resource = GOOD) -> Resource:
    """The good resource with one input changed, or removed."""
    inputs = copy.deepcopy(dict(base.inputs))
    *parts, last = path.split(".")
    place = inputs
    for part in parts:
        place = place[part]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return base._replace(inputs=inputs)


def spec(**values: Any) -> str:
    return json.dumps(values)


IMAGE = bad("create", "python3 /usr/local/lib/heliograph/hostctl image")
BROKEN = {
    "no host key": (policy.pinned_host_keys, bad("connection.hostKey", GONE), "does not pin hostKey"),
    "an empty host key": (policy.pinned_host_keys, bad("connection.hostKey", ""), "does not pin hostKey"),
    "no connection": (policy.pinned_host_keys, Resource(COPY, "copy", {}), "does not pin hostKey"),
    "a proxy without host key": (
        policy.pinned_host_keys,
        bad("connection.proxy", {"host": "jump"}),
        "connection.proxy does not pin hostKey",
    ),
    "a copy without host key": (
        policy.pinned_host_keys,
        Resource(COPY, "copy", {"connection": {"host": "10.0.0.1"}}),
        "does not pin hostKey",
    ),
    "triggers": (policy.never_replaced, bad("triggers", ["1"]), "a change would run delete after create"),
    "delete without update": (policy.never_replaced, bad("update", GONE), "has a delete and no update"),
    "install without delete": (policy.undo, bad("delete", GONE), "installs and has no delete"),
    "image without delete": (policy.undo, bad("delete", GONE, IMAGE), "installs and has no delete"),
    "tool without delete": (
        policy.undo,
        bad("delete", "", bad("create", "install -D -m 0755 /dev/stdin /usr/local/x")),
        "installs and has no delete",
    ),
    "previous output by default": (policy.no_previous_output, bad("addPreviousOutputInEnv", GONE), "is not false"),
    "previous output": (policy.no_previous_output, bad("addPreviousOutputInEnv", True), "is not false"),
    "logs by default": (policy.quiet_stdout, bad("logging", GONE), "logs stdout (by default)"),
    "logs stdout": (policy.quiet_stdout, bad("logging", "stdoutAndStderr"), "logs stdout"),
    "purges": (policy.data_kept, bad("stdin", spec(purge=["/data"])), "purges /data"),
    "deletes": (policy.data_kept, bad("delete", "rm -rf /var/lib/heliograph/data"), "delete deletes: rm -rf"),
    "deletes more than the tool": (policy.data_kept, bad("delete", "rm -rf /usr/local/lib/heliograph /var/lib/x"), "deletes"),
    "formats": (policy.data_kept, bad("create", "mkfs.xfs /dev/sdb"), "create deletes"),
    "drops volumes": (policy.data_kept, bad("update", "podman volume prune -f"), "update deletes"),
    "an image by tag": (policy.images_by_digest, bad("stdin", spec(reference="mongo:8.0"), IMAGE), "mongo:8.0 has no digest"),
    "a unit with a tag": (
        policy.images_by_digest,
        bad("stdin", spec(files=[{"path": "/x.container", "content": "[Container]\nImage=mongo:8\n"}])),
        "mongo:8 has no digest",
    ),
    "even voters": (
        policy.odd_voters,
        bad("stdin", spec(stdin=spec(set="fra-a", members=[{"votes": 1}] * 4))),
        "fra-a has 4 votes",
    ),
    "a member without vote": (
        policy.odd_voters,
        bad("stdin", spec(stdin=spec(set="fra-a", members=[{"votes": 1}, {"votes": 1}, {"votes": 0}]))),
        "fra-a has 2 votes",
    ),
}  # fmt: skip

PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIK\n-----END PRIVATE KEY-----\n"
KNOWN = ["hg_live_secret", "the-operators-key", PEM]
LEAKS = {
    "in create": (bad("create", "echo hg_live_secret"), "stands in create"),
    "in delete": (bad("delete", "curl -H hg_live_secret"), "stands in delete"),
    "in a trigger": (bad("triggers", ["1", "hg_live_secret"]), "stands in triggers.1"),
    "in a trigger that is marked": (
        bad("triggers", ["hg_live_secret"])._replace(secrets=frozenset({"triggers", "connection"})),
        "stands in triggers.0",
    ),
    "in stdin that is not marked": (
        bad("stdin", spec(key="hg_live_secret")),
        "stdin carries a secret and is not marked",
    ),
    "in the environment": (bad("environment", {"KEY": "hg_live_secret"}), "environment.KEY carries a secret"),
    "a line of a key": (bad("stdin", spec(key="MC4CAQAwBQYDK2VwBCIEIK")), "stdin carries a secret"),
    "any private key": (bad("stdin", "-----BEGIN EC PRIVATE KEY-----"), "stdin carries a secret"),
    "a connection that is not marked": (GOOD._replace(secrets=frozenset()), "connection.privateKey carries a secret"),
    "marked by a similar name": (
        bad("stdin", "hg_live_secret")._replace(secrets=frozenset({"connection", "std"})),
        "stdin carries a secret",
    ),
}


class TestNegativeControls:
    """A rule that never finds anything protects nothing."""

    def test_good(self):
        assert policy.broken([GOOD], KNOWN) == []

    def test_marked_secrets_are_good(self):
        marked = bad("stdin", spec(key="hg_live_secret"))._replace(secrets=frozenset({"stdin", "connection"}))
        assert policy.broken([marked], KNOWN) == []

    @pytest.mark.parametrize(("rule", "resource", "said"), BROKEN.values(), ids=BROKEN)
    def test_found(self, rule, resource, said):
        (problem,) = rule([GOOD, resource])
        assert problem.startswith(f"{resource.name}: ")
        assert said in problem
        assert problem in policy.broken([GOOD, resource], KNOWN)

    def test_each_rule_has_one(self):
        assert {rule for rule, *_ in BROKEN.values()} == set(policy.RULES)

    @pytest.mark.parametrize(("resource", "said"), LEAKS.values(), ids=LEAKS)
    def test_leak_found(self, resource, said):
        (problem,) = policy.secret_problems([GOOD, resource], KNOWN)
        assert said in problem
        assert not any(value in problem for value in KNOWN)
