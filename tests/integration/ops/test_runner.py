"""A real Ansible runs a playbook on this machine: its events come, it can be ended, and nothing of it stays."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from controlplane.ops.desired import Desired
from controlplane.ops.runner import Done, Event, event_of, play
from tests.unit.ops.sample import KEY, sample


def project(folder: Path, tasks: str) -> Path:
    folder.mkdir()
    (folder / "ansible.cfg").write_text("[defaults]\ngathering = explicit\n")
    (folder / "a.yml").write_text(f"- hosts: controller\n  tasks:\n{tasks}")
    return folder


def run(folder: Path, known: Desired, canceled: Any = lambda: False, **options: Any) -> tuple[Done, list[Event]]:
    heard: list[Event] = []
    done = play(known, "a.yml", {"word": "said"}, tell=heard.append, canceled=canceled, project=folder, **options)
    return done, heard


def leftovers() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"heliograph-run-{os.getpid()}-")}


def test_events_secrets_and_what_stays(tmp_path: Path) -> None:
    """The playbook itself looks for the secrets, in every file of its run and in its own environment, and finds none."""
    known, before = sample(), leftovers()
    body = known.ssh_key.splitlines()[2]
    tasks = f"""
    - name: Read the key as a playbook does
      ansible.builtin.assert:
        that: lookup('ansible.builtin.file', lookup('ansible.builtin.env', 'HELIOGRAPH_API_KEY_FILE')) == '{KEY}'
    - name: The agent has the other one
      ansible.builtin.command: ssh-add -l
    - name: No file of the run has either
      ansible.builtin.command:
        argv: [grep, -rlsF, -D, skip, -e, "{KEY}", -e, "{body}", "{{{{ lookup('ansible.builtin.env', 'HELIOGRAPH_CA_FILE') | dirname }}}}"]
      register: found
      failed_when: found.rc != 1
    - name: Nor its environment
      ansible.builtin.shell: tr '\\0' '\\n' < /proc/$PPID/environ | grep -cF -e '{KEY}' -e '{body}'
      register: found
      failed_when: found.rc != 1
"""
    done, heard = run(project(tmp_path / "p", tasks), known)
    assert done.status == "successful", done.problem
    assert done.changed == 3
    assert [event.kind for event in heard] == ["ok", "changed", "changed", "changed"]
    assert leftovers() == before


def test_a_failure_is_told_with_its_reason(tmp_path: Path) -> None:
    tasks = "    - name: Refuse\n      ansible.builtin.fail:\n        msg: 'not {{ word }} so'\n"
    done, heard = run(project(tmp_path / "p", tasks), sample())
    assert (done.status, done.problem) == ("failed", "Refuse: not said so")
    assert [(event.kind, event.task) for event in heard] == [("failed", "Refuse")]


def test_what_ansible_cannot_read_is_told(tmp_path: Path) -> None:
    done, heard = run(project(tmp_path / "p", "    - no_such_module: {}\n"), sample())
    assert done.status == "failed"
    assert "no_such_module" in done.problem
    assert heard == []


def test_cancel(tmp_path: Path) -> None:
    before, begun = leftovers(), threading.Event()
    killed = Path("/dev/shm/heliograph-run-99999999-x")  # of a process that is no more
    killed.mkdir()
    tasks = "    - name: Begin\n      ansible.builtin.debug:\n        msg: x\n    - name: Wait\n      ansible.builtin.pause:\n        seconds: 300\n"
    heard: list[Event] = []

    def tell(event: Event) -> None:
        heard.append(event)
        begun.set()

    started = time.monotonic()
    done = play(sample(), "a.yml", {}, tell=tell, canceled=begun.is_set, project=project(tmp_path / "p", tasks))
    assert done.status == "canceled"
    assert time.monotonic() - started < 60
    assert leftovers() == before
    assert not killed.exists()


def test_check_mode_changes_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    target = tmp_path / "target"
    tasks = f"    - name: Write\n      ansible.builtin.copy:\n        content: new\n        dest: {target}\n        mode: '0600'\n"
    folder = project(tmp_path / "p", tasks)
    done, [event] = run(folder, sample(), check=True)
    assert (done.status, done.changed, event.kind) == ("successful", 1, "changed")
    assert str(target) in event.diff
    assert not target.exists()
    assert run(folder, sample())[0].changed == 1
    assert run(folder, sample())[0].changed == 0


def test_known_hosts_are_the_pinned_keys() -> None:
    known = sample()
    assert known.known_hosts().startswith("[192.0.2.1]:2222 ssh-ed25519 ")
    assert KEY not in repr(known)
    assert known.ssh_key not in repr(known)


@pytest.mark.parametrize("event", ["playbook_on_start", "runner_on_start", "verbose"])
def test_what_is_not_told(event: str) -> None:
    assert event_of({"event": event, "event_data": {"task": "x"}}) is None
