"""The container images: what is in them, and that a host knows them by the digest that the build printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.images import ROOT, archive_digest
from tests.lab.images import BASE, Images, Podman, base_archive, build, missing

CONFINED = ("--rm", "--pull=never", "--network=none", "--read-only", "--cap-drop=all")
FIND = "find / -xdev {what} -print 2>/dev/null | grep -Ev '^/(proc|sys|dev)(/|$)'"


@pytest.fixture(scope="module")
def images() -> Images:
    if reason := missing():
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return build()


@pytest.fixture(scope="module")
def host(images: Images) -> Iterator[Podman]:
    """Another machine's store, into which the archives were loaded."""
    with tempfile.TemporaryDirectory(prefix="heliograph-store-", ignore_cleanup_errors=True) as folder:
        podman = Podman(Path(folder))
        for image in (images.controlplane, images.controlplane_next, images.mongod):
            podman.call("podman", "load", "--quiet", "--input", image.archive)
        yield podman


def confined(host: Podman, reference: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    return host.run("podman", "run", *CONFINED, "--security-opt=no-new-privileges", *options, reference, *command)


def shell(host: Podman, reference: str, script: str) -> str:
    done = confined(host, reference, "-c", script, options=("--entrypoint=/bin/sh",))
    assert not done.stderr, done.stderr
    return done.stdout.strip()


class TestControlPlane:
    """A node runs with nothing that it does not need: no root, no capability, no file that it could change, no tool to install others."""

    def test_it_runs_confined_and_is_known_by_its_digest(self, images: Images, host: Podman) -> None:
        done = confined(host, images.controlplane.reference, "version")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == "0.1.0"

    def test_a_wrong_setting_ends_with_its_sentence(self, images: Images, host: Podman) -> None:
        options = (
            "--env=HELIOGRAPH_SECRET_KEY=a-key-of-at-least-32-characters-for-tests",
            "--env=HELIOGRAPH_NO_SUCH=1",
        )
        done = confined(host, images.controlplane.reference, "node", options=options)
        assert done.returncode == 2
        assert "HELIOGRAPH_NO_SUCH: no such setting" in done.stderr
        assert "Traceback" not in done.stderr

    def test_it_is_not_root_and_can_change_no_file(self, images: Images, host: Podman) -> None:
        reference = images.controlplane.reference
        assert shell(host, reference, "id -u; id -g; grep -E 'CapEff|NoNewPrivs' /proc/self/status").split() == [
            *("10001", "10001"),
            *("CapEff:", "0000000000000000", "NoNewPrivs:", "1"),
        ]
        writable = "--entrypoint=/bin/sh", "--read-only=false"
        assert confined(host, reference, "-c", FIND.format(what="-type f -writable"), options=writable).stdout == ""
        places = confined(host, reference, "-c", FIND.format(what="-type d -writable"), options=writable).stdout
        assert set(places.split()) <= {"/tmp", "/var/tmp", "/run/lock"}

    def test_it_has_nothing_to_install_or_build_with(self, images: Images, host: Podman) -> None:
        reference = images.controlplane.reference
        assert shell(host, reference, "command -v pip pip3 uv gcc cc make apt-get; true") == ""
        modules = "('pip', 'setuptools', 'infra', 'pulumi', 'fiftyone', 'pytest')"
        look = f"import importlib.util as u; print([n for n in {modules} if u.find_spec(n)])"
        assert shell(host, reference, f'python3 -c "{look}"') == "[]"

    def test_it_is_compiled_whatever_the_files_times(self, images: Images, host: Podman) -> None:
        script = (
            "cd /opt/heliograph/lib/python3*/site-packages; find . -name '*.py' | wc -l; find . -name '*.pyc' | wc -l"
        )
        sources, compiled = shell(host, images.controlplane.reference, script).split()
        assert sources == compiled
        flags = "head -c 8 /opt/heliograph/lib/python3*/site-packages/controlplane/__pycache__/cli.*.pyc | od -An -t u1 -j 4"
        assert shell(host, images.controlplane.reference, flags).split() == [
            "1",
            "0",
            "0",
            "0",
        ]  # PEP 552: hash, unchecked

    def test_it_says_where_it_comes_from(self, images: Images, host: Podman) -> None:
        show = '{{index .Labels "org.opencontainers.image.%s"}}'
        labels = "|".join(show % name for name in ("version", "licenses", "revision", "source"))
        said = [
            host.call("podman", "image", "inspect", "--format", labels, image.reference).split("|")
            for image in (images.controlplane, images.controlplane_next)
        ]
        assert [labels[0] for labels in said] == ["0.1.0", "0.1.0-next"]
        assert said[0][1:] == said[1][1:]
        assert all(said[0])

    def test_the_next_one_stands_beside_it(self, images: Images, host: Podman) -> None:
        assert images.controlplane.reference != images.controlplane_next.reference
        assert confined(host, images.controlplane_next.reference, "version").stdout.strip() == "0.1.0"


class TestMongod:
    """The lab's database image has the programs that the deployment starts."""

    def test_both_programs_run(self, images: Images, host: Podman) -> None:
        assert "v6.0.5" in shell(host, images.mongod.reference, "/usr/bin/mongod --version")
        assert "config" in shell(host, images.mongod.reference, "/usr/bin/mongos --help")


class TestBuilding:
    """Who builds the same commit on the same base gets the digest that was reviewed, and who cannot build learns why."""

    def test_two_builds_give_one_digest(self, images: Images, tmp_path: Path) -> None:
        """In two clones, so that neither path, name of the base, umask nor what is being edited here has a part in it."""
        with tempfile.TemporaryDirectory(prefix="heliograph-store-", ignore_cleanup_errors=True) as folder:
            podman = Podman(Path(folder))
            podman.call("podman", "import", "--quiet", base_archive(), BASE)
            podman.call("podman", "tag", BASE, "localhost/other-name:1")
            made = []
            for name, base, umask in (("one", BASE, "022"), ("two", "localhost/other-name:1", "077")):
                script = f'umask {umask}; git clone --quiet . {tmp_path / name} && cd {tmp_path / name} && exec "$@"'
                path = f"PATH={ROOT / '.uv' / 'bin'}:{os.environ['PATH']}"
                command = (sys.executable, "-m", "infra.images", "controlplane", "--base", base, "--output", "build")
                made.append(json.loads(podman.call("sh", "-c", script, "sh", "env", path, *command)))
                assert made[-1]["reference"].endswith(archive_digest(Path(made[-1].pop("archive"))))
        assert made[0] == made[1]
        assert not made[0]["revision"].endswith("-dirty")

    def test_a_base_that_is_not_there_is_named(self, images: Images, tmp_path: Path) -> None:
        podman = Podman(tmp_path / "store")
        command = (sys.executable, "-m", "infra.images", "controlplane", "--base", "localhost/none:1")
        done = podman.run(*command, "--output", tmp_path)
        assert done.returncode == 2
        assert "localhost/none:1 is not in podman's storage. Run: podman pull localhost/none:1" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_base_without_a_library_that_we_need_is_named(self, images: Images, tmp_path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="heliograph-store-", ignore_cleanup_errors=True) as folder:
            podman = Podman(Path(folder))
            podman.call("podman", "import", "--quiet", base_archive(), BASE)
            poor = tmp_path / "poor.Containerfile"
            poor.write_text(f"FROM {BASE}\nRUN rm /usr/lib/*/libstdc++.so.6*\n")
            podman.call(
                "podman", "build", "--quiet", "--network=none", "--tag=localhost/poor:1", "--file", poor, tmp_path
            )
            command = (sys.executable, "-m", "infra.images", "controlplane", "--base", "localhost/poor:1")
            done = podman.run(*command, "--output", tmp_path)
        assert done.returncode == 2
        assert "has no libstdc++.so.6" in done.stderr
        assert "Traceback" not in done.stderr
