"""A region to test with: `sample_region()` is always the same; overrides are merged into it, level by level."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from infra import render
from infra.config import Region, parse_region
from infra.plan import Topology, plan
from infra.render import Bundle

__all__ = ["HOST_KEYS", "LEDGER_KEY", "bundles", "files", "sample_peer", "sample_region", "sample_value"]

HOST_KEYS = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOU",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO1JKMYo0cLG6ukDOJBZlWEpWSc6XGP5NjbBRhSshzfR",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMqTrBcFGHBx1nuDx/8O/oEI6OxFMFdddyaHkzPb2r58",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG56HN0psLeP0Tr0xVmP7/TvKpcWbjym8uT7/M2AUFvx",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIqHX/8es4RRV3rNWv7kBUVlaN18ieCQhjoFV7x69J8X",
)
"""Real keys; nobody has the private halves in use."""
LEDGER_KEY = base64.b64encode(bytes(range(32))).decode()
AUTHORITY = """-----BEGIN CERTIFICATE-----
MIIBSjCB8aADAgECAgEHMAoGCCqGSM49BAMCMCMxITAfBgNVBAMMGEhlbGlvZ3Jh
cGggaWFkIGF1dGhvcml0eTAeFw0yNjAxMDEwMDAwMDBaFw0zNjAxMDEwMDAwMDBa
MCMxITAfBgNVBAMMGEhlbGlvZ3JhcGggaWFkIGF1dGhvcml0eTBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABHPMCr254jvCBRuvzoAwmJtpAU72T5Fk8smiakeog6UV
YChu07HdZ7bKw5TwAONqSuMFCfxRH+E6MU+m5LFa9tOjFjAUMBIGA1UdEwEB/wQI
MAYBAf8CAQAwCgYIKoZIzj0EAwIDSAAwRQIgUnjDQUVdNuWXOEWwtKyWGRLfaKQY
B2idgXfe2IWMXhgCIQD32SmS/ChEbYheqGw/Na8babCkUjAcq4OfJhU5l1/ssQ==
-----END CERTIFICATE-----
"""
"""Of the region `iad`; its key is lost."""


def sample_peer(name: str = "iad", **changes: Any) -> dict[str, Any]:
    """An entry of `ledger.peers`."""

    def key(role: str) -> str:
        return base64.b64encode(hashlib.sha256(f"{name} {role}".encode()).digest()).decode()

    return {
        "name": name,
        "urls": ["https://10.81.2.11:8442", "https://10.81.2.12:8442"],
        "log_keys": [key("log")],
        "witness_key": key("witness"),
        "mirror_key": key("mirror"),
        "authority": AUTHORITY,
    } | changes


def sample_value(hosts: int = 3, **overrides: Any) -> dict[str, Any]:
    """`heliograph:region` of a region `fra` with the hosts fra-1 … and two shards. `hosts`: how many, at most six."""
    value: dict[str, Any] = {
        "name": "fra",
        "hosts": [
            {"name": f"fra-{n}", "address": f"10.81.1.{10 + n}", "host_key": key}
            for n, key in enumerate(HOST_KEYS[:hosts], 1)
        ],
        "mongodb": {
            "image": {"reference": f"localhost/heliograph/mongod@sha256:{'a' * 64}"},
            "version": "6.0",
            "shards": [{"name": "a"}, {"name": "b"}],
        },
        "control_plane": {"image": {"reference": f"localhost/heliograph/controlplane@sha256:{'b' * 64}"}},
        "certificates": {"not_before": "2026-01-01"},
    }
    return _merged(value, overrides)


def sample_region(hosts: int = 3, **overrides: Any) -> Region:
    """`sample_region(mongodb={"version": "8.0"})` changes the version and keeps the rest."""
    return parse_region(sample_value(hosts, **overrides))


def _merged(value: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(value[key], given) if isinstance(given, dict) and isinstance(value.get(key), dict) else given
        for key, given in overrides.items()
    }
    return value | both


def bundles(region: Region, topology: Topology | None = None) -> dict[str, list[Bundle]]:
    """Host → everything that goes onto it without a secret in it."""
    topology = topology or plan(region)
    found: dict[str, list[Bundle]] = {host.name: [] for host in region.hosts}
    for (host, _), bundle in render.everything(region, topology).items():
        found[host].append(bundle)
    return found


def files(region: Region) -> dict[str, dict[str, str]]:
    """Host → path → content."""
    return {
        host: {file.path: file.content for bundle in found for file in bundle.files}
        for host, found in bundles(region).items()
    }
