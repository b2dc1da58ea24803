"""Callbacks never reach into our networks, however the address is written."""

from __future__ import annotations

import socket

import pytest
from aiohttp.abc import AbstractResolver

from controlplane.callbacks.guard import ForbiddenTargetError, GuardedResolver, check_url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "https://127.0.0.1/", "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/", "https://[::1]/",
        "https://[::ffff:127.0.0.1]/", "https://[::ffff:10.0.0.1]/", "https://10.1.2.3/", "https://192.168.1.1/", "https://172.16.0.1/",
        "https://169.254.169.254/latest", "https://100.64.0.1/", "https://0.0.0.0/", "https://224.0.0.1/", "https://[fe80::1%25eth0]/",
        "https://[fc00::1]/", "https://[64:ff9b::7f00:1]/", "https://localhost/", "https://LOCALHOST./", "https://db.internal/",
        "https://user:pw@example.com/", "https://example.com/#x", "ftp://example.com/", "https:///x", "https://[", "https://x:99999/", "",
    ],
)  # fmt: skip
def test_refused(url):
    with pytest.raises(ForbiddenTargetError):
        check_url(url, allow_private=False)


@pytest.mark.parametrize(
    "url", ["https://example.com/hook?x=1", "https://93.184.216.34:8443/", "https://[2606:2800:220:1::1]/"]
)
def test_allowed(url):
    check_url(url, allow_private=False)


class Names(AbstractResolver):
    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [
            {"hostname": host, "host": a, "port": port, "family": family, "proto": 0, "flags": 0}
            for a in self.addresses
        ]

    async def close(self):
        pass


class TestResolver:
    """The address that was checked is the address that is connected to: it is the client's only resolver."""

    async def test_a_name_with_any_private_address_is_refused(self):
        with pytest.raises(ForbiddenTargetError):
            await GuardedResolver(allow_private=False, inner=Names("93.184.216.34", "127.0.0.1")).resolve(
                "evil.example"
            )

    async def test_a_public_name_resolves(self):
        found = await GuardedResolver(allow_private=False, inner=Names("93.184.216.34")).resolve("good.example", 443)
        assert found[0]["host"] == "93.184.216.34"
