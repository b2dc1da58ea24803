"""What an operation asks of the hosts' own tool: what would change, and files that only `pulumi up` can write stay."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra.host import hostctl


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records and files below a folder; programs answer as on a host where every unit runs and no image is there."""
    monkeypatch.setattr(hostctl, "STATE", tmp_path / "state")
    monkeypatch.setattr(hostctl, "RECORDS", tmp_path / "state" / "installed")
    monkeypatch.setattr(hostctl, "IMAGE_FILE", tmp_path / "image")

    def attempt(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if argv[:2] == ["systemctl", "is-active"]:
            return subprocess.CompletedProcess(argv, 0, "active\n", "")
        return subprocess.CompletedProcess(argv, int(argv[:3] == ["podman", "image", "exists"]), "", "")

    monkeypatch.setattr(hostctl, "attempt", attempt)
    monkeypatch.setattr(hostctl, "run", lambda *_, **__: "")
    monkeypatch.setattr(hostctl, "owner", lambda _: (tmp_path.stat().st_uid, tmp_path.stat().st_gid))
    return tmp_path


def spec(host: Path, content: str, **more: Any) -> dict[str, Any]:
    files = [{"path": str(host / "etc" / "a.conf"), "content": content}]
    return {"name": "ledger", "files": files, "units": ["ledger.service"], **more}


def test_nothing_is_to_be_done_twice(host: Path) -> None:
    first = hostctl.plan(spec(host, "one"))
    assert first == {"paths": [str(host / "etc" / "a.conf")], "units": ["ledger.service"], "change": True}
    hostctl.install(spec(host, "one", token="t1"))
    assert hostctl.plan(spec(host, "one")) == {"paths": [], "units": [], "change": False}
    assert hostctl.install(spec(host, "one"))["changed"] == []
    assert hostctl.plan(spec(host, "two"))["change"]


def test_a_plan_changes_nothing(host: Path) -> None:
    hostctl.install(spec(host, "one", token="t1"))
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in host.rglob("*") if path.is_file()}
    hostctl.plan(spec(host, "two"))
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in host.rglob("*") if path.is_file()} == before


def test_an_installation_that_was_cut_is_to_be_done(host: Path) -> None:
    hostctl.install(spec(host, "one", token="t1"))
    hostctl.write_record("ledger", hostctl.read_record("ledger") | {"pending": True})
    assert hostctl.plan(spec(host, "one")) == {"paths": [], "units": ["ledger.service"], "change": True}


def test_the_token_of_the_up_stays(host: Path) -> None:
    """The next `pulumi up` sees a resource that is as it left it."""
    hostctl.install(spec(host, "one", token="t1"))
    hostctl.install(spec(host, "two"))
    assert hostctl.read_record("ledger")["token"] == "t1"


def test_a_key_that_only_the_up_has_stays(host: Path) -> None:
    key = host / "etc" / "key"
    full = spec(host, "one", token="t1")
    full["files"].append({"path": str(key), "content": "secret", "mode": "400"})
    hostctl.install(full)
    without = spec(host, "two", keep=[str(key)])
    assert hostctl.plan(without)["paths"] == [str(host / "etc" / "a.conf")]
    hostctl.install(without)
    assert key.read_text() == "secret"
    record = hostctl.read_record("ledger")
    assert hostctl.drift(record) == []
    assert str(key) in record["files"]
    assert str(key) in hostctl.plan(spec(host, "two"))["paths"]  # not kept: it would go
    hostctl.install(spec(host, "two"))
    assert not key.exists()


def test_an_image(host: Path) -> None:
    wanted = {"name": "image-controlplane", "reference": "localhost/x@sha256:1", "current": True}
    assert hostctl.plan(wanted) == {"paths": [], "units": [], "absent": True, "turned": True, "change": True}
    hostctl.IMAGE_FILE.write_text("localhost/x@sha256:1")
    assert hostctl.plan(wanted)["turned"] is False
