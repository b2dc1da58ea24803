"""SSH to the hosts, for what the programs read themselves: pinned host keys, one key, nothing of the user's own configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncssh

from infra.config import ConfigError, Host, Ssh

__all__ = ["HOSTCTL", "Shell", "sudo"]

HOSTCTL = "/usr/local/lib/heliograph/hostctl"
_CONNECT_SECONDS = 15
_OTHER_KEY = (
    "{where} answers with another SSH host key than the one in the configuration. Somebody else may be answering; "
    "if the host was installed anew, put its new key (cat /etc/ssh/ssh_host_ed25519_key.pub) into its host_key"
)


def sudo(ssh: Ssh) -> str:
    """What goes before a command that needs root."""
    return "" if ssh.user == "root" else "sudo -n "


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands as root on any of a region's hosts."""

    ssh: Ssh
    key: asyncssh.SSHKey

    @classmethod
    def of(cls, ssh: Ssh, private_key: str) -> Shell:
        """Raises ConfigError when the private key cannot be read."""
        try:
            return cls(ssh, asyncssh.import_private_key(private_key))
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise ConfigError(
                f"heliograph:sshKey cannot be read ({error}); set an unencrypted OpenSSH or PEM private key"
            ) from None

    async def run(self, host: Host, command: str, stdin: str, *, seconds: float) -> tuple[int, str, str]:
        """(exit code, stdout, stderr). Raises ConfigError that says why the host does not take the command."""
        where = f"{host.name} ({host.address})"
        try:
            async with asyncio.timeout(_CONNECT_SECONDS + seconds):
                async with asyncssh.connect(
                    host.address,
                    self.ssh.port,
                    username=self.ssh.user,
                    client_keys=[self.key],
                    known_hosts=asyncssh.import_known_hosts(f"* {host.host_key}\n"),
                    connect_timeout=_CONNECT_SECONDS,
                    agent_path=None,
                    config=None,
                ) as connection:
                    done = await connection.run(f"{sudo(self.ssh)}{command}", input=stdin, check=False)
        except asyncssh.HostKeyNotVerifiable:
            raise ConfigError(_OTHER_KEY.format(where=where)) from None
        except asyncssh.PermissionDenied:
            raise ConfigError(
                f"{where} refuses the SSH key for user {self.ssh.user}; put its public key into ~{self.ssh.user}/.ssh/authorized_keys there"
            ) from None
        except (OSError, TimeoutError, asyncssh.Error) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, asyncssh.DisconnectError) and "host key" in reason:  # it has none of the pinned kind
                raise ConfigError(_OTHER_KEY.format(where=where)) from None
            raise ConfigError(
                f"{where} cannot be reached on port {self.ssh.port} ({reason}); check the address, the host and its firewall"
            ) from None
        return done.exit_status or 0, str(done.stdout), str(done.stderr)

    async def hostctl(self, host: Host, verb: str, spec: Mapping[str, Any], *, seconds: float) -> tuple[int, str, str]:
        """`hostctl <verb>` as it is installed on the host."""
        return await self.run(host, f"python3 {HOSTCTL} {verb}", json.dumps(spec), seconds=seconds)
