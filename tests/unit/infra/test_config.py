"""A stack's configuration is checked before anything is touched, and no message gives a secret away."""

from __future__ import annotations

from typing import Any

import pytest

from infra import program
from infra.config import SECRETS, ConfigError, parse_region, parse_secrets
from tests.unit.infra.mocked import sample_secrets
from tests.unit.infra.sample import HOST_KEYS, LEDGER_KEY, sample_peer, sample_value

REMOVED = object()


def changed(path: str, new: Any) -> dict[str, Any]:
    """The sample region with one value changed, or removed."""
    value = sample_value()
    place: Any = value
    *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parts:
        place = place[part] if isinstance(place, list) else place.setdefault(part, {})
    if new is REMOVED:
        del place[last]
    else:
        place[last] = new
    return value


BAD = [
    # path, value, field in the message, mend in the message
    ("name", "Frankfurt", "region.name:", "pattern"),
    ("name", "x" * 25, "region.name:", "at most 24"),
    ("name", REMOVED, "region.name:", "is required"),
    ("safety", "both", "region.safety:", "'none', 'host' or 'failure_domain'"),
    ("hosts", [], "region.hosts:", "at least 1"),
    ("hosts.1.address", "fra-2.example", "region.hosts.1.address:", "such as 10.0.0.11"),
    ("hosts.1.address", "127.0.0.1", "region.hosts.1.address:", "give the host's private IPv4 address"),
    ("hosts.1.address", "0.0.0.0", "region.hosts.1.address:", "give the host's private IPv4 address"),
    ("hosts.1.address", "224.0.0.1", "region.hosts.1.address:", "give the host's private IPv4 address"),
    ("hosts.1.address", "2001:db8::1", "region.hosts.1.address:", "give the host's private IPv4 address"),
    ("hosts.1.address", "10.81.1.11", "hosts: address 10.81.1.11", "each host needs its own"),
    ("hosts.1.name", "fra-1", "hosts: name fra-1", "each host needs its own"),
    ("hosts.1.host_key", "", "region.hosts.1.host_key:", "cat /etc/ssh/ssh_host_ed25519_key.pub"),
    ("hosts.1.host_key", "SHA256:abc", "region.hosts.1.host_key:", "cat /etc/ssh/ssh_host_ed25519_key.pub"),
    ("hosts.1.host_key", HOST_KEYS[0].replace("ed25519 ", "rsa "), "region.hosts.1.host_key:", "is not a public SSH key"),
    ("hosts.1.host_key", HOST_KEYS[0][:40] + "!", "region.hosts.1.host_key:", "is not a public SSH key"),
    ("hosts.1.hostkey", HOST_KEYS[0], "region.hosts.1.hostkey:", "there is no such field"),
    ("ssh.user", "root; reboot", "region.ssh.user:", "pattern"),
    ("ssh.port", 0, "region.ssh.port:", "greater than or equal to 1"),
    ("ssh.password", "geheim", "region.ssh.password:", "there is no such field"),
    ("mongodb.image.reference", "mongo:8.0", "region.mongodb.image.reference:", "give name@sha256:"),
    ("mongodb.image.reference", "mongo@sha256:12", "region.mongodb.image.reference:", "has no digest"),
    ("mongodb.version", "5.0", "region.mongodb.version:", "pattern"),
    ("mongodb.members", 2, "region.mongodb.members:", "use 1 or 3"),
    ("mongodb.members", 9, "region.mongodb.members:", "less than or equal to 7"),
    ("mongodb.cache_gb", 0.1, "region.mongodb.cache_gb:", "greater than or equal to 0.25"),
    ("mongodb.data", "data; rm -rf /", "region.mongodb.data:", "pattern"),
    ("mongodb.router_port", 80, "region.mongodb.router_port:", "greater than or equal to 1024"),
    ("mongodb.shards", [], "region.mongodb.shards:", "at least 1"),
    ("mongodb.shards", [{"name": "a"}, {"name": "a"}], "mongodb.shards:", "a name of its own"),
    ("mongodb.shards", [{"name": "config"}], "mongodb.shards:", "`config` is taken"),
    ("mongodb.shards", [{"name": "a", "hosts": ["x"]}], "no host is called x", "hosts are fra-1, fra-2, fra-3"),
    ("mongodb.config_hosts", ["y"], "no host is called y", "hosts are fra-1, fra-2, fra-3"),
    ("control_plane.nodes", 0, "region.control_plane.nodes:", "greater than or equal to 1"),
    ("control_plane.allow", [], "region.control_plane.allow:", "at least 1 item"),
    ("control_plane.allow", ["10.0.0.1/8"], "region.control_plane.allow:", "write it as 10.0.0.0/8"),
    ("control_plane.log_level", "loud", "region.control_plane.log_level:", "pattern"),
    ("ledger.domain", "Example.COM", "region.ledger.domain:", "pattern"),
    ("ledger.port", 80, "region.ledger.port:", "greater than or equal to 1024"),
    ("ledger.public_key", "x", "region.ledger.public_key:", "there is no such field"),
    ("ledger.peers", [sample_peer("fra")], "ledger.peers:", "each is another datacenter"),
    ("ledger.peers", [sample_peer(), sample_peer()], "ledger.peers:", "each is another datacenter"),
    ("ledger.peers", [sample_peer(urls=[])], "region.ledger.peers.0.urls:", "at least 1"),
    ("ledger.peers", [sample_peer(urls=["http://10.0.0.1:8442"])], "region.ledger.peers.0.urls.0:", "write it as https://10.0.0.11:8442"),
    ("ledger.peers", [sample_peer(urls=["https://iad.example:8442"])], "cannot look up iad.example", "allow: [192.0.2.0/24]"),
    ("ledger.peers", [sample_peer(log_keys=[])], "region.ledger.peers.0.log_keys:", "at least 1"),
    ("ledger.peers", [sample_peer(log_keys=["c2hvcnQ="])], "region.ledger.peers.0.log_keys.0:", "`python -m infra.peer STACK` prints"),
    ("ledger.peers", [sample_peer(mirror_key="no key")], "region.ledger.peers.0.mirror_key:", "is not a public Ed25519 key"),
    ("ledger.peers", [sample_peer(mirror_key=sample_peer()["witness_key"])], "region.ledger.peers.0:", "are different keys"),
    ("ledger.peers", [sample_peer(authority="-----")], "region.ledger.peers.0.authority:", "`pulumi stack output authority`"),
    ("ledger.peers", [sample_peer(allow=["10.0.0.1/8"])], "region.ledger.peers.0.allow:", "write it as 10.0.0.0/8"),
    ("ledger.witnesses", [{"url": "https://w.example", "vkey": "w.example"}], "region.ledger.witnesses.0.vkey:", "pattern"),
    ("certificates", REMOVED, "region.certificates:", "is required"),
    ("certificates.not_before", "soon", "region.certificates.not_before:", "valid date"),
    ("certificates.days", 826, "region.certificates.days:", "less than or equal to 825"),
    ("verify.to", "0151", "region.verify.to:", "pattern"),
    ("carrier", False, "verify.to:", "give a real number"),
]  # fmt: skip


class TestBadInput:
    """Each wrong value is named with its field and with what to write instead."""

    @pytest.mark.parametrize(
        ("path", "new", "field", "mend"), BAD, ids=[f"{path}={str(new)[:20]}" for path, new, *_ in BAD]
    )
    def test_named(self, path, new, field, mend):
        with pytest.raises(ConfigError) as error:
            parse_region(changed(path, new))
        (line,) = str(error.value).splitlines()
        assert field in line
        assert mend in line

    def test_all_at_once(self):
        value = changed("hosts.0.address", "x")
        value["mongodb"]["members"] = 4
        del value["certificates"]
        with pytest.raises(ConfigError) as error:
            parse_region(value)
        assert len(str(error.value).splitlines()) == 3

    @pytest.mark.parametrize("value", [None, "fra", [1]])
    def test_not_set(self, value):
        with pytest.raises(ConfigError, match=r"heliograph:region is not set.*python -m infra\.new"):
            parse_region(value)

    def test_sample_is_good(self):
        assert parse_region(sample_value()).name == "fra"

    def test_key_without_comment(self):
        """The comment of a key is somebody's name, not part of the key: it must not make a change."""
        region = parse_region(changed("hosts.0.host_key", f"{HOST_KEYS[0]} root@fra-1"))
        assert region.hosts[0].host_key == HOST_KEYS[0]


class TestSecrets:
    """Missing secrets are named; the value of one never stands in a message."""

    GOOD = dict.fromkeys(SECRETS, "a-secret-value-of-more-than-32-characters") | {"ledgerKey": LEDGER_KEY}

    def test_good(self):
        parsed = parse_secrets(self.GOOD)
        assert parsed.ssh_key.get_secret_value() == self.GOOD["sshKey"]
        assert self.GOOD["sshKey"] not in repr(parsed).replace("authority_certificate='" + self.GOOD["sshKey"], "")

    @pytest.mark.parametrize("name", SECRETS)
    @pytest.mark.parametrize("absent", [None, ""])
    def test_missing(self, name, absent):
        with pytest.raises(ConfigError) as error:
            parse_secrets(self.GOOD | {name: absent})
        assert str(error.value) == f"heliograph:{name} is not set; `pulumi config set --secret {name}` sets it"

    def test_all_missing(self):
        with pytest.raises(ConfigError) as error:
            parse_secrets(dict.fromkeys(SECRETS))
        assert len(str(error.value).splitlines()) == len(SECRETS)

    @pytest.mark.parametrize(
        ("name", "value"), [("secretKey", "hunter2-too-short"), ("adminKey", 424242), ("ledgerKey", "aHVudGVyMg==")]
    )
    def test_never_repeated(self, name, value):
        with pytest.raises(ConfigError) as error:
            parse_secrets(self.GOOD | {name: value})
        text = str(error.value)
        assert str(value) not in text
        assert self.GOOD["sshKey"] not in text
        assert error.value.__cause__ is None

    def test_short_key_names_the_mend(self):
        with pytest.raises(ConfigError, match=r"secret_key: must have at least 32 characters; .*openssl rand -hex 32"):
            parse_secrets(self.GOOD | {"secretKey": "short"})

    def test_ledger_key_names_the_mend(self):
        with pytest.raises(
            ConfigError, match=r"ledger_key: must be 32 random bytes in base64; .*openssl rand -base64 32"
        ):
            parse_secrets(self.GOOD | {"ledgerKey": LEDGER_KEY[:-4]})


class TestPeers:
    """What a region knows of another."""

    def test_where_it_comes_from(self):
        peer, behind = parse_region(
            changed(
                "ledger.peers",
                [sample_peer(), sample_peer("sin", urls=["https://sin.example"], allow=["192.0.2.0/24"])],
            )
        ).ledger.peers
        assert peer.networks == ("10.81.2.11", "10.81.2.12")
        assert behind.networks == ("192.0.2.0/24",)


def test_an_archive_that_is_not_there():
    """It is looked for before anything is declared, and only where it is needed: `verify` does without."""
    value = sample_value(mongodb={"image": {"archive": "/nowhere/at-all.tar"}}, offline=True)
    parse_region(value)
    with pytest.raises(
        ConfigError, match=r"mongodb\.image\.archive: /nowhere/at-all\.tar is not a file.*`make images`"
    ):
        program.build(value, sample_secrets())
