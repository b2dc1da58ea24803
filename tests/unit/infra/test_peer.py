"""What a region tells others of its ledger."""

from __future__ import annotations

import base64
import json

import pytest
import yaml

from controlplane.ledger import note
from infra import peer
from infra.config import ConfigError, parse_region, parse_secrets
from infra.peer import peer_entry, public_key
from infra.plan import plan
from tests.unit.infra.mocked import sample_secrets
from tests.unit.infra.sample import LEDGER_KEY, sample_region, sample_value


@pytest.mark.parametrize("role", ["log", "witness", "mirror"])
def test_keys_are_those_of_the_control_plane(role):
    """Derived in two places, since the programs do without the control plane's code: they must not part."""
    theirs = note.derive(base64.b64decode(LEDGER_KEY), role).public_key().public_bytes_raw()
    assert public_key(LEDGER_KEY, role) == base64.b64encode(theirs).decode()


def test_an_entry_is_what_the_others_take():
    entry = peer_entry(plan(sample_region()), parse_secrets(sample_secrets()))
    assert entry["urls"] == [f"https://10.81.1.1{n}:8442" for n in (1, 2, 3)]
    other = parse_region(sample_value(ledger={"peers": [entry]}) | {"name": "iad"})
    assert other.ledger.peers[0].networks == ("10.81.1.11", "10.81.1.12", "10.81.1.13")
    assert LEDGER_KEY not in json.dumps(entry)


class TestCommand:
    """`python -m infra.peer` between two stacks of a project."""

    @pytest.fixture(autouse=True)
    def stacks(self, tmp_path, monkeypatch):
        (tmp_path / "iad.yaml").write_text(
            yaml.safe_dump({"config": {"heliograph:region": sample_value() | {"name": "iad"}}})
        )
        monkeypatch.setattr(peer, "stack_file", lambda stack: tmp_path / f"{stack}.yaml")
        monkeypatch.setattr(peer, "stack_configuration", lambda _: (sample_value(), sample_secrets()))
        return tmp_path

    def test_printed(self, capsys):
        peer.main(["fra"])
        (entry,) = yaml.safe_load(capsys.readouterr().out)
        assert entry["name"] == "fra"
        assert entry["authority"].strip() == sample_secrets()["authorityCertificate"].strip()

    def test_put_into_the_other_once(self, stacks):
        for _ in range(2):
            peer.main(["fra", "--into", "iad"])
        region = yaml.safe_load((stacks / "iad.yaml").read_text())["config"]["heliograph:region"]
        assert [one["name"] for one in region["ledger"]["peers"]] == ["fra"]

    def test_no_such_stack(self):
        with pytest.raises(SystemExit, match=r"sin\.yaml is not there; paste the entry into ledger\.peers"):
            peer.main(["fra", "--into", "sin"])

    def test_not_into_itself(self, stacks, monkeypatch):
        (stacks / "fra.yaml").write_text(yaml.safe_dump({"config": {"heliograph:region": sample_value()}}))
        before = (stacks / "fra.yaml").read_text()
        with pytest.raises(SystemExit, match="each is another datacenter"):
            peer.main(["fra", "--into", "fra"])
        assert (stacks / "fra.yaml").read_text() == before


def test_nothing_private_is_needed_to_read_it():
    with pytest.raises(ConfigError, match="is not a public Ed25519 key"):
        parse_region(
            sample_value(
                ledger={
                    "peers": [{**peer_entry(plan(sample_region()), parse_secrets(sample_secrets())), "mirror_key": "x"}]
                }
            )
        )
