"""The table of operations: what is asked for is checked in one way, and holds no secret."""

from __future__ import annotations

import pytest

from controlplane.domain.operations import KINDS, Kind, Variable, refusals, without_secrets
from controlplane.ops.runner import PLAYBOOKS
from controlplane.store.seal import new_key

ASKED = [kind for kind in KINDS.values() if kind.asked]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_each_is_whole(kind: Kind) -> None:
    """It has a playbook, a sentence, and names that playbooks can take."""
    assert (PLAYBOOKS / kind.playbook).is_file()
    assert kind.does.endswith(".")
    assert set(kind.one_of) <= {variable.name for variable in kind.variables}
    for variable in kind.variables:
        assert variable.name.isidentifier()
        assert variable.about
        assert not {"password", "secret", "token", "passphrase"} & set(variable.name.split("_"))
        assert kind.changes or not kind.irreversible


@pytest.mark.parametrize("kind", ASKED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("value", ["{{ 7 * 7 }}", "$(id)", "../x", "-o x", "a\nb", "", " ", "x" * 500, "%s", "ä"])
def test_no_variable_takes_what_a_shell_or_a_template_would_run(kind: Kind, value: str) -> None:
    for variable in kind.variables:
        wrong = refusals(kind.name, {variable.name: value})
        assert f"variables/{variable.name}" in [each.where for each in wrong]


def test_what_is_said_of_it() -> None:
    assert refusals("upgrade", {}) == refusals("upgrade", {"scope": "nodes"}) == []
    assert [where for where, _ in refusals("upgrade", {"scope": "all", "more": "x"})] == [
        "variables/more",
        "variables/scope",
    ]
    assert refusals("abort", {})[0].where == refusals("", {})[0].where == "kind"
    [needed] = refusals("features", {})
    assert (needed.where, needed.what) == ("variables/confirm", "is needed: the version, such as 8.0")
    assert refusals("drain", {"node": "fra-1-1"}) == []
    assert "exactly one of host, node" in refusals("drain", {"node": "fra-1-1", "host": "fra-1"})[0].what


def test_a_value_is_as_long_as_200_characters() -> None:
    variable = Variable("x", "x", pattern="x+", expected="x")
    assert variable.refusal("x" * 200) == ""
    assert variable.refusal("x" * 201) != ""


def test_secrets_are_left_out() -> None:
    key = new_key()
    private = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"
    text = f"with {key}, {private} and mongodb://root:hunter2@db:27017/ and a word that is known"
    assert without_secrets(text, ["a word that is known", ""]) == (
        "with [secret], [secret] and mongodb://[secret]@db:27017/ and [secret]"
    )
    assert without_secrets("-----BEGIN PRIVATE KEY-----\nMIIEcut") == "[secret]"
    plain = "https://fra-1:8443/readyz of hg-1 at 10.0.0.1"
    assert without_secrets(plain) == plain
