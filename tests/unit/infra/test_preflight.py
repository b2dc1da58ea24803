"""Nothing is changed while a host is not as it must be; each problem says what to mend, and all hosts are named in one run."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from infra import preflight
from infra.plan import plan
from infra.survey import Facts, Survey
from tests.unit.infra.sample import sample_region

GB = 2**30
REGION = sample_region()
TOPOLOGY = plan(REGION)
DATA = REGION.mongodb.data
BARE: dict[str, Any] = {
    "hostname": "fra-1",
    "os": {"id": "debian", "version": "13"},
    "podman": "",
    "systemd": True,
    "cgroup2": True,
    "time": datetime(2026, 3, 1, tzinfo=UTC).timestamp(),
    "time_kept": True,
    "authority": "",
    "tool": {"sha256": "", "last": ""},
    "container": False,
    "root": True,
    "cpus": 4,
    "memory_mb": 32000,
    "free": {DATA: 500 * GB, "/var/lib/containers": 500 * GB},
    "ports": {},
    "data": {},
    "certificates": {},
    "installed": {},
}


def surveyed(*, offset: float = 0.0, host: str = "fra-1", **changes: Any) -> Survey:
    """All hosts bare and sound, one of them changed."""
    facts = {one.name: Facts(copy.deepcopy(BARE), 0.0) for one in REGION.hosts}
    facts[host] = Facts(copy.deepcopy(BARE) | changes, offset)
    return Survey(facts, "fresh")


def problems(survey: Survey) -> list[str]:
    return preflight.problems(REGION, TOPOLOGY, survey, "the configured one")


def marker(member: str, set_: str = "fra-a") -> dict[str, Any]:
    return {"fra-a": {"used": True, "marker": {"set": set_, "member": member}}}


FREE = BARE["free"]
REFUSED = {
    "wrong system": ({"os": {"id": "ubuntu", "version": "24.04"}}, "runs ubuntu 24.04; Heliograph is made for Debian 13"),
    "old Debian": ({"os": {"id": "debian", "version": "12"}}, "runs debian 12; Heliograph is made for Debian 13 or newer"),
    "no version": ({"os": {"id": "", "version": ""}}, "runs an unknown system"),
    "old podman": ({"podman": "5.3.9"}, "has podman 5.3.9; the units need 5.4 or newer"),
    "very old podman": ({"podman": "4.10.0"}, "has podman 4.10.0"),
    "clock ahead": ({"offset": 2.5}, "its clock is +2.5 s off; start a time service (apt-get install chrony)"),
    "clock behind": ({"offset": -61.0}, "its clock is -61.0 s off"),
    "data disk full": ({"free": FREE | {DATA: 3 * GB}}, f"{DATA} has 3.0 GiB free and needs 10.0; free some"),
    "image disk full": ({"free": FREE | {"/var/lib/containers": GB}}, "/var/lib/containers has 1.0 GiB free and needs 3.0"),
    "busy port": ({"ports": {"27017": "mongos"}}, "port 27017, for mongos, is taken by mongos; stop it, or choose"),
    "busy ledger port": ({"ports": {"8442": "nginx"}}, "port 8442, for ledger, is taken by nginx"),
    "busy API port": ({"ports": {"8443": "nginx"}}, "port 8443, for node fra-1-1, is taken by nginx"),
    "foreign data": ({"data": {"fra-a": {"used": True, "marker": None}}}, "the data directory of fra-a holds a database that Heliograph did not make; move it away"),
    "data of another address": ({"data": marker("10.81.1.99:27020")}, "belongs to 10.81.1.99:27020 of fra-a, not to 10.81.1.11:27020; a member never changes its address or port: put back what changed"),
    "data of another set": ({"data": marker("10.81.1.11:27020", "ber-a")}, "belongs to 10.81.1.11:27020 of ber-a, not to 10.81.1.11:27020"),
    "a marker without a database": ({"data": {"fra-a": {"used": False, "marker": {"set": "fra-a", "member": "x"}}}}, "belongs to x of fra-a"),
    "cgroup v1": ({"cgroup2": False}, "has no unified cgroup hierarchy (v2); boot it with systemd.unified_cgroup_hierarchy=1"),
    "not root": ({"root": False}, "the commands do not run as root; use root or a user who may sudo"),
    "a shard that is no longer declared": ({"installed": {"mongod-fra-z": {"token": "1", "drift": []}}}, "carries a member of fra-z, which is no longer in the configuration"),
    "another authority": ({"authority": "0" * 64}, "trusts another certificate authority than the configured one"),
    "no systemd": ({"systemd": False}, "has no running systemd"),
}  # fmt: skip

FINE = {
    "bare": {},
    "newer Debian": {"os": {"id": "debian", "version": "14.1"}},
    "podman of Debian 13": {"podman": "5.4.2"},
    "podman 6": {"podman": "6.0.0"},
    "a release candidate": {"podman": "5.10.0-rc1"},
    "clock a little off": {"offset": 1.9},
    "our own ports": {"ports": {"27017": "heliograph-router.service", "27020": "heliograph-mongod-fra-a.service"}},
    "our own data": {"data": marker("10.81.1.11:27020")},
    "another set's data elsewhere": {"data": {"old": {"used": True, "marker": None}}},
    "images are there already": {
        "free": FREE | {"/var/lib/containers": 100 * 2**20},
        "installed": {"image-mongod": {"token": "1", "drift": []}},
    },
}


class TestOneHost:
    """Each thing that stops an `up` has its sentence, behind the host's name."""

    @pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED)
    def test_refused(self, changes, said):
        (problem,) = problems(surveyed(**changes))
        assert problem.startswith("fra-1: ")
        assert said in problem

    @pytest.mark.parametrize("changes", FINE.values(), ids=FINE)
    def test_fine(self, changes):
        assert problems(surveyed(**changes)) == []

    def test_everything_of_a_host_at_once(self):
        found = problems(surveyed(root=False, cgroup2=False, podman="5.0.0", ports={"27019": "mongod"}, offset=9.0))
        assert len(found) == 5

    def test_less_disk_on_request(self):
        region = sample_region(mongodb={"min_free_gb": 0})
        survey = surveyed(free={DATA: 0, "/var/lib/containers": 2 * GB})
        assert preflight.problems(region, TOPOLOGY, survey) == []


class TestAllHosts:
    """One run names every host that has to be mended, those that cannot be reached first."""

    def test_one_list(self):
        facts = {
            "fra-1": Facts(BARE | {"root": False}, 0.0),
            "fra-2": Facts(BARE | {"os": {"id": "fedora", "version": "42"}}, 0.0),
        }
        found = problems(Survey(facts, "fresh", ["fra-3 (10.81.1.13) cannot be reached on port 22 (…)"]))
        assert [line.split()[0] for line in found] == ["fra-3", "fra-1:", "fra-2:"]

    def test_offline(self):
        assert problems(Survey({}, "offline")) == []


class TestCertificates:
    """No service is started with a certificate that is over or has not begun; the end is said a month before."""

    def at(self, year: int, month: int, day: int) -> Survey:
        return surveyed(time=datetime(year, month, day, tzinfo=UTC).timestamp())

    def test_not_begun(self):
        assert problems(self.at(2025, 12, 31)) == ["certificates.not_before: 2026-01-01 is in the future; set today"]

    def test_over(self):
        assert "the certificates of 2026-01-01 are over" in problems(self.at(2027, 3, 1))[0]

    def test_soon(self):
        assert preflight.warnings(REGION, TOPOLOGY, self.at(2027, 1, 10))[0].startswith(
            "fra-1: its certificates end in 23 days"
        )


class TestWarnings:
    """What does not stop an `up` is said."""

    def test_sound(self):
        assert preflight.warnings(REGION, TOPOLOGY, surveyed()) == []

    def test_said(self):
        installed = {"router": {"token": "1", "drift": ["/etc/x was changed"]}}
        found = preflight.warnings(REGION, TOPOLOGY, surveyed(memory_mb=4000, container=True, installed=installed))
        assert len(found) == 2
        assert preflight.drift(surveyed(installed=installed)) == ["fra-1: router: /etc/x was changed"]
        assert "its services may use 8704 MiB together and it has 4000" in found[0]
        assert "is a container" in found[1]
