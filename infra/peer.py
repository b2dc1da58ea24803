"""`python -m infra.peer STACK`: what another region must know of this one to mirror its ledger: names, addresses and public keys, nothing secret.

Prints an entry for `ledger.peers` of the other region, in YAML; `--into OTHER` puts it there, where the other stack's file is in this project.
"""

from __future__ import annotations

import argparse
import base64
import sys
from typing import Any

import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from infra.certificates import authorities
from infra.config import ConfigError, Secrets, parse_region, parse_secrets
from infra.engine import stack_configuration, stack_file
from infra.plan import Topology, plan

__all__ = ["add_peer", "main", "peer_entry", "public_key"]


def public_key(seed: str, role: str) -> str:
    """The public Ed25519 key, base64, of a ledger with this key (32 bytes in base64): `role` is log, witness or mirror. As `controlplane.ledger.note` derives it."""
    info = f"heliograph/ledger/{role}/v1".encode()
    private = HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(base64.b64decode(seed))
    return base64.b64encode(Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()).decode()


def peer_entry(topology: Topology, secrets: Secrets) -> dict[str, Any]:
    """A region, as `ledger.peers` of the others has it; nothing secret."""
    seed = secrets.ledger_key.get_secret_value()
    return {
        "name": topology.region,
        "urls": [ledger.url for ledger in topology.ledgers],
        "log_keys": list(dict.fromkeys([public_key(seed, "log"), *secrets.log_keys])),
        "witness_key": public_key(seed, "witness"),
        "mirror_key": public_key(seed, "mirror"),
        "authority": authorities(secrets),
    }


def add_peer(stack: str, entry: dict[str, Any]) -> None:
    """Into the stack's file, in place of an older one of that name. Raises ConfigError when the result would be wrong."""
    path = stack_file(stack)
    if not path.exists():
        raise ConfigError(f"{path} is not there; paste the entry into ledger.peers of the other region by hand")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    region = document["config"]["heliograph:region"]
    ledger = region.setdefault("ledger", {})
    others = [peer for peer in ledger.get("peers", []) if peer["name"] != entry["name"]]
    ledger["peers"] = sorted([*others, entry], key=lambda peer: str(peer["name"]))
    parse_region(region)
    path.write_text(yaml.safe_dump(document, sort_keys=False, width=140), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Print the entry, or put it into another stack's file."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.peer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stack")
    parser.add_argument("--into", metavar="OTHER", help="a stack of this project that is to know it")
    options = parser.parse_args(arguments)
    try:
        value, secret_values = stack_configuration(options.stack)
        topology, secrets = plan(parse_region(value)), parse_secrets(secret_values)
        entry = peer_entry(topology, secrets)
        if options.into:
            add_peer(options.into, entry)
    except ConfigError as error:
        raise SystemExit(f"Error: {error}") from None
    if options.into:
        sys.stdout.write(
            f"{options.into} knows {options.stack}. When {options.stack} knows it too, run `pulumi up` for both.\n"
        )
    else:
        sys.stdout.write(yaml.safe_dump([entry], sort_keys=False, width=140))


if __name__ == "__main__":
    main()
