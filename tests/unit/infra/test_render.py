"""What goes onto the hosts, text by text."""

from __future__ import annotations

import difflib
import re

import pytest

from controlplane.settings import load
from infra import quadlets
from infra.plan import plan
from infra.render import DATA_UID, NODE_UID, mongodb_uri, shard_spec
from tests.unit.infra import golden
from tests.unit.infra.sample import AUTHORITY, LEDGER_KEY, bundles, files, sample_peer, sample_region

REGIONS = {
    "three hosts": sample_region(),
    "MongoDB 8": sample_region(mongodb={"version": "8.0"}),
    "two nodes a host, API closed": sample_region(control_plane={"nodes": 2, "allow": ["10.0.0.0/8", "192.0.2.0/24"]}),
    "two peers": sample_region(ledger={"peers": [sample_peer(), sample_peer("sin", allow=["10.81.0.0/16"])]}),
    "one host": sample_region(1, safety="none", mongodb={"members": 1}),
    "six hosts": sample_region(
        6,
        mongodb={
            "config_hosts": ["fra-1", "fra-2", "fra-3"],
            "shards": [
                {"name": "a", "hosts": ["fra-1", "fra-2", "fra-3"]},
                {"name": "b", "hosts": ["fra-4", "fra-5", "fra-6"]},
            ],
        },
        carrier=False,
        verify={"to": "+4915112340001"},
    ),
}


class TestGolden:
    """A change of a template shows as a change of a text that somebody reads."""

    @pytest.mark.parametrize("name", golden.WANTED)
    def test_as_read(self, name):
        path = golden.FOLDER / name
        before = path.read_text("utf-8") if path.exists() else ""
        after = golden.rendered()[name]
        diff = "".join(
            difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"golden/{name}", "rendered")
        )
        assert not diff, f"\n{diff}\nIf that is meant: python -m tests.unit.infra.golden, and commit what it wrote."

    def test_nothing_left_over(self):
        there = {str(path.relative_to(golden.FOLDER)) for path in golden.FOLDER.rglob("*") if path.is_file()}
        assert there == set(golden.WANTED)


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
class TestEachRegion:
    """Whatever a region looks like, its texts are sound, and the same each time."""

    def test_units_are_clean(self, region):
        for texts in files(region).values():
            quadlets.require_clean(texts)

    def test_same_bytes(self, region):
        again = type(region).model_validate(region.model_dump())
        assert files(region) == files(again)

    def test_nothing_unfilled(self, region):
        for texts in files(region).values():
            for path, text in texts.items():
                assert text.endswith("\n"), path
                assert "\n\n\n" not in text, path
                assert "{{" not in text, path
                assert "{%" not in text, path
                assert "None" not in text, path

    def test_each_unit_has_its_file(self, region):
        for host, found in bundles(region).items():
            paths = [file.path for bundle in found for file in bundle.files]
            assert len(paths) == len(set(paths)), host
            for bundle in found:
                for unit in bundle.units:
                    name = unit.removesuffix(".service")
                    wanted = {f"/etc/containers/systemd/{name}.container", f"/etc/systemd/system/{unit}"}
                    assert len(wanted & {file.path for file in bundle.files}) == 1, (host, unit)

    def test_what_a_container_mounts_is_there(self, region):
        """A host path of `Volume=` that nothing makes would be made by podman, as root's."""
        made = re.compile(r"/etc/heliograph/(tls|node/secret-key|ledger/key)$")
        for host, found in bundles(region).items():
            there = {file.path for bundle in found for file in bundle.files}
            there |= {directory["path"] for bundle in found for directory in bundle.directories}
            for bundle in found:
                for file in bundle.files:
                    for source in re.findall(r"^(?:Volume|EnvironmentFile)=([^:\n]+)", file.content, re.MULTILINE):
                        assert source in there or made.match(source), (host, file.path, source)

    def test_every_port_is_behind_the_firewall(self, region):
        topology = plan(region)
        for host in region.hosts:
            rules = files(region)[host.name]["/etc/heliograph/firewall.nft"]
            closed = {int(port) for ports in re.findall(r"tcp dport \{ (.*?) \}", rules) for port in ports.split(",")}
            api = {node.port for node in topology.nodes if node.host == host.name}
            is_open = "0.0.0.0/0" in region.control_plane.allow
            assert closed == set(topology.ports(host.name)) - (api if is_open else set())


class TestWhoRunsAsWhom:
    """mongod's data and the nodes' secrets belong to two users, neither of them root."""

    def test_users(self):
        for texts in files(sample_region()).values():
            for path, text in texts.items():
                if path.endswith(".container"):
                    uid = DATA_UID if "mongod" in path or "router" in path else NODE_UID
                    assert f"\nUser={uid}:{uid}\n" in text


class TestPlacement:
    """A member listens where the others look for it, and a node asks its own router first."""

    def test_member_binds_its_endpoint(self):
        region = sample_region()
        texts = files(region)
        for replica_set in plan(region).sets:
            for member in replica_set.members:
                conf = texts[member.host][f"/etc/heliograph/mongod/{member.set}.conf"]
                assert f"bindIp: {member.address}\n" in conf
                assert f"port: {member.port}\n" in conf
                assert f"replSetName: {replica_set.name}\n" in conf
                assert f"clusterRole: {replica_set.role}\n" in conf

    def test_router_knows_all_config_servers(self):
        region = sample_region()
        endpoints = ",".join(f"{host.address}:27019" for host in region.hosts)
        for texts in files(region).values():
            assert f"configDB: fra-config/{endpoints}\n" in texts["/etc/heliograph/mongod/router.conf"]

    def test_own_router_first(self):
        uri = mongodb_uri(plan(sample_region()), "fra-2")
        assert uri.startswith("mongodb://10.81.1.12:27017,10.81.1.11:27017,10.81.1.13:27017/?tls=true&")
        assert uri.endswith("&authMechanism=MONGODB-X509&authSource=%24external")

    def test_shards_by_name(self):
        spec = shard_spec(plan(sample_region()))
        assert [shard["name"] for shard in spec["shards"]] == ["fra-a", "fra-b"]
        assert spec["routers"] == ["10.81.1.11:27017", "10.81.1.12:27017", "10.81.1.13:27017"]


class TestVersions:
    """MongoDB 8 brings its own allocator: other huge pages, and rseq left to it."""

    @pytest.mark.parametrize(
        ("version", "pages", "rseq"), [("6.0", "never", False), ("7.0", "never", False), ("8.0", "always", True)]
    )
    def test_tuned(self, version, pages, rseq):
        texts = files(sample_region(mongodb={"version": version}))["fra-1"]
        assert f"echo {pages} >" in texts["/etc/systemd/system/heliograph-hugepages.service"]
        tunable = "Environment=GLIBC_TUNABLES=glibc.pthread.rseq=0\n"
        assert (tunable in texts["/etc/containers/systemd/heliograph-mongod-fra-a.container"]) is rseq


class TestLedger:
    """Ledgers know their peers, and the firewall lets nobody else come to them."""

    REGION = sample_region(
        ledger={"peers": [sample_peer(), sample_peer("sin", allow=["10.81.1.0/24", "192.0.2.0/24"])]}
    )

    def test_who_may_reach_it(self):
        rules = files(self.REGION)["fra-1"]["/etc/heliograph/firewall.nft"]
        assert "tcp dport { 8442 } ip saddr != { 10.81.1.0/24, 10.81.2.11, 10.81.2.12, 192.0.2.0/24 } drop" in rules
        rules = files(sample_region())["fra-1"]["/etc/heliograph/firewall.nft"]
        assert "tcp dport { 8442 } ip saddr != { 10.81.1.11, 10.81.1.12, 10.81.1.13 } drop" in rules

    def test_it_trusts_its_own_region_and_its_peers(self):
        (file,) = [
            file
            for bundle in bundles(self.REGION)["fra-1"]
            for file in bundle.files
            if file.path == "/etc/heliograph/ledger/authorities.pem"
        ]
        assert file.prepend == "/etc/heliograph/tls/ca.pem"
        assert file.content.endswith("below.\n" + AUTHORITY * 2)

    @pytest.mark.parametrize("path", ["/etc/heliograph/node/fra-1-1.env", "/etc/heliograph/ledger/ledger.env"])
    def test_settings_are_the_control_planes(self, path, tmp_path, monkeypatch):
        """As the process reads them: no name and no value that it would refuse."""
        lines = files(self.REGION)["fra-1"][path].splitlines()
        for name, _, value in (line.partition("=") for line in lines):
            if name.endswith("_KEY_FILE"):
                value = tmp_path / name  # noqa: PLW2901
                value.touch(mode=0o600)
                value.write_text(LEDGER_KEY if "LEDGER" in name else "s" * 32)
            monkeypatch.setenv(name, str(value))
        settings = load()
        assert [peer.dc for peer in settings.ledger_peers] == ["iad", "sin"]
        assert settings.ledger_peers[0].log_keys == tuple(sample_peer()["log_keys"])
        assert settings.ledger_domain == "heliograph.invalid"

    def test_only_where_it_stands(self):
        """A host without a ledger has neither its unit, nor its key, nor an open port."""
        region = REGIONS["six hosts"]
        assert [one.host for one in plan(region).ledgers] == ["fra-1", "fra-2", "fra-3"]
        for host, texts in files(region).items():
            there = host in {"fra-1", "fra-2", "fra-3"}
            assert any("/ledger/" in path for path in texts) is there
            assert ("8442" in texts["/etc/heliograph/firewall.nft"]) is there

    def test_collections_and_users(self):
        spec = shard_spec(plan(self.REGION))
        assert spec["collections"]["ledger_tiles"] == {"key": {"_id": "hashed"}}
        assert [one["user"].partition(",")[0] for one in spec["users"]] == ["CN=ledger", "CN=node"]

    def test_a_node_sees_the_topology_and_a_ledger_its_data_only(self):
        ledger, node = (one["roles"] for one in shard_spec(plan(self.REGION))["users"])
        assert ledger == [{"role": "readWrite", "db": "heliograph"}]
        assert node == [*ledger, {"role": "clusterMonitor", "db": "admin"}]
