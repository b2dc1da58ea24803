"""The linter: a good unit has no findings, and each single fault in it has one that names its line."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from infra.config import ConfigError
from infra.quadlets import KEYS, SYSTEMD_KEYS, lint, main, require_clean
from tests.unit.infra.sample import files, sample_region

DIGEST = "sha256:" + "0" * 64
GOOD = f"""\
# A member.
[Unit]
Description=A member
After=network-online.target

[Container]
ContainerName=it
Image=localhost/mongod@{DIGEST}
Pull=never
Entrypoint=mongod
Exec=--config /etc/mongod.conf --keyFile /etc/keyfile
User=26001:26001
Network=host
ReadOnly=true
NoNewPrivileges=true
DropCapability=all
PidsLimit=-1
Ulimit=nofile=64000:64000
Volume=/var/lib/it:/data/db
Volume=named:/more:ro
Environment=SECRET_KEY_FILE=/etc/secret-key "LABEL=two words"
Secret=keyfile,type=mount,target=/etc/keyfile
Notify=healthy
HealthCmd=/listening 10.0.0.1 27017
HealthStartupCmd=/listening 10.0.0.1 27017
HealthStartupInterval=1s
StopTimeout=120
LogDriver=journald

[Service]
Restart=always
TimeoutStartSec=300
TimeoutStopSec=150
TasksMax=64000
MemoryMax=1G

[Install]
WantedBy=multi-user.target
"""
# The line to change, what it becomes ("" = it goes), and what the finding says. The finding names the line that was
# changed or, for what is missing, the section.
KEY_FAULTS = {
    "unknown key": ("Pull=never", "Pull=never\nPol=never", "no podman knows Pol="),
    "key of a later podman": ("PidsLimit=-1", "PidsLimit=-1\nMemory=1G", "Memory= came with podman 5.5 and 5.4 drops"),
    "key of a far later podman": ("PidsLimit=-1", "PidsLimit=-1\nAppArmor=x", "AppArmor= came with podman 5.8"),
    "systemd's key in [Container]": ("PidsLimit=-1", "PidsLimit=-1\nTasksMax=5", "does not belong into [Container]; move it to [Service]"),
    "podman's key in [Service]": ("Restart=always", "Restart=always\nHostName=x", "does not belong into [Service]; move it to [Container]"),
    "key of [Unit] in [Install]": ("WantedBy=multi-user.target", "WantedBy=multi-user.target\nAfter=x.target", "move it to [Unit]"),
    "misspelt key of systemd": ("Restart=always", "Restart=always\nMemoryMaxx=1G", "is none of SYSTEMD_KEYS"),
    "unknown section": ("[Service]", "[Serviec]\nX=y\n[Service]", "[Serviec] is no section of a .container file"),
    "section of another kind": ("[Service]", "[Volume]\nVolumeName=y\n[Service]", "[Volume] is no section of a .container file"),
    "no Key=value": ("Pull=never", "Pull=never\nand now?", "is no section and no Key=value"),
    "a key with a blank": ("Pull=never", "Pull=never\nRead Only=true", "is no section and no Key=value"),
    "before the first section": ("# A member.", "Pull=never", "stands before the first section"),
    "twice": ("Pull=never", "Pull=never\nPull=never", "Pull= stands in line 9 already"),
    "twice in [Service]": ("TasksMax=64000", "TasksMax=64000\nTasksMax=64000", "TasksMax= stands in line 34 already"),
    "continues into nothing": ("WantedBy=multi-user.target", "WantedBy=multi-user.target \\", "joins it with nothing"),
    "quotes in a health check": ("HealthCmd=/listening 10.0.0.1 27017", 'HealthCmd=/bin/sh -c "exit 0"', "before 5.8.2 cuts them off"),
    "quotes around a plain value": ("ContainerName=it", 'ContainerName="it"', "become part of the value"),
    "an open quote": ("Exec=--config /etc/mongod.conf --keyFile /etc/keyfile", "Exec=--config 'x", "opens a quote that nothing closes"),
    "a backslash": ("Exec=--config /etc/mongod.conf --keyFile /etc/keyfile", r"Exec=--config \x41", "has a backslash"),
    "a lone %": ("Exec=--config /etc/mongod.conf --keyFile /etc/keyfile", "Exec=--config %24external", "write %%"),
    "a lone $": ("Exec=--config /etc/mongod.conf --keyFile /etc/keyfile", "Exec=--config $HOME", "write $$"),
    "a comment behind a value": ("TasksMax=64000", "TasksMax=64000 # many", "begins no comment there"),
}  # fmt: skip
RULE_FAULTS = {
    "image by tag": (f"Image=localhost/mongod@{DIGEST}", "Image=localhost/mongod:8.0", "has no digest"),
    "image without registry": (f"Image=localhost/mongod@{DIGEST}", f"Image=library/mongod@{DIGEST}", "names no registry"),
    "no image": (f"Image=localhost/mongod@{DIGEST}", "", "[Container] has no Image="),
    "pulls": ("Pull=never", "Pull=newer", "Pull=newer must be Pull=never"),
    "pulls by default": ("Pull=never", "", "[Container] has no Pull=never"),
    "updates itself": ("Pull=never", "Pull=never\nAutoUpdate=registry", "AutoUpdate= restarts"),
    "network of its own": ("Network=host", "Network=podman", "Network=podman must be Network=host"),
    "no network": ("Network=host", "", "[Container] has no Network=host"),
    "published port": ("Network=host", "Network=host\nPublishPort=27017:27017", "PublishPort= means nothing"),
    "writable root": ("ReadOnly=true", "ReadOnly=false", "must be ReadOnly=true"),
    "writable root by default": ("ReadOnly=true", "", "has no ReadOnly=true"),
    "new privileges": ("NoNewPrivileges=true", "", "has no NoNewPrivileges=true"),
    "capabilities": ("DropCapability=all", "", "has no DropCapability=all"),
    "some capabilities": ("DropCapability=all", "DropCapability=CAP_CHOWN", "has no DropCapability=all"),
    "capabilities taken back": ("DropCapability=all", "DropCapability=all\nDropCapability=", "has no DropCapability=all"),
    "privileged": ("PidsLimit=-1", "PidsLimit=-1\nPodmanArgs=--privileged", "--privileged gets around"),
    "no user": ("User=26001:26001", "", "has no User="),
    "root": ("User=26001:26001", "User=0", "User=0 is root"),
    "root's group": ("User=26001:26001", "User=26001:0", "User=26001:0 is root"),
    "user by name": ("User=26001:26001", "User=mongodb", "give it in numbers"),
    "user in [Service]": ("Restart=always", "Restart=always\nUser=mongodb", "put User= into [Container]"),
    "dynamic user": ("Restart=always", "Restart=always\nDynamicUser=yes", "put User= into [Container]"),
    "no StopTimeout": ("StopTimeout=120", "", "has no StopTimeout="),
    "StopTimeout with a unit": ("StopTimeout=120", "StopTimeout=2min", "is no number of seconds"),
    "no TimeoutStopSec": ("TimeoutStopSec=150", "", "has no TimeoutStopSec="),
    "systemd first": ("TimeoutStopSec=150", "TimeoutStopSec=120", "ends before podman's StopTimeout=120"),
    "systemd first, with a unit": ("TimeoutStopSec=150", "TimeoutStopSec=1min 30s", "ends before podman's"),
    "TimeoutStopSec of nonsense": ("TimeoutStopSec=150", "TimeoutStopSec=long", "is no time span"),
    "mongod killed": ("StopTimeout=120", "StopTimeout=59", "may kill a mongod"),
    "healthy without check": ("HealthCmd=/listening 10.0.0.1 27017", "", "has no HealthCmd="),
    "healthy without startup check": ("HealthStartupCmd=/listening 10.0.0.1 27017", "", "has no HealthStartupCmd="),
    "start without limit": ("TimeoutStartSec=300", "", "has no TimeoutStartSec="),
    "mongod killed when slow": ("PidsLimit=-1", "PidsLimit=-1\nHealthOnFailure=kill", "HealthOnFailure=kill makes"),
    "threads": ("PidsLimit=-1", "", "has no PidsLimit="),
    "tasks": ("TasksMax=64000", "", "has no TasksMax="),
    "files": ("Ulimit=nofile=64000:64000", "Ulimit=core=0", "has no Ulimit=nofile"),
    "logs elsewhere": ("LogDriver=journald", "LogDriver=k8s-file", "must be LogDriver=journald"),
    "logs by default": ("LogDriver=journald", "", "has no LogDriver=journald"),
    "memory": ("MemoryMax=1G", "", "has no MemoryMax="),
    "stays down": ("Restart=always", "", "has no Restart="),
    "not after a reboot": ("WantedBy=multi-user.target", "", "has no WantedBy="),
    "anonymous volume": ("Volume=/var/lib/it:/data/db", "Volume=/data/db", "is anonymous"),
    "volume with a mode only": ("Volume=/var/lib/it:/data/db", "Volume=/data/db:ro", "is anonymous"),
    "secret in the environment": ("Secret=keyfile,type=mount,target=/etc/keyfile", "Secret=it,type=env", "use type=mount"),
}  # fmt: skip
FAULTS = KEY_FAULTS | RULE_FAULTS
SECRETS = (
    "Environment=DB_PASSWORD=hunter2",
    "Environment=OK=1 HELIOGRAPH_SECRET_KEY=hunter2",
    'Environment="API_TOKEN=hunter2"',
    "Environment=AWS_SECRET_ACCESS_KEY=hunter2",
    "Environment=KEY=hunter2",
    "Environment=URI=mongodb://root:hunter2@10.0.0.1/",
    "Exec=--port 1 --password hunter2",
    "Exec=--admin-key=hunter2",
    "Exec=mongodb://root:hunter2@10.0.0.1/",
    "PodmanArgs=--annotation=TOKEN=x TOKEN=hunter2",
    "Label=secret=hunter2",
)
NO_SECRETS = (
    "Environment=SECRET_KEY_FILE=/etc/secret",
    "Environment=MONKEY=banana KEYBOARD=de",
    "Environment=URI=mongodb://10.0.0.1:27017/?tls=true",
    "Exec=--tlsCertificateKeyFile /etc/tls.pem --keyFile /etc/keyfile",
    "Exec=--password-file=/etc/password --no-password",
    "Exec=%%d $$HOME 'two words'",
)


def mutated(text: str, line: str, becomes: str) -> str:
    assert text.count(f"\n{line}\n") + text.startswith(f"{line}\n") == 1, f"{line!r} must stand there once"
    return re.sub(f"(?m)^{re.escape(line)}\n", lambda _: f"{becomes}\n" if becomes else "", text, count=1)


def with_line(line: str) -> str:
    """Added to [Container]; in place of the Exec= that is there."""
    text = re.sub("(?m)^Exec=.*\n", "", GOOD) if line.startswith("Exec=") else GOOD
    return text.replace("Notify=healthy", f"{line}\nNotify=healthy")


def line_of(text: str, line: str) -> int:
    return text.splitlines().index(line) + 1


def numbers(findings: list[str]) -> list[int]:
    return [int(finding.split(":")[1]) for finding in findings]


class TestOneFault:
    """Each fault alone is found, once, in its line, with a mend; nothing else is."""

    def test_none(self):
        assert lint("it.container", GOOD) == []

    @pytest.mark.parametrize(("line", "becomes", "says"), FAULTS.values(), ids=FAULTS)
    def test_fault(self, line, becomes, says):
        text = mutated(GOOD, line, becomes)
        findings = lint("it.container", text)
        assert [says in finding for finding in findings] == [True], findings
        assert re.fullmatch(r"it\.container:\d+: .+[;:] .+", findings[0])
        start = line_of(GOOD, line)
        heading = [number for number, given in enumerate(GOOD.splitlines()[:start], 1) if given.startswith("[")][-1:]
        assert numbers(findings)[0] in [*heading, *range(start, start + len(becomes.splitlines()))]

    @pytest.mark.parametrize("line", SECRETS)
    def test_secret_in_clear_text(self, line):
        findings = lint("it.container", with_line(line))
        assert [f"{line.partition('=')[0]}= shows " in finding for finding in findings] == [True], findings
        assert "hunter2" not in findings[0]

    @pytest.mark.parametrize("line", NO_SECRETS)
    def test_no_secret(self, line):
        assert lint("it.container", with_line(line)) == []

    def test_all_at_once_in_order(self):
        text = "[Container]\n[Service]\n"
        findings = lint("it.container", text)
        assert numbers(findings) == sorted(numbers(findings))
        assert len(findings) == 16


class TestOnlyMongod:
    """What would be wrong for mongod is right for a router: it holds no data."""

    ROUTER = GOOD.replace("Entrypoint=mongod", "Entrypoint=mongos").replace("StopTimeout=120", "StopTimeout=30")

    def test_router_may_be_killed(self):
        text = mutated(self.ROUTER, "Pull=never", "Pull=never\nHealthOnFailure=kill")
        assert lint("router.container", text) == []

    @pytest.mark.parametrize("by", ["file", "entrypoint", "exec"])
    def test_known_as_mongod(self, by):
        text = {
            "file": self.ROUTER,
            "entrypoint": self.ROUTER.replace("Entrypoint=mongos", "Entrypoint=/usr/bin/mongod"),
            "exec": self.ROUTER.replace("Entrypoint=mongos\n", "").replace("Exec=", "Exec=mongod "),
        }[by]
        name = "heliograph-mongod-a.container" if by == "file" else "it.container"
        assert ["may kill a mongod" in finding for finding in lint(name, text)] == [True]


class TestSpellings:
    """The rules know what systemd and podman take for the same."""

    @pytest.mark.parametrize(
        ("line", "becomes"),
        [
            ("ReadOnly=true", "ReadOnly = yes"),
            ("DropCapability=all", "DropCapability=ALL"),
            ("User=26001:26001", "User=26001"),
            ("TimeoutStopSec=150", "TimeoutStopSec=2min 30s"),
            ("TimeoutStopSec=150", "TimeoutStopSec=infinity"),
            ("TimeoutStopSec=150", "TimeoutStopSec=125000ms"),
            ("Exec=--config /etc/mongod.conf --keyFile /etc/keyfile", "Exec=--config \\\n# why\n  /etc/mongod.conf"),
            ("[Service]", "; a comment\n[X-Ours]\nanything=goes\n[Service]"),
            ("Notify=healthy", "Notify=healthy\nHealthOnFailure=none"),
            ("[Service]", "[Quadlet]\nDefaultDependencies=false\n[Service]"),
        ],
    )
    def test_same(self, line, becomes):
        assert lint("it.container", mutated(GOOD, line, becomes)) == []


class TestVersions:
    """A key is accepted from the podman on that knew it first."""

    @pytest.mark.parametrize("section", KEYS)
    def test_first_version(self, section):
        name = "it.container" if section == "Quadlet" else f"it.{section.lower()}"
        for key, since in KEYS[section].items():
            text = f"[{section}]\n{key}=x\n"
            assert not [finding for finding in lint(name, text, since) if "came with" in finding], key
            before = (since[0], since[1] - 1) if since[1] else (since[0] - 1, 99)
            assert [finding for finding in lint(name, text, before) if f" {key}= came with" in finding], key

    def test_quotes_are_mended(self):
        text = mutated(GOOD, "HealthCmd=/listening 10.0.0.1 27017", 'HealthCmd=/bin/sh -c "exit 0"')
        assert lint("it.container", text, (5, 9)) == []

    @pytest.mark.parametrize("name", ["data.volume", "lan.network", "it.image", "it.pod"])
    def test_other_kinds(self, name):
        kind = name.partition(".")[2].title()
        assert lint(name, f"[{kind}]\nPodmanArgs=--log-level=info\n") == []
        assert len(lint(name, f"[{kind}]\nHealthCmd=x\n")) == 1
        assert ["there is no" in finding for finding in lint(name, "[Unit]\nDescription=x\n")] == [True]

    def test_of_systemd(self):
        assert "Image" not in SYSTEMD_KEYS["Service"]
        assert {"TasksMax", "MemoryMax", "Restart"} <= SYSTEMD_KEYS["Service"]


TEMPLATES = {
    path.rpartition("/")[2]: text
    for path, text in files(sample_region(mongodb={"version": "8.0"}))["fra-1"].items()
    if path.endswith(".container")
}
MUST = (
    *("Image", "Pull", "User", "Network", "ReadOnly", "NoNewPrivileges", "DropCapability", "PidsLimit", "Ulimit"),
    *("StopTimeout", "LogDriver", "Restart", "TimeoutStartSec", "TimeoutStopSec", "TasksMax", "MemoryMax", "WantedBy"),
)


@pytest.mark.parametrize("name", TEMPLATES)
class TestRealUnits:
    """No template can lose a rule unnoticed."""

    def test_clean(self, name):
        assert lint(name, TEMPLATES[name]) == []

    @pytest.mark.parametrize("key", MUST)
    def test_key_deleted(self, name, key):
        findings = lint(name, re.sub(f"(?m)^{key}=.*\n", "", TEMPLATES[name]))
        assert [f" no {key}=" in finding for finding in findings] == [True], findings

    @pytest.mark.parametrize("key", ["HealthCmd", "HealthStartupCmd"])
    def test_check_deleted(self, name, key):
        findings = lint(name, re.sub(f"(?m)^{key}=.*\n", "", TEMPLATES[name]))
        healthy = "Notify=healthy" in TEMPLATES[name]
        assert [f" no {key}=" in finding for finding in findings] == [True] * healthy

    @pytest.mark.parametrize(
        "line",
        [
            "PublishPort=8080:8080",
            "AutoUpdate=registry",
            "Memory=1G",
            "Volume=/data/db",
            "Environment=PASSWORD=hunter2",
            "Secret=x,type=env",
            "Pull=always",
            "TasksMax=1",
            "Uzer=1",
            "PodmanArgs=--privileged",
        ],
    )
    def test_line_added(self, name, line):
        text = TEMPLATES[name].replace("[Container]\n", f"[Container]\n{line}\n")
        assert any(line.partition("=")[0] in finding for finding in lint(name, text))

    def test_stopped_too_early(self, name):
        text = re.sub(r"(?m)^TimeoutStopSec=.*$", "TimeoutStopSec=10", TEMPLATES[name])
        assert ["ends before podman's" in finding for finding in lint(name, text)] == [True]


class TestRequireClean:
    """`pulumi up` refuses a bad unit with all that is wrong, and looks at nothing that is not one."""

    def test_all_findings_with_their_paths(self):
        files = {
            "/etc/containers/systemd/a.container": GOOD.replace("Pull=never", "Pull=always"),
            "/etc/containers/systemd/b.container": GOOD.replace("ReadOnly=true", "ReadOnly=no"),
            "/etc/systemd/system/c.service": "ExecStart=/bin/true\n",
        }
        with pytest.raises(ConfigError) as error:
            require_clean(files)
        lines = str(error.value).splitlines()
        assert [line.partition(":")[0] for line in lines] == [*files, "/etc/systemd/system/c.service"]

    def test_other_files(self):
        require_clean({"/etc/heliograph/node/a.env": "A=$B", "/etc/x.container": "x", "/etc/systemd/system/x": "x"})

    def test_unknown_kind(self):
        with pytest.raises(ConfigError, match=r"does not know \.conf; it knows \.container"):
            require_clean({"/etc/containers/systemd/x.conf": "[Container]\n"})

    def test_units_of_systemd(self):
        good = "[Unit]\nDescription=x\n[Service]\nExecStart=-/bin/sh -c 'echo $HOME > \"x\"'\n"
        require_clean({"/etc/systemd/system/x.service": good})
        with pytest.raises(ConfigError, match=r"x\.service:5: 'what' is no section and no Key=value"):
            require_clean({"/etc/systemd/system/x.service": f"{good}what\n"})


class TestCommand:
    """`python -m infra.quadlets` ends with 1 when there are findings, 0 when there are none."""

    def test_exit(self, tmp_path, capsys):
        path = tmp_path / "it.container"
        path.write_text(GOOD.replace("PidsLimit=-1", "PidsLimit=-1\nMemory=1G"))
        assert main([str(path)]) == 1
        assert (
            capsys.readouterr().out
            == f"{path}:18: Memory= came with podman 5.5 and 5.4 drops the unit for it; say it in another way\n"
        )
        assert main([str(path), "--podman", "5.5"]) == 0
        assert main([str(path), "--podman=5.8.1"]) == 0
        with pytest.raises(SystemExit, match="2"):
            main([str(path), "--podman", "new"])

    def test_as_a_module(self, tmp_path):
        path = tmp_path / "it.container"
        path.write_text(GOOD)
        assert subprocess.run([sys.executable, "-m", "infra.quadlets", path], check=False).returncode == 0
