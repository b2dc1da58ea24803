"""One playbook, run by ansible-runner in a folder of its own, of which nothing stays.

Secrets are never in a file: ssh gets its key from an agent that lives as long as the run (ansible-runner feeds it through a pipe), the API key is in anonymous
memory of this process, which children read by /proc. So a run that is killed leaves none.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.errors import ConfigError
from controlplane.ops.desired import Desired
from controlplane.settings import child_environment

__all__ = ["PLAYBOOKS", "Done", "Event", "event_of", "play"]

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
_SSH = "-F /dev/null -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/dev/null -o UserKnownHostsFile={known}"
_PREFIX = "heliograph-run-"
_SHOWN = {"runner_on_ok", "runner_on_failed", "runner_on_unreachable"}
_MESSAGE = 2_000


@dataclass(frozen=True, slots=True)
class Event:
    """One task of a playbook, on one host."""

    kind: str
    """ok, changed or failed."""
    task: str
    host: str
    message: str = ""
    """Why it failed; what a debug task says."""
    diff: tuple[str, ...] = ()
    """What changed, or in check mode would: a line for each file, unit or image."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a playbook ended."""

    status: str
    """successful, failed, canceled."""
    changed: int
    """Tasks that changed something."""
    problem: str = ""
    """The first failure that was not mended."""


def event_of(found: Mapping[str, Any]) -> Event | None:
    """What is worth telling of an event of ansible-runner; None for the rest."""
    data = found.get("event_data", {})
    result = data.get("res") or {}
    if found.get("event") not in _SHOWN or data.get("ignore_errors"):
        return None
    failed = found["event"] != "runner_on_ok"
    message = str(result.get("stderr") or result.get("msg") or "") if failed else ""
    kind = "failed" if failed else "changed" if result.get("changed") else "ok"
    host = str((data.get("remote_addr") if isinstance(data.get("remote_addr"), str) else "") or data.get("host", ""))
    return Event(kind, str(data.get("task", "")), host, message[:_MESSAGE], tuple(_diff(result.get("diff"))))


def _diff(found: Any) -> Iterator[str]:
    for one in found if isinstance(found, list) else [found]:
        if not isinstance(one, Mapping):
            continue
        if header := one.get("after_header") or one.get("before_header"):
            yield str(header)
        yield from str(one.get("prepared", "")).splitlines()


def _memory(text: str) -> int:
    """A descriptor of anonymous memory with this text, for children to read by /proc."""
    handle = os.memfd_create("heliograph")
    os.write(handle, text.encode())
    return handle


@contextmanager
def _private() -> Iterator[Path]:
    """A fresh folder, in memory where there is such a file system; gone afterwards. Those of runs that were killed go too: they hold no secret, only room."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder below it is made by mkdtemp, for this user alone
    place = memory if memory.is_dir() else Path(tempfile.gettempdir())
    for old in place.glob(f"{_PREFIX}*"):
        if old.stat().st_uid == os.getuid() and not Path("/proc", old.name.split("-")[2]).exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _inventory(desired: Desired, folder: Path) -> dict[str, Any]:
    variables = {
        "ansible_ssh_common_args": _SSH.format(known=folder / "known_hosts"),
        "ansible_control_path_dir": str(folder / "cp"),
        "heliograph_authority": str(folder / "authority.pem"),
    }
    every = desired.inventory["all"]
    return {"all": every | {"vars": every["vars"] | variables}}


def play(
    desired: Desired,
    playbook: str,
    variables: Mapping[str, Any],
    *,
    check: bool = False,
    opens: bool = False,
    tell: Callable[[Event], None],
    canceled: Callable[[], bool],
    project: Path = PLAYBOOKS,
) -> Done:
    """Run it to its end; with `opens` it is also given the region's secret key. ConfigError where Ansible is not installed. Blocks: call it in a thread."""
    try:
        import ansible_runner  # type: ignore[import-untyped]  # noqa: PLC0415 - of the extra `ops`
    except ModuleNotFoundError:
        raise ConfigError("Ansible is not installed here; run: uv sync --extra ops") from None
    if shutil.which("ssh-agent") is None:
        raise ConfigError("ssh-agent is not installed here; apt-get install openssh-client")
    failures: list[str] = []
    changed = 0

    def heard(found: dict[str, Any]) -> bool:
        nonlocal changed
        if event := event_of(found):
            changed += event.kind == "changed"
            if event.kind == "failed":
                failures.append(f"{event.task}: {event.message}")
            tell(event)
        return False  # keep no file of it

    key, secret = _memory(desired.admin_key), _memory(desired.secret_key if opens else "")
    try:
        with _private() as folder:
            (folder / "known_hosts").write_text(desired.known_hosts(), encoding="ascii")
            (folder / "authority.pem").write_text(desired.authority, encoding="ascii")
            run = ansible_runner.run(
                private_data_dir=str(folder),
                project_dir=str(project),
                playbook=playbook,
                inventory=_inventory(desired, folder),
                extravars=dict(variables),
                envvars={
                    "PATH": f"{Path(sys.executable).parent}:{child_environment().get('PATH', os.defpath)}",
                    "HELIOGRAPH_API_KEY_FILE": f"/proc/{os.getpid()}/fd/{key}",
                    "HELIOGRAPH_CA_FILE": str(folder / "authority.pem"),
                    **({"HELIOGRAPH_SECRET_KEY_FILE": f"/proc/{os.getpid()}/fd/{secret}"} if opens else {}),
                    "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
                    "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
                },
                ssh_key=desired.ssh_key.strip() + "\n",
                cmdline="--check --diff" if check else None,
                suppress_env_files=True,
                quiet=True,
                event_handler=heard,
                cancel_callback=canceled,
            )
            said = Path(run.config.artifact_dir, "stdout").read_text(errors="replace").strip()
    finally:
        os.close(key)
        os.close(secret)
    if run.status != "failed":
        return Done(run.status, changed)
    return Done(run.status, changed, failures[-1] if failures else said[-_MESSAGE:])
