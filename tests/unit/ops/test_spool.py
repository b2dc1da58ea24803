"""What happened is numbered once and for all, whatever was cut; and no secret is in it."""

from __future__ import annotations

from pathlib import Path

from controlplane.clock import SystemClock
from controlplane.ops.runner import Event
from controlplane.ops.spool import Spool
from tests.unit.ops.sample import KEY, sample


def test_numbers_stay_over_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = Spool(path, SystemClock())
    for n in range(3):
        first.tell(Event("changed", f"task {n}", "fra-1"))
    with path.open("ab") as file:
        file.write(b'{"at": 1, "kind": "cha')
    assert [line["task"] for line in first.after(1)] == ["task 1", "task 2"]
    second = Spool(path, SystemClock())  # whoever goes on
    assert second.count == 3
    second.tell(Event("failed", "task 3", "fra-1", "why"))
    assert [line["task"] for line in first.after(3)] == [line["task"] for line in second.after(3)] == ["task 3"]
    assert second.count == 4


def test_what_is_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "events.jsonl", SystemClock())
    spool.tell(Event("ok", "looked", "fra-1"))
    assert (spool.count, spool.task) == (0, "looked")
    spool.tell(Event("ok", "said", "fra-1", "drift"))
    spool.tell(Event("changed", "t" * 900, "h" * 900, "m" * 9000, tuple("d" * 900 for _ in range(90))))
    said, long = spool.after(0)
    assert said["message"] == "drift"
    assert (len(long["task"]), len(long["host"]), len(long["message"])) == (500, 200, 2000)
    assert {len(line) for line in long["diff"]} == {300}
    assert len(long["diff"]) == 50
    assert spool.changed == 1
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o077 == 0


def test_one_report_at_a_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "events.jsonl", SystemClock())
    for n in range(120):
        spool.tell(Event("changed", str(n), "x"))
    assert [len(spool.after(known)) for known in (0, 100, 120, 500)] == [100, 20, 0, 0]


def test_secrets_are_left_out(tmp_path: Path) -> None:
    known = sample()
    spool = Spool(tmp_path / "events.jsonl", SystemClock())
    spool.hide(known.admin_key, known.ssh_key)
    body = known.ssh_key.splitlines()[2]
    spool.tell(Event("failed", f"with {KEY}", "fra-1", f"{body} {known.ssh_key}", (KEY, body)))
    text = (tmp_path / "events.jsonl").read_text()
    assert KEY not in text
    assert body not in text
    assert KEY not in spool.task
