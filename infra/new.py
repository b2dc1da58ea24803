"""`python -m infra.new STACK HOST=ADDRESS …`: a first configuration for a region.

Reads each host's SSH key over the network and shows its fingerprint: compare it with the one on the host's own console before `pulumi up`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import secrets
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncssh
import yaml

from infra.certificates import new_authority
from infra.config import ConfigError, parse_region
from infra.engine import pulumi_cli, stack_configuration, stack_file
from infra.plan import plan

__all__ = ["host_key", "main", "new_admin_key", "region_value"]

_NO_DOMAIN = "heliograph.invalid"
_EXAMPLE = "registry.example/name@sha256:" + "0" * 64


def region_value(
    name: str,
    hosts: dict[str, tuple[str, str]],
    user: str,
    images: dict[str, dict[str, str]],
    today: str,
    domain: str = _NO_DOMAIN,
) -> dict[str, Any]:
    """`heliograph:region` for these hosts (name → (address, SSH key)): three or more make a safe region, one makes a small one."""
    small = len(hosts) < 3
    chosen = list(hosts)[:3]
    mongodb: dict[str, Any] = {"version": "8.0", "image": images["mongod"], "members": 1 if small else 3}
    if len(hosts) != mongodb["members"]:
        mongodb |= {
            "shards": [{"name": "a", "hosts": chosen[: mongodb["members"]]}],
            "config_hosts": chosen[: mongodb["members"]],
        }
    return {
        "name": name,
        "safety": "none" if small else "host",
        "ssh": {"user": user},
        "hosts": [{"name": host, "address": address, "host_key": key} for host, (address, key) in hosts.items()],
        "mongodb": mongodb,
        "control_plane": {"image": images["controlplane"]},
        "ledger": {"domain": domain},
        "certificates": {"not_before": today},
    }


async def host_key(address: str) -> str:
    """The ed25519 host key that answers there. ConfigError where none does."""
    try:
        key = await asyncssh.get_server_host_key(address, server_host_key_algs=["ssh-ed25519"], config=None)
    except (OSError, asyncssh.Error) as error:
        raise ConfigError(
            f"{address} does not answer on port 22 ({error}); check the address, the host and its firewall"
        ) from None
    if key is None:
        raise ConfigError(f"{address} has no ed25519 host key; run ssh-keygen -A there")
    return key.export_public_key().decode().strip()


def new_admin_key() -> str:
    """From the control plane's own command, so that the form of a key is known in one place."""
    program = Path(sys.executable).parent / "heliograph"
    done = subprocess.run([str(program), "keys", "generate"], capture_output=True, text=True, check=True)  # noqa: S603 - our own
    return done.stdout.strip()


def _images(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {"mongod": {"reference": options.mongod or _EXAMPLE}}
    if options.controlplane and options.controlplane.endswith(".json"):
        made = json.loads(Path(options.controlplane).read_text(encoding="utf-8") or "{}")
        if "reference" not in made:
            raise ConfigError(
                f"{options.controlplane} names no image; run `make images` again and look at what it says"
            )
        found["controlplane"] = {"reference": made["reference"], "archive": made["archive"]}
    else:
        found["controlplane"] = {"reference": options.controlplane or _EXAMPLE}
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infra.new", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stack", help="name of the stack and of the region, such as fra")
    parser.add_argument("hosts", nargs="+", metavar="NAME=ADDRESS")
    parser.add_argument("--user", default="operator", help="SSH user: root, or one who may sudo without a password")
    parser.add_argument("--ssh-key", type=Path, required=True, help="private key of that user, without passphrase")
    parser.add_argument(
        "--domain",
        help="a domain of yours, the same in all regions: it is in the name of every ledger's log",
    )
    parser.add_argument(
        "--beside",
        metavar="STACK",
        help="a stack of this machine whose region this one joins: secret key and domain become its own",
    )
    parser.add_argument("--mongod", help="image by digest, such as docker.io/library/mongo@sha256:…")
    parser.add_argument("--controlplane", help="image by digest, or the JSON file that `make images` wrote")
    return parser


def _shared(options: argparse.Namespace) -> tuple[str, str]:
    """(secret key, domain): what all regions have alike."""
    if options.beside is None:
        return secrets.token_hex(32), options.domain or _NO_DOMAIN
    region, known = stack_configuration(options.beside)
    secret, domain = known["secretKey"], ((region or {}).get("ledger") or {}).get("domain", _NO_DOMAIN)
    if secret is None:
        raise ConfigError(f"stack {options.beside} has no secretKey; name a stack that `infra.new` made")
    if options.domain not in (None, domain):
        raise ConfigError(
            f"the domain of {options.beside} is {domain}, and regions that belong together have one; leave --domain out"
        )
    return secret, domain


def _write_region(stack: str, value: dict[str, Any]) -> None:
    """As YAML that people edit, beside the secrets that Pulumi wrote."""
    path = stack_file(stack)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["config"] = {"heliograph:region": value, **document["config"]}
    path.write_text(yaml.safe_dump(document, sort_keys=False, width=140), encoding="utf-8")


def _refuse_existing(stack: str) -> None:
    """New secrets over old ones would lock a region out of its own data."""
    path = stack_file(stack)
    known = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("config", {}) if path.exists() else {}
    if any(name.startswith("heliograph:") for name in known):
        raise ConfigError(
            f"stack {stack} is configured already; edit {path} to change its region. Nothing was changed."
        )


def _addresses(texts: list[str]) -> dict[str, str]:
    found = dict(text.partition("=")[::2] for text in texts)
    if wrong := [name for name, address in found.items() if not address]:
        raise ConfigError(f"{wrong[0]!r} is not of the form name=address, such as fra-1=10.0.0.11")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Create the stack, its configuration and its secrets."""
    options = _parser().parse_args(arguments)
    try:
        addresses = _addresses(options.hosts)
        keys = {name: asyncio.run(host_key(address)) for name, address in addresses.items()}
        today = datetime.now(UTC).date()
        hosts = {name: (address, keys[name]) for name, address in addresses.items()}
        secret, domain = _shared(options)
        value = region_value(options.stack, hosts, options.user, _images(options), today.isoformat(), domain)
        topology = plan(parse_region(value))
        certificate, key = new_authority(options.stack, today)
        pulumi_cli("stack", "select", "--create", options.stack)
        _refuse_existing(options.stack)
        pulumi_cli("config", "set", "--stack", options.stack, "authorityCertificate", stdin=certificate)
        for name, text in {
            "sshKey": options.ssh_key.read_text(encoding="utf-8"),
            "authorityKey": key,
            "secretKey": secret,
            "adminKey": new_admin_key(),
            "ledgerKey": base64.b64encode(secrets.token_bytes(32)).decode(),
        }.items():
            pulumi_cli("config", "set", "--stack", options.stack, "--secret", name, stdin=text)
        _write_region(options.stack, value)
    except (ConfigError, OSError, ValueError) as error:
        raise SystemExit(f"Error: {error}") from None
    sys.stdout.write(
        f"Stack {options.stack}: {len(topology.hosts)} hosts, {len(topology.shards)} shard, in infra/stacks/Pulumi.{options.stack}.yaml\n"
    )
    sys.stdout.write(
        "Compare the SSH keys with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on each host's console:\n"
    )
    for name, text in keys.items():
        sys.stdout.write(f"  {name}  {asyncssh.import_public_key(text).get_fingerprint()}\n")
    if _EXAMPLE in json.dumps(value):
        sys.stdout.write("Put the digests of your images into mongodb.image and control_plane.image.\n")
    if value["ledger"]["domain"] == _NO_DOMAIN:
        sys.stdout.write(
            "Put a domain of yours into ledger.domain, the same in all regions: it is in the name of every log, for ever.\n"
        )
    sys.stdout.write(f"Then: pulumi up --stack {options.stack}\n")
    sys.stdout.write(
        f"Regions that mirror each other's ledger know each other first: `python -m infra.peer {options.stack} --into OTHER` (docs/operations.md).\n"
    )


if __name__ == "__main__":
    main()
