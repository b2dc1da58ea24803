"""What `pulumi up` does on a host: repeatable, cut anywhere without harm, and taken back without a trace."""

from __future__ import annotations

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from infra.certificates import Authority, Subject, new_authority
from tests.integration.infra.host import SandboxHost, why_not

REASON = why_not()
if REASON and os.environ.get("CI") == "true":
    pytest.fail(f"hostctl cannot be tried: {REASON}", pytrace=False)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")

UNIT = "heliograph-demo.service"
QUADLET = "/etc/containers/systemd/heliograph-demo.container"
SECRET = "a-secret-that-must-not-be-shown"


def spec_of(content: str = "one", **more: Any) -> dict[str, Any]:
    """A resource with all that a resource may have."""
    return {
        "name": "demo",
        "token": content,
        "users": [{"name": "heliograph-data", "uid": 26001}],
        "packages": ["podman"],
        "directories": [{"path": "/etc/demo"}, {"path": "/var/lib/demo/data", "mode": "700", "owner": "heliograph-data"}],
        "files": [
            {"path": "/etc/demo/a.conf", "content": f"a={content}\n"},
            {"path": "/etc/demo/b.conf", "content": f"b={content} {SECRET}\n", "mode": "400", "owner": "heliograph-data"},
            {"path": QUADLET, "content": f"[Container]\nImage=x@sha256:{content}\n"},
            {"path": "/etc/deep/down/below/c.conf", "content": "c\n"},
        ],
        "units": [UNIT],
        "enable": [UNIT],
    } | more  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> SandboxHost:
    return SandboxHost(tmp_path / "host")


def running(host: SandboxHost) -> str:
    """The configuration with which the unit was last started."""
    return (host.state / "active" / UNIT).read_text()


class TestInstall:
    """The second run does nothing; files stand as they should, and only what changed is restarted."""

    def test_again_is_nothing(self, host):
        first = host.do("install", spec_of())
        assert sorted(first["changed"]) == sorted(file["path"] for file in spec_of()["files"])
        before, restarts = host.tree(), host.restarts()
        again = host.do("install", spec_of())
        assert again == {"changed": [], "packages": [], "kernel_cannot": []}
        assert host.tree() == before
        assert host.restarts() == restarts == [f"begin {UNIT}", f"end {UNIT}"]

    def test_modes_and_owners(self, host):
        host.do("install", spec_of())
        found = host.tree()
        assert found["etc/demo/a.conf"][:3] == ("100644", 0, 0)
        assert found["etc/demo/b.conf"][:2] == ("100400", 26001)
        assert found["var-lib/demo/data"][:2] == ("40700", 26001)
        assert found["var-lib/heliograph/installed/demo.json"][:3] == ("100600", 0, 0)
        assert "heliograph-data:x:26001:" in (host.etc / "passwd").read_text()
        assert "/usr/sbin/nologin" in (host.etc / "passwd").read_text().splitlines()[-1]

    def test_a_change_restarts(self, host):
        host.do("install", spec_of("one"))
        changed = host.do("install", spec_of("two"))["changed"]
        assert "/etc/deep/down/below/c.conf" not in changed
        assert running(host) == f"a=two\nb=two {SECRET}\n"
        assert len(host.restarts()) == 4

    def test_a_stopped_unit_starts(self, host):
        host.do("install", spec_of())
        (host.state / "active" / UNIT).unlink()
        assert host.do("install", spec_of())["changed"] == []
        assert running(host)

    def test_what_no_longer_belongs_goes(self, host):
        host.do("install", spec_of())
        fewer = spec_of()
        gone = fewer["files"].pop(0)["path"]
        assert host.do("install", fewer)["changed"] == [gone]
        assert not (host.etc / "demo/a.conf").exists()
        assert gone not in host.record("demo")["files"]
        assert len(host.restarts()) == 4

    def test_packages(self, host):
        (host.state / "missing/podman").touch()
        assert host.do("install", spec_of())["packages"] == ["podman"]
        assert (
            "apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install -y -qq --no-install-recommends podman"
            in host.calls()
        )

    def test_private_key_goes_before_the_certificate(self, host):
        (host.etc / "host.key").write_text("KEY\n")
        file = {"path": "/etc/demo/tls.pem", "content": "CERTIFICATE\n", "mode": "400", "prepend": "/etc/host.key"}
        host.do("install", {"name": "tls", "token": "1", "files": [file]})
        assert (host.etc / "demo/tls.pem").read_text() == "KEY\nCERTIFICATE\n"

    def test_marker_is_written_once(self, host):
        """It says whose data this is; a later installation must not claim it."""
        path = "/var/lib/demo/data/heliograph.json"
        host.do("install", spec_of(markers={path: {"member": "10.0.0.1:1"}}))
        host.do("install", spec_of(markers={path: {"member": "10.0.0.2:1"}}))
        assert json.loads((host.lib / "demo/data/heliograph.json").read_text()) == {"member": "10.0.0.1:1"}

    def test_guard(self, host):
        """A running member is only restarted between two questions; one that does not run is started without them."""
        (host.etc / "heliograph").mkdir()
        (host.etc / "heliograph/controlplane.image").write_text("cp@sha256:1")
        guard = {step: {"argv": ["cluster", step], "user": "", "stdin": step} for step in ("before", "after")}
        host.do("install", spec_of("one", guard=guard))
        assert not [call for call in host.calls() if call.startswith("podman run")]
        (host.state / "calls").write_text("")
        host.do("install", spec_of("two", guard=guard))
        steps = [c.rpartition(" ")[2] for c in host.calls() if c.startswith("podman run") or "restart" in c]
        assert steps == ["before", UNIT, "after"]

    def test_guard_refuses(self, host):
        """While the set would lose its majority nothing is restarted; the next run tries again."""
        (host.etc / "heliograph").mkdir()
        (host.etc / "heliograph/controlplane.image").write_text("cp@sha256:1")
        guard = {step: {"argv": ["cluster", step], "user": ""} for step in ("before", "after")}
        host.do("install", spec_of("one", guard=guard))
        (host.state / "code").write_text("1")
        (host.state / "complaint").write_text("fra-a has no other healthy member")
        assert "fra-a has no other healthy member" in host.refused("install", spec_of("two", guard=guard))
        assert running(host).startswith("a=one")
        (host.state / "code").write_text("0")
        host.do("install", spec_of("two", guard=guard))
        assert running(host).startswith("a=two")


class TestForeign:
    """What somebody else put there is neither lost nor hidden."""

    def test_kept_and_restored(self, host):
        (host.etc / "demo").mkdir()
        theirs = host.etc / "demo/b.conf"
        theirs.write_text("theirs\n")
        theirs.chmod(0o640)
        os.chown(theirs, 12, 34)
        before = host.tree()
        host.do("install", spec_of("one"))
        host.do("install", spec_of("two"))
        assert theirs.read_text() == f"b=two {SECRET}\n"
        host.do("remove", {"name": "demo"})
        assert host.tree() == before

    def test_a_folder_in_use_stays(self, host):
        host.do("install", spec_of())
        (host.etc / "demo/notes").write_text("mine")
        host.do("remove", {"name": "demo"})
        assert [path.name for path in (host.etc / "demo").iterdir()] == ["notes"]


class TestFacts:
    """`facts` sees what was edited by hand, names it, and shows nothing of it."""

    def drift(self, host: SandboxHost) -> list[str]:
        code, out, err = host.ask("facts", {})
        assert code == 0, err
        assert SECRET not in out + err
        return json.loads(out)["installed"]["demo"]["drift"]

    def test_intact(self, host):
        host.do("install", spec_of())
        assert self.drift(host) == []

    @pytest.mark.parametrize(
        ("edit", "said"),
        [
            (lambda path: path.write_text(f"edited {SECRET}"), "was changed"),
            (lambda path: path.chmod(0o644), "was changed"),
            (lambda path: os.chown(path, 0, 0), "was changed"),
            (lambda path: path.unlink(), "is gone"),
        ],
        ids=["content", "mode", "owner", "gone"],
    )
    def test_edited(self, host, edit, said):
        host.do("install", spec_of())
        edit(host.etc / "demo/b.conf")
        assert self.drift(host) == [f"/etc/demo/b.conf {said}"]
        assert host.do("install", spec_of())["changed"] == ["/etc/demo/b.conf"]
        assert self.drift(host) == []

    def test_stopped(self, host):
        host.do("install", spec_of())
        (host.state / "active" / UNIT).unlink()
        assert self.drift(host) == [f"{UNIT} is inactive"]

    def test_changes_nothing(self, host):
        before = host.tree()
        facts = host.do("facts", {"paths": ["/var/lib/heliograph/data"], "ports": [1], "data": {"x": "/var/lib/x"}})
        assert host.tree() == before
        assert facts["os"] == {"id": "debian", "version": "13"}
        assert facts["podman"] == "5.4.2"
        assert facts["root"] is True
        assert facts["container"] is False
        assert facts["installed"] == {}
        assert facts["data"] == {"x": {"used": False, "marker": None}}
        assert abs(facts["time"] - time.time()) < 60

    def test_whom_it_trusts_and_who_signed_for_it(self, host):
        """Of two authorities, one of them another's name; a private key goes before a certificate, as on a real host."""
        today = date(2026, 1, 1)
        pairs = [new_authority("fra", today), new_authority("fra", today, successor=True)]
        host.do(
            "install",
            {
                "name": "ca",
                "token": "1",
                "files": [{"path": "/etc/heliograph/tls/ca.pem", "content": "".join(pem for pem, _ in pairs)}],
            },
        )
        subject = Subject("node", "heliograph-client", "heliograph-fra")
        request = host.do("keys", {"token": "1", "roles": ["node"], "generation": "1"})["node"]
        signed = Authority(*pairs[1]).sign(request, subject, today, 397)
        file = {"path": "/etc/heliograph/tls/node.pem", "content": signed, "prepend": "/etc/heliograph/keys/node.1.key"}
        host.do("install", {"name": "node", "token": "1", "files": [file]})
        facts = host.do("facts", {})
        loaded = [x509.load_pem_x509_certificate(pem.encode()) for pem, _ in pairs]
        assert facts["trusts"] == [one.fingerprint(hashes.SHA256()).hex() for one in loaded]
        identity = loaded[1].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
        assert facts["signed_by"] == [identity]

    def test_listeners(self, host):
        line = "LISTEN 0 4096 10.0.0.1:{port} 0.0.0.0:*{who}\n"
        (host.state / "listeners").write_text(
            line.format(port=27017, who=f' users:(("mongos",pid={os.getpid()},fd=9))')
            + line.format(port=8443, who="")
            + line.format(port=22, who=' users:(("sshd",pid=1,fd=3))')
        )
        facts = host.do("facts", {"ports": [27017, 8443, 27019]})
        assert facts["ports"] == {"27017": "mongos", "8443": "another program"}

    def test_data(self, host):
        folder = host.lib / "data/fra-a"
        folder.mkdir(parents=True)
        (folder / "WiredTiger").touch()
        (folder / "heliograph.json").write_text('{"set": "fra-a"}')
        facts = host.do("facts", {"data": {"fra-a": "/var/lib/data/fra-a"}})
        assert facts["data"] == {"fra-a": {"used": True, "marker": {"set": "fra-a"}}}


class TestCut:
    """A run that is killed anywhere is put right by the next one: files, owners, the unit running with them, and what was there before."""

    POINTS = 24

    def steps(self, host: SandboxHost, spec: dict[str, Any]) -> int:
        """How many a whole run has."""
        code, _, err = host.ask("install", spec, cut=10**9)
        assert code == 0, err
        return int((host.state / "steps").read_text())

    def converges(self, host: SandboxHost, cut: int, expected: dict[str, Any]) -> None:
        code, out, err = host.ask("install", spec_of("two"), cut=cut)
        assert code == -9, (cut, out, err)
        interrupted = (host.lib / "heliograph/installed/demo.json").exists() and host.record("demo").get("pending")
        if interrupted:
            assert (
                "an earlier run was cut while it installed this" in host.do("facts", {})["installed"]["demo"]["drift"]
            )
        host.do("install", spec_of("two"))
        assert host.tree() == expected, cut
        assert "pending" not in host.record("demo")
        assert running(host) == f"a=two\nb=two {SECRET}\n", cut
        assert host.do("facts", {})["installed"] == {"demo": {"token": "two", "drift": []}}, cut

    @staticmethod
    def foreign(host: SandboxHost) -> dict[str, Any]:
        """Somebody's file where one of ours goes."""
        (host.etc / "demo").mkdir()
        (host.etc / "demo/a.conf").write_text("theirs\n")
        return host.tree()

    def points(self, total: int, seed: int) -> list[int]:
        assert total > self.POINTS
        return sorted(random.Random(seed).sample(range(1, total + 1), self.POINTS))

    def test_first_installation(self, tmp_path):
        model = SandboxHost(tmp_path / "model")
        self.foreign(model)
        total = self.steps(model, spec_of("two"))
        expected = model.tree()
        for cut in self.points(total, 1):
            host = SandboxHost(tmp_path / f"cut-{cut}")
            before = self.foreign(host)
            self.converges(host, cut, expected)
            host.do("remove", {"name": "demo"})
            assert host.tree() == before, cut

    def test_change(self, tmp_path):
        model = SandboxHost(tmp_path / "model")
        self.foreign(model)
        model.do("install", spec_of("one"))
        total = self.steps(model, spec_of("two"))
        expected = model.tree()
        for cut in self.points(total, 2)[::2]:
            host = SandboxHost(tmp_path / f"cut-{cut}")
            self.foreign(host)
            host.do("install", spec_of("one"))
            self.converges(host, cut, expected)

    def test_then_another_version(self, tmp_path):
        """What a cut run left of one version is not taken for somebody else's when the next run brings another."""
        model = SandboxHost(tmp_path / "model")
        total = self.steps(model, spec_of("one"))
        for cut in self.points(total, 3)[::3]:
            host = SandboxHost(tmp_path / f"cut-{cut}")
            before = host.tree()
            assert host.ask("install", spec_of("one"), cut=cut)[0] == -9
            host.do("install", spec_of("two"))
            assert running(host) == f"a=two\nb=two {SECRET}\n", cut
            host.do("remove", {"name": "demo"})
            assert host.tree() == before, cut

    def test_removal(self, tmp_path):
        model = SandboxHost(tmp_path / "model")
        self.foreign(model)
        model.do("install", spec_of("one"))
        code, _, err = model.ask("remove", {"name": "demo"}, cut=10**9)
        assert code == 0, err
        total = int((model.state / "steps").read_text())
        for cut in sorted(random.Random(4).sample(range(1, total + 1), min(10, total))):
            host = SandboxHost(tmp_path / f"cut-{cut}")
            before = self.foreign(host)
            host.do("install", spec_of("one"))
            assert host.ask("remove", {"name": "demo"}, cut=cut)[0] == -9
            host.do("remove", {"name": "demo"})
            assert host.tree() == before, cut


class TestAtOnce:
    """Two runs for one resource wait for each other, also when a removal is between them."""

    def test_two_installs(self, host):
        (host.state / "slow").write_text("0.3")
        with ThreadPoolExecutor(2) as pool:
            codes = list(pool.map(lambda text: host.ask("install", spec_of(text)), ("one", "two")))
        assert [code for code, *_ in codes] == [0, 0], codes
        assert host.restarts() == [f"begin {UNIT}", f"end {UNIT}"] * 2
        assert running(host) == "".join((host.etc / "demo" / name).read_text() for name in ("a.conf", "b.conf"))

    def test_with_a_removal(self, host):
        host.do("install", spec_of())
        (host.state / "slow").write_text("0.2")
        for _ in range(3):
            with ThreadPoolExecutor(3) as pool:
                answers = list(
                    pool.map(
                        lambda step: host.ask(*step),
                        [("remove", {"name": "demo"}), ("install", spec_of("one")), ("install", spec_of("two"))],
                    )
                )
            # A run whose folder the removal has just taken away may fail; it never works beside another, and can be repeated.
            assert all(code == 0 or ("Traceback" not in err and code == 1) for code, _, err in answers), answers
            host.do("install", spec_of("three"))
            assert running(host) == f"a=three\nb=three {SECRET}\n"
        restarts = host.restarts()
        assert restarts == [f"begin {UNIT}", f"end {UNIT}"] * (len(restarts) // 2)

    def test_keys(self, host):
        spec = {"name": "keys", "token": "1", "roles": ["member"], "generation": "1"}
        with ThreadPoolExecutor(2) as pool:
            requests = [
                x509.load_pem_x509_csr(answer["member"].encode())
                for answer in pool.map(lambda _: host.do("keys", spec), range(2))
            ]
        assert requests[0].public_key() == requests[1].public_key()


class TestKeys:
    """Private keys are made on the host once for each generation, and never leave it."""

    SPEC = {"name": "keys", "token": "1", "roles": ["api", "member"], "generation": "2026-01-01"}  # noqa: RUF012

    def test_once(self, host):
        first, second = host.do("keys", self.SPEC), host.do("keys", self.SPEC)
        assert set(first) == set(second) == {"api", "member"}
        for role in first:
            keys = [x509.load_pem_x509_csr(answer[role].encode()).public_key() for answer in (first, second)]
            assert keys[0] == keys[1]

    def test_next_generation(self, host):
        first = host.do("keys", self.SPEC)
        second = host.do("keys", self.SPEC | {"generation": "2027-01-01"})
        assert (
            x509.load_pem_x509_csr(first["api"].encode()).public_key()
            != x509.load_pem_x509_csr(second["api"].encode()).public_key()
        )
        names = {path.name for path in (host.etc / "heliograph/keys").iterdir()}
        assert names == {"api.2027-01-01.key", "member.2027-01-01.key"}

    def test_a_lost_key_is_seen(self, host):
        host.do("keys", self.SPEC)
        (host.etc / "heliograph/keys/api.2026-01-01.key").unlink()
        drift = host.do("facts", {})["installed"]["keys"]["drift"]
        assert drift == ["/etc/heliograph/keys/api.2026-01-01.key is gone"]

    def test_never_shown(self, host):
        code, out, err = host.ask("keys", self.SPEC)
        assert code == 0
        assert "PRIVATE" not in out + err
        found = host.tree()
        assert found["etc/heliograph/keys"][:3] == ("40700", 0, 0)
        for role in self.SPEC["roles"]:
            name = f"heliograph/keys/{role}.2026-01-01.key"
            assert found[f"etc/{name}"][:3] == ("100600", 0, 0)
            text = (host.etc / name).read_text()
            assert not any(line in out + err for line in text.splitlines())
            loaded = serialization.load_pem_private_key(text.encode(), password=None)
            assert loaded.public_key() == x509.load_pem_x509_csr(json.loads(out)[role].encode()).public_key()


class TestImage:
    """An image is the one that was meant, by digest, or the run ends."""

    REF = f"localhost/cp@sha256:{'a' * 64}"

    def spec(self, **more: Any) -> dict[str, Any]:
        return {"name": "image-cp", "reference": self.REF, "token": "1", "current": True} | more

    def test_loaded_once(self, host):
        archive = host.etc / "image.tar"
        archive.write_text(self.REF + "\n")
        spec = self.spec(archive="/etc/image.tar")
        assert host.do("image", spec) == {"changed": True}
        assert not archive.exists()
        assert (host.etc / "heliograph/controlplane.image").read_text() == self.REF
        assert host.do("image", spec) == {"changed": False}
        assert host.do("facts", {})["installed"] == {"image-cp": {"token": "1", "drift": []}}

    def test_pulled(self, host):
        (host.state / "registry").write_text(self.REF + "\n")
        assert host.do("image", self.spec()) == {"changed": True}

    @pytest.mark.parametrize("how", ["loaded", "pulled"])
    def test_other_digest(self, host, how):
        (host.etc / "image.tar").write_text(f"localhost/cp@sha256:{'b' * 64}\n")
        (host.state / "registry").write_text(f"localhost/cp@sha256:{'b' * 64}\n")
        said = host.refused("image", self.spec(**({"archive": "/etc/image.tar"} if how == "loaded" else {})))
        assert f"the image that was {how} is not {self.REF}; correct the digest in the stack's configuration" in said
        assert not (host.etc / "heliograph/controlplane.image").exists()
        assert host.do("facts", {})["installed"] == {}

    def test_no_archive(self, host):
        said = host.refused("image", self.spec(archive="/etc/image.tar"))
        assert "/etc/image.tar is not there; it is copied before this step, run `pulumi up` again" in said

    def test_gone(self, host):
        (host.state / "registry").write_text(self.REF + "\n")
        host.do("image", self.spec())
        (host.state / "images").write_text("")
        assert host.do("facts", {})["installed"]["image-cp"]["drift"] == [f"the image {self.REF} is gone"]

    def test_removed(self, host):
        before = host.tree()
        (host.state / "registry").write_text(self.REF + "\n")
        host.do("image", self.spec())
        host.do("remove", {"name": "image-cp"})
        assert (host.state / "images").read_text() == ""
        assert host.tree() == before


class TestRefusals:
    """What cannot be done is said in one sentence, before harm."""

    @pytest.mark.parametrize("verb", ["", "uninstall", "install now"])
    def test_verb(self, host, verb):
        assert (
            host.refused(verb, {}) == "usage: hostctl facts | keys | image | install | plan | remove | run < spec.json"
        )

    @pytest.mark.parametrize("text", ["", '{"name": "demo", "files": [{"content": "' + SECRET, "[]", "not JSON"])
    def test_json(self, host, text):
        before = host.tree()
        said = host.refused("install", text)
        assert "the specification on stdin is not" in said
        assert "JSON" in said
        assert SECRET not in said
        assert host.tree() == before

    def test_lacks(self, host):
        assert host.refused("install", {"files": []}).endswith("the specification lacks 'name'")

    def test_quadlet(self, host):
        """The generator's verdict comes before the first file is replaced."""
        host.do("install", spec_of())
        before = host.tree()
        bad = spec_of("two")
        bad["files"][2]["content"] += "Broken=yes\n"
        assert "podman's generator refuses the quadlet: unsupported key Broken" in host.refused("install", bad)
        assert host.tree() == before

    def test_unit_does_not_start(self, host):
        (host.state / "fail" / UNIT).touch()
        said = host.refused("install", spec_of())
        assert f"{UNIT} does not start: Job for {UNIT} failed" in said
        assert f"the journal of {UNIT}" in said
        assert host.calls().count(f"systemctl restart {UNIT}") == 3
        assert host.record("demo")["pending"]
        (host.state / "fail" / UNIT).unlink()
        assert host.do("install", spec_of())["changed"] == []
        assert running(host)
        assert "pending" not in host.record("demo")

    def test_unit_starts_at_another_try(self, host):
        """What failed for a moment does not fail the `up`, and is told."""
        (host.state / "fail" / UNIT).write_text("2")
        code, _, told = host.ask("install", spec_of())
        assert code == 0
        assert told.count(f"{UNIT} is started again, since it failed: Job for {UNIT} failed") == 2
        assert f"the journal of {UNIT}" in told
        assert running(host)

    def test_unknown_owner(self, host):
        spec = {"name": "x", "token": "1", "files": [{"path": "/etc/x", "content": "", "owner": "nobody-here"}]}
        assert "there is no user nobody-here" in host.refused("install", spec)
        assert not (host.etc / "x").exists()

    def test_missing_program(self, host):
        (host.root / "bin/systemctl").write_text("#!/nowhere/sh\n")
        assert "systemctl" in host.refused("install", spec_of())

    def test_kernel(self, host):
        """A host must have the settings; a container cannot, and says so."""
        spec = {"name": "host", "token": "1", "kernel": {"kernel.ostype": 1}}
        assert "the kernel refuses kernel.ostype=1" in host.refused("install", spec)
        (host.state / "virt").write_text("systemd-nspawn\n")
        (cannot,) = host.do("install", spec)["kernel_cannot"]
        assert cannot.startswith("kernel.ostype=1 (")
        host.do("remove", {"name": "host"})


class TestRemove:
    """After the last resource is gone the host is as it was found; data stays unless its removal was asked for."""

    def test_nothing_left(self, host):
        before = host.tree()
        (host.state / "registry").write_text(TestImage.REF + "\n")
        host.do("image", TestImage().spec())
        host.do("keys", TestKeys.SPEC)
        pem = {"path": "/etc/heliograph/tls/ca.pem", "content": "CA\n"}
        host.do(
            "install",
            {"name": "certificates", "token": "1", "files": [pem], "directories": [{"path": "/etc/heliograph/tls"}]},
        )
        host.do("install", spec_of())
        for name in ("demo", "certificates", "keys", "image-cp"):
            host.do("remove", {"name": name})
        assert host.tree() == before
        assert not list((host.state / "active").iterdir())
        assert f"systemctl disable -q {UNIT}" in host.calls()

    def test_again(self, host):
        before = host.tree()
        host.do("install", spec_of())
        for _ in range(2):
            host.do("remove", {"name": "demo"})
        assert host.tree() == before

    @pytest.mark.parametrize("purge", [False, True])
    def test_data(self, host, purge):
        host.do("install", spec_of(purge=["/var/lib/demo/data"] if purge else []))
        (host.lib / "demo/data/WiredTiger").touch()
        host.do("remove", {"name": "demo"})
        assert (host.lib / "demo/data/WiredTiger").exists() is not purge

    def test_keys_outlive_a_single_resource(self, host):
        host.do("install", {"name": "other", "token": "1"})
        host.do("keys", TestKeys.SPEC)
        host.do("install", spec_of())
        host.do("remove", {"name": "demo"})
        assert len(list((host.etc / "heliograph/keys").iterdir())) == 2


class TestRun:
    """The control plane's image is run once, with its data on stdin and nothing else of it where processes are listed."""

    SPEC = {  # noqa: RUF012
        "argv": ["seed"],
        "user": "",
        "volumes": ["/a:/a:ro"],
        "environment": {"X": "1"},
        "stdin": json.dumps({"admin_key": SECRET}),
    }

    @pytest.fixture
    def ready(self, host):
        (host.etc / "heliograph").mkdir()
        (host.etc / "heliograph/controlplane.image").write_text(TestImage.REF)
        (host.state / "answer").write_text('{"ok": true}\n')
        return host

    def test_run(self, ready):
        assert ready.do("run", self.SPEC) == {"ok": True}
        (call,) = ready.calls()
        assert call == (
            "podman run --rm -i --network=host --read-only --cap-drop=all --security-opt=no-new-privileges --pull=never "
            f"--user=0:0 --volume /a:/a:ro --env X=1 {TestImage.REF} seed"
        )
        assert SECRET in (ready.state / "stdin").read_text()

    def test_podman_that_fails_for_a_moment(self, ready):
        (ready.state / "podman-fails").write_text("once\ntwice\n")
        code, out, told = ready.ask("run", self.SPEC)
        assert (code, json.loads(out)) == (0, {"ok": True})
        assert told.count("podman could not run seed: OCI runtime error; trying again") == 2
        (ready.state / "podman-fails").write_text("1\n2\n3\n")
        assert ready.refused("run", self.SPEC).endswith(": OCI runtime error")

    def test_what_it_says_beside_its_answer_is_passed_on(self, ready):
        (ready.state / "complaint").write_text("tried again: no primary\n")
        assert ready.ask("run", self.SPEC)[2] == "tried again: no primary\n"

    def test_failure(self, ready):
        (ready.state / "code").write_text("3")
        (ready.state / "complaint").write_text("no primary in fra-a\n")
        assert ready.refused("run", self.SPEC).endswith(": no primary in fra-a")
        assert ready.do("run", self.SPEC | {"accept": [3]}) == {"ok": True}
