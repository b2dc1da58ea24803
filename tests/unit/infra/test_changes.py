"""Changes of several declared states: what each phase makes of the stack's file, and how it is gone on with."""

from __future__ import annotations

import copy
import json
from datetime import date
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from infra import preflight, render, up
from infra.certificates import Authority, new_authority
from infra.changes import hosts, rotations
from infra.changes.forget import forgotten
from infra.changes.phase import CHANGE, DONE, Config, Fresh, Phase, begun, ended, following, key
from infra.config import ConfigError, parse_region, parse_secrets
from infra.peer import peer_entry, public_key
from infra.plan import plan
from infra.survey import Facts, Survey
from tests.unit.infra.mocked import run_region, sample_secrets
from tests.unit.infra.sample import HOST_KEYS, LEDGER_KEY, sample_peer, sample_region, sample_value
from tests.unit.infra.test_preflight import BARE

TODAY = date(2026, 2, 1)
FRESH = Fresh(TODAY)
NEXT_LOG = public_key(LEDGER_KEY[::-1].lstrip("=") + "=", "log")


def config(**region: Any) -> Config:
    """Of a stack; ciphertexts say what they are of."""
    secret = {name: {"secure": f"of {name}"} for name in ("authorityKey", "adminKey", "ledgerKey", "sshKey")}
    certificate = {"authorityCertificate": sample_secrets()["authorityCertificate"]}
    return {key(name): found for name, found in (secret | certificate).items()} | {
        key("region"): sample_value(**region)
    }


def through(kind: str, first: Config, fresh: Fresh = FRESH) -> list[tuple[Phase, Config]]:
    """Each phase with the configuration that it makes, from the first to the end; new secrets as they would be made."""
    now, found = first, []
    phases = rotations.phases(kind, now)
    while (phase := following(now, kind, phases, "op", TODAY, again=False)) is not None:
        made = {key(phase.makes): {"secure": f"of {phase.makes}"}} if phase.makes else {}
        now = begun(now | made, kind, phase, fresh)
        found.append((phase, now))
        now = ended(now, kind, phase, phases, "op", TODAY)
    return [*found, (Phase("end", ""), now)]


class TestAuthority:
    """Whoever is restarted last believes whoever is restarted first, in every phase."""

    pair = new_authority("fra", TODAY, successor=True)

    def phases(self, **region: Any) -> dict[str, Config]:
        return {
            phase.name: found for phase, found in through("authority", config(**region), Fresh(TODAY, self.pair[0]))
        }

    def test_three_phases(self):
        found = self.phases()
        old, new = sample_secrets()["authorityCertificate"], self.pair[0]
        assert list(found) == ["trust", "tell", "sign", "only", "end"]
        seen = [(one[key("authorityCertificate")], one.get(key("trustedAuthorities"))) for one in found.values()]
        assert seen == [(old, new), (old, new), (new, old), (new, None), (new, None)]
        keys = [one[key("authorityKey")]["secure"] for one in found.values()]
        assert keys == [*["of authorityKey"] * 2, *["of nextAuthorityKey"] * 3]
        assert not [name for name in found["end"] if "next" in name or name == CHANGE]
        assert found["end"][DONE] == {"authority": {"on": "2026-02-01", "by": "op"}}

    def test_services_are_restarted_in_each_and_keys_made_in_one(self):
        regions = [parse_region(one[key("region")]) for one in [config(), *self.phases().values()]]
        labels = [render.generation(region) for region in regions]
        assert len(set(labels)) == 4
        assert labels[-1] == labels[-2]
        assert [render.key_generation(one) for one in regions] == ["2026-01-01"] * 3 + ["2026-02-01-1"] * 3

    def test_others_are_told_before_it_signs_and_peers_when_it_is_alone(self):
        found = list(self.phases(ledger={"peers": [sample_peer()]}))
        assert found == ["trust", "tell", "sign", "only", "tell-only", "end"]

    def facts(self, trusts: list[str], signed_by: list[str]) -> Survey:
        def fingerprint(pem: str) -> str:
            return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()

        def identity(pem: str) -> str:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(certificate.public_key()).key_identifier.hex()

        values = {
            "authority": "0" * 64,
            "trusts": [*map(fingerprint, trusts)],
            "signed_by": [*map(identity, signed_by)],
        }
        return Survey({"fra-1": Facts(copy.deepcopy(BARE) | values, 0.0)}, "fresh")

    @pytest.mark.parametrize(
        ("trusts", "signed", "declared", "says"),
        [
            ("o", "o", "on", ""),
            ("on", "o", "no", ""),
            ("on", "on", "no", ""),
            ("on", "n", "n", ""),
            ("o", "o", "n", "trusts another certificate authority"),
            ("o", "o", "no", "trusts another certificate authority"),
            ("on", "on", "n", "has certificates of an authority that the configuration trusts no more"),
        ],
    )
    def test_an_up_refuses_what_would_part_the_members(self, trusts, signed, declared, says):
        """Letters: the old authority, the new one. Declared: who signs first."""
        pem = {"o": Authority(*new_authority("fra", TODAY)).bundle, "n": self.pair[0]}
        survey = self.facts([pem[one] for one in trusts], [pem[one] for one in signed])
        region = sample_region(1, safety="none", mongodb={"members": 1})
        found = preflight.problems(region, plan(region), survey, "".join(pem[one] for one in declared))
        assert bool(found) == bool(says)
        assert says in "".join(found)

    def test_both_are_what_hosts_clients_and_peers_get(self):
        secrets = parse_secrets(sample_secrets() | {"trustedAuthorities": self.pair[0]})
        bundle = Authority.of(secrets).bundle
        assert bundle.count("BEGIN CERTIFICATE") == 2
        assert bundle.startswith(secrets.authority_certificate.strip())
        entry = peer_entry(plan(sample_region()), secrets)
        assert entry["authority"] == bundle
        other = parse_region(sample_value(ledger={"peers": [entry]}) | {"name": "iad"})
        assert other.ledger.peers[0].authority.strip() == bundle.strip()


def test_certificates_are_new_on_the_same_day():
    (_, found), (_, end) = through("certificates", config(certificates={"not_before": TODAY.isoformat()}))
    assert found[key("region")]["certificates"] == {"not_before": "2026-02-01", "serial": 1}
    assert end[key("region")] == found[key("region")]


class TestKeys:
    """The old one is there until the new one has proven itself."""

    def test_api(self):
        (_, both), (_, revoked), (_, end) = through("api", config())
        assert (both[key("adminKey")]["secure"], both[key("formerAdminKey")]["secure"]) == (
            "of nextAdminKey",
            "of adminKey",
        )
        assert key("revokedAdminKey") not in both
        assert revoked[key("revokedAdminKey")]["secure"] == "of adminKey"
        assert key("formerAdminKey") not in revoked
        assert end[key("adminKey")]["secure"] == "of nextAdminKey"

    def test_a_revoked_key_is_revoked_by_the_hosts(self):
        spec = render.seed_run(sample_region(), plan(sample_region()), "fra-1", "new", ["old"])
        assert json.loads(spec["stdin"])["revoked_keys"] == ["old"]
        assert "revoked_keys" not in render.seed_run(sample_region(), plan(sample_region()), "fra-1", "new")["stdin"]

    def test_the_program_gives_it_to_the_seed(self, monkeypatch):
        secrets = sample_secrets() | {"revokedAdminKey": "hg_live_the_one_before"}
        monkeypatch.setattr("tests.unit.infra.mocked.sample_secrets", lambda: secrets)
        spec = json.loads(run_region(sample_value()).command("fra-seed").inputs["stdin"])
        assert json.loads(spec["stdin"])["revoked_keys"] == ["hg_live_the_one_before"]

    def test_ledger(self):
        old = public_key(LEDGER_KEY, "log")
        fresh = Fresh(TODAY, public=NEXT_LOG, former=old)
        (_, told), (_, turned), (_, again), (_, end) = through(
            "ledger", config(ledger={"peers": [sample_peer()]}), fresh
        )
        assert told[key("logKeys")] == NEXT_LOG
        assert told[key("ledgerKey")]["secure"] == "of ledgerKey"
        assert turned[key("logKeys")] == again[key("logKeys")] == end[key("logKeys")] == old
        assert turned[key("ledgerKey")]["secure"] == "of nextLedgerKey"
        secrets = parse_secrets(sample_secrets() | {"logKeys": told[key("logKeys")]})
        assert peer_entry(plan(sample_region()), secrets)["log_keys"] == [old, NEXT_LOG]

    def test_ledger_without_peers(self):
        found = through("ledger", config(), Fresh(TODAY, public=NEXT_LOG, former=public_key(LEDGER_KEY, "log")))
        assert [phase.name for phase, _ in found] == ["turn", "end"]

    def test_ssh(self):
        (_, let_in), (_, turned), _, (_, end) = through("ssh", config(), Fresh(TODAY, public="new", former="old"))
        assert (let_in[key("sshKey")]["secure"], let_in[key("nextSshPublic")]) == ("of sshKey", "new")
        assert (turned[key("sshKey")]["secure"], turned[key("formerSshPublic")]) == ("of nextSshKey", "old")
        assert key("nextSshKey") not in end

    def test_the_secret_key_is_not_rotated_and_it_says_why(self):
        with pytest.raises(ConfigError, match="keyed hashes of numbers that are kept nowhere else"):
            rotations.phases("secret", config())


class TestGoingOn:
    """A cut before the edit, after it, or after the `up`: the stack says what is left."""

    def test_an_edit_is_made_once(self):
        (phase,) = rotations.phases("certificates", config())
        first = begun(config(), "certificates", phase, Fresh(TODAY))
        assert begun(first, "certificates", phase, Fresh(TODAY)) == first
        assert following(first, "certificates", [phase], "another", TODAY, again=False) == phase

    def test_nothing_to_do_the_second_time(self):
        *_, (_, end) = through("certificates", config())
        phases = rotations.phases("certificates", end)
        assert following(end, "certificates", phases, "another", TODAY, again=False) is None
        assert following(end, "certificates", phases, "op", TODAY, again=True) is None  # what it ended itself
        assert following(end, "certificates", phases, "another", TODAY, again=True) == phases[0]
        assert following(end, "certificates", phases, "another", date(2026, 2, 2), again=False) == phases[0]

    def test_one_at_a_time(self):
        (_, trust), *_ = through("authority", config(), Fresh(TODAY, TestAuthority.pair[0]))
        with pytest.raises(ConfigError, match=r"in the middle of another change \(authority, phase trust\)"):
            following(trust, "api", rotations.phases("api", trust), "op", TODAY, again=False)

    def test_the_original_is_left_alone(self):
        first = config()
        kept = copy.deepcopy(first)
        through("authority", first, Fresh(TODAY, TestAuthority.pair[0]))
        assert first == kept


NEW = hosts.new_host("fra-4=10.81.1.14", HOST_KEYS[3])


def edited(phases: list[Phase], first: dict[str, Any]) -> list[dict[str, Any]]:
    """`heliograph:region` after each phase."""
    found, now = [], {key("region"): first}
    for phase in phases:
        now = begun(now, "replace-host", phase, Fresh(TODAY))
        now = ended(now, "replace-host", phase, [*phases, Phase("none", "")], "op", TODAY)
        found.append(now[key("region")])
    return found


class TestReplaceHost:
    """Members elsewhere stay where they are; the new machine gets those of the old one."""

    def test_a_living_one(self):
        joined, left = edited(hosts.replace_host("fra-2", NEW, alive=True), sample_value())
        assert [one["name"] for one in joined["hosts"]] == ["fra-1", "fra-2", "fra-4", "fra-3"]
        assert [one["name"] for one in left["hosts"]] == ["fra-1", "fra-4", "fra-3"]
        before, during, after = (plan(parse_region(one)) for one in (sample_value(), joined, left))
        for one, other, last in zip(before.sets, during.sets, after.sets, strict=True):
            moved = [(old, new) for old, new in zip(one.members, other.members, strict=True) if old != new]
            assert [(old.host, new.host, old.port == new.port) for old, new in moved] == [("fra-2", "fra-4", True)]
            assert other.members == last.members

    @pytest.mark.parametrize("name", ["fra-4", "fra-2"])
    def test_a_dead_one(self, name):
        new = NEW | {"name": name}
        (phase,) = hosts.replace_host("fra-2", new, alive=False)
        assert phase.more == {"forget": "fra-2" if name == "fra-4" else ""}
        (after,) = edited([phase], sample_value())
        assert [one["name"] for one in after["hosts"]] == ["fra-1", name, "fra-3"]
        topology = plan(parse_region(after))
        assert {one.members[1].endpoint for one in topology.shards} == {"10.81.1.14:27020", "10.81.1.14:27021"}
        assert hosts.is_replaced(after, "fra-2", new)
        assert not hosts.is_replaced(sample_value(), "fra-2", new)

    def test_hosts_that_carry_no_member_and_domains(self):
        value = sample_value(4, mongodb={"config_hosts": ["fra-1", "fra-2", "fra-3"]})
        value["mongodb"]["shards"] = [{"name": "a", "hosts": ["fra-4", "fra-2", "fra-3"]}]
        value["hosts"][3]["failure_domain"] = "room 2"
        (after,) = edited(
            hosts.replace_host("fra-4", NEW | {"name": "fra-5", "address": "10.81.1.15"}, alive=False), value
        )
        assert after["hosts"][3]["failure_domain"] == "room 2"
        assert after["mongodb"]["shards"][0]["hosts"] == ["fra-5", "fra-2", "fra-3"]
        assert after["mongodb"]["config_hosts"] == value["mongodb"]["config_hosts"]

    def test_refusals(self):
        with pytest.raises(ConfigError, match="no host is called fra-9"):
            edited(hosts.replace_host("fra-9", NEW, alive=False), sample_value())
        with pytest.raises(ConfigError, match="fra-3 is a host of this region already"):
            edited(hosts.replace_host("fra-2", NEW | {"name": "fra-3"}, alive=True), sample_value())
        with pytest.raises(ConfigError, match=r"address 10\.81\.1\.11 stands there twice"):
            edited(hosts.replace_host("fra-2", NEW | {"address": "10.81.1.11"}, alive=False), sample_value())
        with pytest.raises(ConfigError, match="is not of the form name=address"):
            hosts.new_host("fra-4", HOST_KEYS[3])


class TestAddShard:
    """Behind the others, which keep hosts and ports."""

    def test_added(self):
        (after,) = edited(hosts.add_shard("c", []), sample_value())
        before, now = plan(sample_region()), plan(parse_region(after))
        assert now.shards[:2] == before.shards
        assert now.shards[2].name == "fra-c"
        assert {member.port for member in now.shards[2].members} == {27022}

    def test_needs_its_hosts(self):
        with pytest.raises(ConfigError, match="c: 2 hosts are named for 3 members"):
            edited(hosts.add_shard("c", ["fra-1", "fra-2"]), sample_value())


_SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "ciphertext": "v1:…"}
"""What is encrypted in a state."""


class TestForget:
    """Pulumi's state without a host: what stood on it is gone, what is elsewhere is as it was and waits for nobody who is not there."""

    def state(self) -> dict[str, Any]:
        run = run_region(sample_value())
        resources = [
            {
                "urn": one.urn,
                "type": one.type,
                "parent": one.parent,
                "inputs": one.inputs | ({"connection": _SECRET} if "connection" in one.inputs else {}),
                "dependencies": sorted(one.dependencies),
                "propertyDependencies": {"stdin": sorted(one.dependencies)},
            }
            for one in run.seen.values()
        ]
        pending = [{"resource": resources[0], "type": "creating"}]
        return {"version": 3, "deployment": {"resources": resources, "pending_operations": pending}}

    def test_of_one_host(self):
        before = self.state()
        after, gone = forgotten(before, "fra-2")
        assert gone
        names = {urn.rpartition("::")[2] for urn in gone}
        assert {name[:5] for name in names} == {"fra-2"}
        assert names >= {"fra-2-keys", "fra-2-certificates", "fra-2-mongod-fra-a", "fra-2-router", "fra-2-node-1"}
        left = after["deployment"]["resources"]
        assert {one["urn"] for one in left} | set(gone) == {one["urn"] for one in before["deployment"]["resources"]}
        assert not [one for one in left if "fra-2" in one["urn"].rpartition("::")[2]]
        known = {one["urn"] for one in left}
        assert not {one["parent"] for one in left} & set(gone)
        assert all(set(one["dependencies"]) <= known | {""} for one in left if one["dependencies"])
        assert "fra-2" not in json.dumps([one["propertyDependencies"] for one in left])

    def test_what_runs_there_for_the_whole_stays(self):
        after, _ = forgotten(self.state(), "fra-1")
        names = {one["urn"].rpartition("::")[2] for one in after["deployment"]["resources"]}
        assert names >= {"fra-seed", "fra-shards", "fra-verify", "fra-a", "fra-config"}

    def test_an_unknown_host_is_nothing(self):
        state = self.state()
        assert forgotten(state, "fra-9") == (state, [])
        assert forgotten(state, "fra") == (state, [])

    def test_a_host_whose_name_another_one_goes_on(self):
        text = json.dumps(self.state())
        state = json.loads(text.replace("fra-3", "fra-1-b"))
        assert "fra-1-b-router" in {urn.rpartition("::")[2] for urn in forgotten(state, "fra-1-b")[1]}
        assert not [urn for urn in forgotten(state, "fra-1")[1] if "fra-1-b" in urn]


class TestUp:
    """What pulumi says is read as it says it."""

    def test_counted(self):
        text = "Outputs:\n  - x\n\nResources:\n    + 2 created\n    ~ 31 updated\n    - 1 deleted\n    7 unchanged\n\nDuration: 3s\n"
        assert dict(up.counted(text)) == {"created": 2, "updated": 31, "deleted": 1, "unchanged": 7}
        assert up.counted(text).changed
        assert not up.counted("Resources:\n    68 unchanged\n").changed
        assert up.counted(
            "Resources:\n    + 68 to create\n    ~ 2 to update\n    +-1 to replace\n    36 unchanged\n"
        ).changed
        assert not up.counted("").changed

    def test_owner(self):
        said = "error: the stack is currently locked by 1 lock(s). …\n  file:///s/l.json: created by root@operator (pid 4711) at 2026-02-01T00:00:00Z"
        assert up.owner(said) == ("operator", 4711)
        assert up.owner("error: conflict") is None
