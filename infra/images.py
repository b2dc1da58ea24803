"""Container images for hosts without a registry: `python -m infra.images controlplane --base REF --output DIR` (`make images`).

One commit on one base gives one digest, on any machine: everything that carries a time or a path is left out or set to the commit's time. The archive's layers
are not compressed, because then `podman load` keeps the manifest as it is, and an image has the same digest on the build machine and on every host.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BuiltImage",
    "ImageError",
    "archive_digest",
    "base_python",
    "build",
    "build_controlplane",
    "site_packages",
    "source",
]

ROOT = Path(__file__).parent.parent
CONTAINERFILE = ROOT / "templates" / "images" / "controlplane.Containerfile"
REPOSITORY = "localhost/heliograph/controlplane"
_GLIBC = "manylinux_2_36"
"""Debian 12's: no older Debian has the Python that we need."""

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Container images for hosts without a registry.")


class ImageError(Exception):
    """An image could not be made; the message says what was missing or refused, and what to do."""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """What `podman load --input ARCHIVE` puts on a host, and the name it then has there."""

    reference: str
    """`localhost/heliograph/controlplane@sha256:…`"""
    archive: Path
    version: str
    revision: str
    """The commit; with `-dirty` if the working tree differed from it."""


def _run(command: Sequence[str | Path]) -> str:
    """Run a program in the project's folder and return what it printed."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError as error:
        raise ImageError(f"{command[0]} is not installed. Run: apt-get install {command[0]}") from error
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise ImageError(f"`{' '.join(map(str, command[:3]))} …` failed (exit code {done.returncode}):\n{said}")
    return done.stdout.strip()


def _uv() -> str:
    found = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".uv" / "bin"))
    if found is None:
        raise ImageError("uv is not installed. Run: make setup")
    return found


def source() -> tuple[str, str]:
    """The commit (with `-dirty` if the working tree differs from it) and its time in epoch seconds."""
    commit, epoch = _run(["git", "log", "-1", "--format=%H %ct"]).split()
    return f"{commit}-dirty" if _run(["git", "status", "--porcelain"]) else commit, epoch


def base_python(base: str) -> tuple[str, str]:
    """Version (3.13) and machine (x86_64) of the base image's Python: the wheels must fit them, not those of this machine."""
    ask = "import platform; print(*platform.python_version_tuple()[:2], platform.machine())"
    container = ["podman", "run", "--rm", "--pull=never", "--network=none", "--read-only", "--entrypoint=python3"]
    try:
        major, minor, machine = _run([*container, base, "-c", ask]).split()
    except (ImageError, ValueError) as error:
        raise ImageError(
            f"python3 of the base image {base} does not run; choose a base that has it: {error}"
        ) from error
    if (int(major), int(minor)) < (3, 11):
        raise ImageError(f"The base image {base} has Python {major}.{minor}; Heliograph needs 3.11 or newer")
    load = "import ctypes, sys\ntry: ctypes.CDLL('libstdc++.so.6')\nexcept OSError as error: sys.exit(str(error))"
    try:
        _run([*container, base, "-c", load])
    except ImageError as error:
        raise ImageError(
            f"The base image {base} has no libstdc++.so.6, which numpy needs; choose one with libstdc++6, such as python:3.13-slim: {error}"
        ) from error
    return f"{major}.{minor}", machine


def site_packages(requirements: Path, target: Path, *, python: str, machine: str) -> None:
    """Unpack wheels for another Python than this machine's into `target`, hashes checked, without what depends on where and when that was done."""
    command: list[str | Path] = [
        _uv(),
        "pip",
        "install",
        "--quiet",
        "--requirements",
        requirements,
        "--require-hashes",
        "--target",
        target,
    ]
    command += ["--python-version", python, "--python-platform", f"{machine}-{_GLIBC}", "--only-binary", ":all:"]
    _run([*command, "--link-mode", "copy", "--no-compile-bytecode", "--no-installer-metadata"])
    shutil.rmtree(target / "bin", ignore_errors=True)  # scripts that name this machine's Python
    (target / ".lock").unlink(missing_ok=True)
    for record in target.glob("*.dist-info/RECORD"):  # names the scripts; nothing is uninstalled from an image
        record.unlink()


def _base_id(base: str) -> str:
    """The base's id instead of its name, which would be written into the image and change its digest."""
    if shutil.which("podman") is None:
        raise ImageError("podman is not installed. Run: apt-get install podman")
    try:
        return _run(["podman", "image", "inspect", "--format", "{{.Id}}", base])
    except ImageError as error:
        raise ImageError(
            f"The base image {base} is not in podman's storage. Run: podman pull {base}\n{error}"
        ) from error


def _own_package(context: Path, epoch: str) -> None:
    """Unpack this project's wheel without `infra`, so that the control plane's image does not change with the deployment's code."""
    wheels = context / "wheels"
    _run(["env", f"SOURCE_DATE_EPOCH={epoch}", _uv(), "build", "--quiet", "--wheel", "--out-dir", wheels])
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            # RECORD names what is left out; WHEEL names the version of the build tool
            if not name.startswith("infra/") and not name.endswith(("/RECORD", "/WHEEL")):
                archive.extract(name, context / "site")
    shutil.rmtree(wheels)


def archive_digest(archive: Path) -> str:
    """`sha256:…` of the one image in an OCI archive: the digest that it has after `podman load`."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("index.json")
        if member is None:
            raise ImageError(f"{archive} is not an OCI archive")
        (manifest,) = json.load(member)["manifests"]
        return str(manifest["digest"])


def build(
    containerfile: Path, context: Path, repository: str, archive: Path, arguments: dict[str, str], epoch: str
) -> str:
    """Build an image, write it to `archive` and return `repository@sha256:…`. `arguments` must have VERSION.

    The tag ends with the image's id: podman forgets the repository of an image whose tag moved on, and then does not find it by digest any more.
    """
    command = ["podman", "build", "--quiet", "--pull=never", "--network=none", "--no-cache", "--layers=false"]
    command += ["--format=oci", "--identity-label=false", "--timestamp", epoch, "--file", str(containerfile)]
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    image = _run([*command, str(context)]).splitlines()[-1]
    name = f"{repository}:{arguments['VERSION'].replace('+', '-')}-{image[:12]}"
    _run(["podman", "tag", image, name])
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    _run(["podman", "save", "--quiet", "--format=oci-archive", "--uncompressed", "--output", partial, name])
    partial.replace(archive)
    return f"{repository}@{archive_digest(archive)}"


def build_controlplane(base: str, output: Path) -> BuiltImage:
    """Build the control plane on `base` and save it as `output/heliograph-controlplane.tar`."""
    base = _base_id(base)
    python, machine = base_python(base)
    version = str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    revision, epoch = source()
    archive = output.resolve() / "heliograph-controlplane.tar"
    with tempfile.TemporaryDirectory(prefix="heliograph-image-") as folder:
        context = Path(folder)
        requirements = context / "requirements.txt"
        export = ["export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-annotate", "--no-header"]
        _run([_uv(), *export, "--output-file", requirements])
        site_packages(requirements, context / "site", python=python, machine=machine)
        _own_package(context, epoch)
        arguments = {"BASE": base, "VERSION": version, "REVISION": revision}
        reference = build(CONTAINERFILE, context, REPOSITORY, archive, arguments, epoch)
    return BuiltImage(reference, archive, version, revision)


@app.callback()
def _main() -> None:
    """Keep `controlplane` a command, though it is the only one."""


@app.command()
def controlplane(
    base: Annotated[str, typer.Option(help="Debian-like image with python3 ≥ 3.11, in podman's storage.")],
    output: Annotated[Path, typer.Option(help="Folder of the archive.")],
) -> None:
    """Build the control plane's image and print its reference, archive and version as JSON."""
    try:
        image = build_controlplane(base, output)
    except ImageError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from None
    if image.revision.endswith("-dirty"):
        sys.stderr.write("Note: built with uncommitted changes; no commit reproduces this digest.\n")
    sys.stdout.write(json.dumps(asdict(image), default=str) + "\n")


if __name__ == "__main__":
    app()
