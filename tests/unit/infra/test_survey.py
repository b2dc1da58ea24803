"""Hosts are asked over real SSH before anything is changed: who does not answer as pinned is named with the mend, and what is as it was left is not touched."""

from __future__ import annotations

import ast
import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest

import infra.ssh
from infra.config import ConfigError, Region, Ssh
from infra.plan import plan
from infra.ssh import Shell
from infra.survey import Facts, Survey, hostctl_source, survey
from tests.unit.infra.sample import sample_region

HOST, USER, STRANGER = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))
Process = asyncssh.SSHServerProcess[str]


def answers(stdout: str = "", stderr: str = "", code: int = 0) -> Callable[[Process], Any]:
    """A host that says this, whatever it is asked."""

    async def serve(process: Process) -> None:
        await process.stdin.read()
        process.stdout.write(stdout)
        process.stderr.write(stderr)
        process.exit(code)

    return serve


@asynccontextmanager
async def sshd(serve: Any, key: asyncssh.SSHKey = HOST) -> AsyncIterator[int]:
    """A real SSH server that knows one user key. Its port."""
    authorized = asyncssh.import_authorized_keys(USER.export_public_key().decode())
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], authorized_client_keys=authorized, process_factory=serve
    )
    async with server:
        yield server.get_port()


def region_at(port: int, *, hosts: int = 1, user: str = "operator", pinned: asyncssh.SSHKey = HOST) -> Region:
    """A region whose hosts are all this machine, which a configuration would not allow."""
    region = sample_region(hosts, safety="none", mongodb={"members": hosts})
    public = " ".join(pinned.export_public_key().decode().split()[:2])
    ours = tuple(h.model_copy(update={"address": "127.0.0.1", "host_key": public}) for h in region.hosts)
    return region.model_copy(update={"hosts": ours, "ssh": Ssh(user=user, port=port)})


async def ask(region: Region, key: asyncssh.SSHKey = USER) -> Survey:
    return await survey(region, plan(region), Shell(region.ssh, key), "fresh", time.time())


async def problem(region: Region, key: asyncssh.SSHKey = USER) -> str:
    found = await ask(region, key)
    assert not found.facts
    (said,) = found.problems
    return said


class TestRefusals:
    """A host that is not the pinned one, or does not let us in, is named with what to do."""

    @pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
    async def test_other_host_key(self, kind):
        """Nothing is sent to it, not even the question."""
        asked = []
        async with sshd(asked.append, asyncssh.generate_private_key(kind)) as port:
            said = await problem(region_at(port))
        assert said.startswith("fra-1 (127.0.0.1) answers with another SSH host key than the one in the configuration")
        assert "put its new key (cat /etc/ssh/ssh_host_ed25519_key.pub) into its host_key" in said
        assert not asked

    async def test_other_user_key(self):
        async with sshd(answers()) as port:
            said = await problem(region_at(port), STRANGER)
        assert said == (
            "fra-1 (127.0.0.1) refuses the SSH key for user operator; "
            "put its public key into ~operator/.ssh/authorized_keys there"
        )

    async def test_nobody_listens(self, unused_tcp_port):
        said = await problem(region_at(unused_tcp_port))
        assert said.startswith(f"fra-1 (127.0.0.1) cannot be reached on port {unused_tcp_port} (")
        assert said.endswith("check the address, the host and its firewall")

    async def test_silence(self, monkeypatch):
        monkeypatch.setattr(infra.ssh, "_CONNECT_SECONDS", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and never says a word
            port = server.getsockname()[1]
            said = await problem(region_at(port))
        assert f"cannot be reached on port {port}" in said

    async def test_no_sudo(self):
        async with sshd(answers(stderr="sudo: a password is required\n", code=1)) as port:
            said = await problem(region_at(port))
        assert said == (
            "fra-1 (127.0.0.1): user operator may not sudo without a password; "
            "add 'operator ALL=(ALL) NOPASSWD: ALL' to /etc/sudoers.d/heliograph"
        )

    async def test_no_python(self):
        async with sshd(answers(stderr="bash: line 1: python3: command not found\n", code=127)) as port:
            said = await problem(region_at(port, user="root"))
        assert said == "fra-1 (127.0.0.1): has no python3; apt-get install python3"

    @pytest.mark.parametrize(
        ("stdout", "stderr", "shown"),
        [
            ("", "Segmentation fault\n", "Segmentation fault"),
            ("This account is not available.\n", "", "This account is not available."),
            ('{"unlike": "facts"}', "", '{"unlike": "facts"}'),
            ("[]", "", "[]"),
            ("3", "", "3"),
        ],
    )
    async def test_garbage(self, stdout, stderr, shown):
        async with sshd(answers(stdout, stderr)) as port:
            said = await problem(region_at(port))
        assert said == f"fra-1 (127.0.0.1): does not answer the survey: {shown}"

    async def test_every_host_in_one_list(self):
        async with sshd(answers(stderr="sudo: a password is required")) as port:
            found = await ask(region_at(port, hosts=3))
        assert [line.split()[0] for line in found.problems] == ["fra-1", "fra-2", "fra-3"]

    def test_key_with_passphrase(self):
        locked = USER.export_private_key("pkcs8-pem", passphrase="x").decode()
        with pytest.raises(ConfigError, match=r"heliograph:sshKey cannot be read \(.*set an unencrypted"):
            Shell.of(Ssh(), locked)

    def test_no_key(self):
        with pytest.raises(ConfigError, match="heliograph:sshKey cannot be read"):
            Shell.of(Ssh(), "geheim")


class TestFacts:
    """The host's own program travels with the question, runs there, and leaves nothing behind."""

    @pytest.mark.parametrize(("user", "before"), [("operator", "sudo -n "), ("root", "")])
    async def test_asked(self, user, before, tmp_path):
        for name in ("ss", "systemd-detect-virt", "podman", "sudo"):
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        commands, programs = [], []

        async def serve(process: Process) -> None:
            commands.append(process.command)
            programs.append(await process.stdin.read())
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-"],
                input=programs[-1],
                capture_output=True,
                text=True,
                env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            )
            process.stdout.write(done.stdout)
            process.stderr.write(done.stderr)
            process.exit(done.returncode)

        async with sshd(serve) as port:
            region = region_at(port, user=user)
            found = await ask(region)
        assert not found.problems
        assert commands == [f"{before}python3 -"]
        assert programs[0].startswith("from __future__ import annotations\n")  # else annotations need Python 3.10
        facts = found.facts["fra-1"]
        assert abs(facts.clock_offset) < 10
        assert set(facts.values["free"]) == {region.mongodb.data, "/var/lib/containers"}
        assert set(facts.values["data"]) == {"fra-config", "fra-a", "fra-b"}

    async def test_offline_asks_nobody(self):
        region = region_at(1).model_copy(update={"offline": True})
        assert await ask(region) == Survey({}, "offline")

    def test_runs_on_old_python(self):
        """On an old system the answer must be its version, not a traceback: nothing in the program is newer than Python 3.9."""
        ast.parse(hostctl_source(), feature_version=(3, 9))


INSTALLED = {
    "intact": {"token": "1700000000", "drift": []},
    "edited": {"token": "1700000000", "drift": ["/etc/x was changed"]},
    "cut": {"token": "", "drift": []},
}


class TestToken:
    """What is as the last run left it keeps its token, and so its resource does not change; all else gets a new one."""

    SURVEY = Survey({"fra-1": Facts({"installed": INSTALLED}, 0.0)}, "fresh")

    @pytest.mark.parametrize(
        ("resource", "token"),
        [("intact", "1700000000"), ("edited", "fresh"), ("cut", "fresh"), ("never installed", "fresh")],
    )
    def test_token(self, resource, token):
        assert self.SURVEY.token("fra-1", resource) == token

    def test_unknown_host(self):
        assert self.SURVEY.token("fra-2", "intact") == "fresh"

    def test_drift(self):
        assert self.SURVEY.facts["fra-1"].drift() == {"edited": ["/etc/x was changed"]}
