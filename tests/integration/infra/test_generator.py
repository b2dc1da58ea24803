"""podman's own generator (5.4.2, of the lab's Debian 13 tree) and systemd on what we render, and on the linter's key table.

They run by `chroot` in a mount namespace of its own: the units are mounted over /mnt of the tree, which is never written to.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from infra.quadlets import KEYS, SYSTEMD_KEYS, lint
from tests.lab.doctor import require_lab
from tests.lab.tools import prepare
from tests.unit.infra.sample import files, sample_region

PODMAN = (5, 4)
QUADLETS, UNITS = "/etc/containers/systemd/", "/etc/systemd/system/"
GENERATOR = "/usr/lib/systemd/system-generators/podman-system-generator"
INSIDE = 'mount --bind "$1" "$2/mnt" && mount -t proc proc "$2/proc" && shift && exec chroot "$@"'
REGIONS = {
    "MongoDB 6": sample_region(),
    "MongoDB 8, two nodes": sample_region(mongodb={"version": "8.0"}, control_plane={"nodes": 2}),
    "one host": sample_region(1, safety="none", mongodb={"members": 1}),
}

GOOD = files(sample_region())["fra-1"][f"{QUADLETS}heliograph-router.container"]


class Generated(NamedTuple):
    """What the generator made and said."""

    code: int
    units: dict[str, str]
    said: list[str]
    """Without `Loading source unit file …`."""


Generator = Callable[[Mapping[str, str]], Generated]
Verifier = Callable[[Mapping[str, str]], list[str]]


@pytest.fixture(scope="module")
def tree() -> Path:
    """An unpacked Debian 13 with podman."""
    require_lab()
    return prepare().golden


def inside(tree: Path, folder: Path, texts: Mapping[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of the tree, with the files (name → text) in /mnt."""
    for old in folder.iterdir():
        old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh", folder, tree, *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def generate(tree: Path, tmp_path: Path) -> Generator:
    """Quadlets, to what the generator makes of them."""

    def run(texts: Mapping[str, str]) -> Generated:
        done = inside(tree, tmp_path, texts, "env", "-i", "QUADLET_UNIT_DIRS=/mnt", GENERATOR, "--dryrun")
        parts = re.split(r"(?m)^---(\S+)---$", done.stdout)
        said = [re.sub(r"^quadlet-generator\[\d+\]: ", "", line) for line in done.stderr.splitlines()]
        return Generated(
            done.returncode,
            dict(zip(parts[1::2], parts[2::2], strict=True)),
            [line for line in said if not line.startswith("Loading source unit file")],
        )

    return run


@pytest.fixture
def verify(tree: Path, tmp_path: Path) -> Verifier:
    """Units, to what systemd has against them."""

    def run(units: Mapping[str, str]) -> list[str]:
        paths = [f"/mnt/{name}" for name in units]
        done = inside(tree, tmp_path, units, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths)
        return [*(done.stdout + done.stderr).splitlines(), *([f"exit {done.returncode}"] if done.returncode else [])]

    return run


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"(?m)^{key}=(.*)$", unit)


def start(unit: str) -> list[str]:
    """The words of ExecStart."""
    (line,) = values(unit, "ExecStart")
    return shlex.split(line)


def option(words: list[str], name: str) -> list[str]:
    """What stands behind `--name`, or after it."""
    found = [words[at + 1] for at, word in enumerate(words) if word == name]
    return found + [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
class TestRendered:
    """What we write is taken without a word, and podman is told what our rules want."""

    def test_accepted(self, region, generate):
        for host, texts in files(region).items():
            quadlets = {path.removeprefix(QUADLETS): text for path, text in texts.items() if path.startswith(QUADLETS)}
            made = generate(quadlets)
            assert (made.code, made.said) == (0, []), host
            assert set(made.units) == {name.replace(".container", ".service") for name in quadlets}
            for name, unit in made.units.items():
                check(name, unit, quadlets[name.replace(".service", ".container")])

    def test_systemd_takes_them(self, region, generate, verify):
        """The generated units, and those that we write ourselves."""
        for host, texts in files(region).items():
            made = generate(
                {path.removeprefix(QUADLETS): text for path, text in texts.items() if path.startswith(QUADLETS)}
            )
            own = {path.removeprefix(UNITS): text for path, text in texts.items() if path.startswith(UNITS)}
            assert len(own) == 2
            assert verify(made.units | own) == [], host


def check(name: str, unit: str, quadlet: str) -> None:
    """One generated unit holds what matters."""
    words = start(unit)
    assert words[:2] == ["/usr/bin/podman", "run"], name
    assert option(words, "--network") == ["host"], name
    assert option(words, "--cap-drop") == ["all"], name
    assert option(words, "--pull") == ["never"], name
    assert option(words, "--log-driver") == ["journald"], name
    assert option(words, "--pids-limit") == ["-1"], name
    assert option(words, "--ulimit") == ["nofile=64000:64000"], name
    assert re.fullmatch(r"2600[12]:2600[12]", *option(words, "--user")), name
    assert "--read-only" in words, name
    assert "--security-opt=no-new-privileges" in words, name
    assert sum(re.fullmatch(r"localhost/heliograph/\w+@sha256:[0-9a-f]{64}", word) is not None for word in words) == 1
    assert not set(words) & {"--publish", "-p", "--privileged", "--cap-add"}, name
    (notify,) = option(words, "--sdnotify")
    assert notify == ("healthy" if "\nNotify=healthy\n" in quadlet else "container"), name
    assert bool(option(words, "--health-cmd")) == bool(option(words, "--health-startup-cmd")) == (notify == "healthy")
    assert values(unit, "Type") == ["notify"], name
    (inner,), (outer,) = option(words, "--stop-timeout"), values(unit, "TimeoutStopSec")
    assert int(inner) < int(outer), name
    assert int(inner) >= 60 or "mongod-" not in name, name
    for key in ("TimeoutStartSec", "TasksMax", "MemoryMax", "Restart", "WantedBy"):
        assert len(values(unit, key)) == 1, (name, key)
    assert all(volume.startswith("/") and ":/" in volume for volume in option(words, "-v")), name


class TestArguments:
    """A value reaches the program in the container as the template has it."""

    def test_mongod(self, generate):
        name = "heliograph-mongod-fra-a"
        text = files(sample_region(mongodb={"version": "8.0"}))["fra-1"][f"{QUADLETS}{name}.container"]
        words = start(generate({f"{name}.container": text}).units[f"{name}.service"])
        assert option(words, "--entrypoint") == ["mongod"]
        assert words[-2:] == ["--config", "/etc/mongod.conf"]
        assert option(words, "--env") == ["GLIBC_TUNABLES=glibc.pthread.rseq=0"]
        assert option(words, "--health-cmd") == option(words, "--health-startup-cmd") == ["/listening 10.81.1.11 27020"]

    def test_carrier(self, generate):
        text = files(sample_region())["fra-1"][f"{QUADLETS}heliograph-carrier.container"]
        words = start(generate({"heliograph-carrier.container": text}).units["heliograph-carrier.service"])
        at = words.index("carrier")
        assert words[at : at + 7] == ["carrier", "--name", "builtin", "--host", "10.81.1.11", "--port", "2775"]


class TestBothRefuse:
    """What the generator refuses the linter refuses too, so that the generator need not be there."""

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("Uzer=1", "unsupported key 'Uzer' in group 'Container'"),
            ("Memory=1G", "unsupported key 'Memory' in group 'Container'"),
            ("TasksMax=5", "unsupported key 'TasksMax' in group 'Container'"),
            ("Image=", "no Image or Rootfs key specified"),
        ],
    )
    def test_refused(self, generate, line, says):
        text = GOOD.replace("LogDriver=", f"{line}\nLogDriver=")
        made = generate({"bad.container": text, "good.container": GOOD})
        assert made.code == 1
        assert list(made.units) == ["good.service"]
        assert says in "\n".join(made.said)
        assert lint("bad.container", text, PODMAN)

    @pytest.mark.parametrize(("before", "line"), [("LogDriver=", "and now?"), ("#", "Pull=never")])
    def test_unreadable(self, generate, before, line):
        """One such file costs the host all its units."""
        text = GOOD.replace(before, f"{line}\n{before}", 1)
        made = generate({"bad.container": text, "good.container": GOOD})
        assert (made.code, made.units) == (1, {})
        assert 'error loading "/mnt/bad.container"' in "\n".join(made.said)
        assert "podman drops all units" in lint("bad.container", text, PODMAN)[0]

    def test_misspelt_for_systemd(self, generate, verify):
        """The generator passes it on, and systemd goes without it."""
        text = GOOD.replace("TasksMax=", "TasksMaxx=")
        made = generate({"bad.container": text})
        assert (made.code, made.said) == (0, [])
        assert any("Unknown key 'TasksMaxx' in section [Service]" in line for line in verify(made.units))
        assert any("TasksMaxx= in [Service]" in finding for finding in lint("bad.container", text, PODMAN))

    def test_warned_of(self, generate):
        text = GOOD.replace("localhost/heliograph/mongod@", "mongod@")
        assert ["not a fully qualified image name" in line for line in generate({"bad.container": text}).said] == [True]
        assert ["names no registry" in finding for finding in lint("bad.container", text)] == [True]


class TestTraps:
    """What the linter says of quotes, backslashes and `$` is what this podman does."""

    @pytest.mark.parametrize(
        ("line", "becomes"),
        [
            ('HealthCmd=/bin/sh -c "exit 0"', r'--health-cmd "/bin/sh -c \"exit 0"'),
            ('Timezone="UTC', "--tz UTC"),
            ("Label=a=$HOME", "--label a=$HOME"),
            (r"Label=a=\x41", "--label a=A"),
            ("Label=a=%%d", "--label a=%%d"),
        ],
    )
    def test_as_told(self, generate, line, becomes):
        text = re.sub(
            "(?m)^(HealthCmd=.*|LogDriver=journald)\n",
            lambda m: f"{line}\n" if m[0].startswith(line[:9]) else m[0],
            GOOD,
        )
        text = text if line in text else text.replace("LogDriver=", f"{line}\nLogDriver=")
        unit = generate({"it.container": text}).units["it.service"]
        assert becomes in values(unit, "ExecStart")[0]
        assert bool(lint("it.container", text, PODMAN)) == (line != "Label=a=%%d")


def supported(generate: Generator, section: str, keys: list[str]) -> set[str]:
    """The keys that the generator does not call unsupported, each tried in a file of its own."""
    suffix = "container" if section == "Quadlet" else section.lower()
    made = generate({f"try-{key}.{suffix}": f"[{section}]\n{key}=x\n" for key in keys})
    refused = re.findall(rf"unsupported key '(\w+)' in group '{section}' in ", "\n".join(made.said))
    assert set(refused) <= set(keys)
    return set(keys) - set(refused)


class TestKeyTable:
    """The table is that of the generator: a key is supported if, and only if, the table says so."""

    @pytest.mark.parametrize("section", KEYS)
    def test_each_key_in_each_section(self, generate, section):
        every = sorted(
            {key for keys in KEYS.values() for key in keys} | {"Yaml", "ConfigMap", "Target", "File", "Nonsense"}
        )
        assert supported(generate, section, every) == {key for key, since in KEYS[section].items() if since <= PODMAN}

    def test_systemd_knows_its_keys(self, tree):
        argv = ["chroot", tree, "/usr/lib/systemd/systemd", "--dump-configuration-items"]
        items = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
        parts = re.split(r"(?m)^\[(\w+)\]$", items)
        known = {
            name: set(re.findall(r"(?m)^(\w+)=", text)) for name, text in zip(parts[1::2], parts[2::2], strict=True)
        }
        for section, keys in SYSTEMD_KEYS.items():
            assert set(keys) - known[section] == set(), section
