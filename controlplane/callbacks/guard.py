"""Where callbacks may go. A tenant's URL must not reach into our networks (server-side request forgery).

The check is made on the address that is connected to: the resolver below is the one that the HTTP client uses, so a name cannot resolve to something
public for the check and to something private for the connection. Redirects are never followed.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

__all__ = ["ForbiddenTargetError", "GuardedResolver", "check_url"]

_MAX_URL = 2_000
_CGNAT = ipaddress.ip_network("100.64.0.0/10")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class ForbiddenTargetError(Exception):
    """The target is not one that callbacks may go to."""


def _public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _public(inner)
    elif address in _CGNAT:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` is, in any of the forms that resolvers accept: dotted, decimal, octal, hexadecimal, IPv6 with a zone."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def check_url(url: str, *, allow_private: bool) -> None:
    """Raises ForbiddenTargetError with a sentence when callbacks may not go to `url`. Names are checked when they are resolved."""
    if len(url) > _MAX_URL:
        raise ForbiddenTargetError(f"must have at most {_MAX_URL} characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ForbiddenTargetError(f"is not a URL: {error}") from None
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise ForbiddenTargetError("must start with https://")
    if not host:
        raise ForbiddenTargetError("has no host")
    if parts.username is not None or parts.password is not None:
        raise ForbiddenTargetError("must not contain a user name or password")
    if parts.fragment:
        raise ForbiddenTargetError("must not contain a fragment")
    if allow_private:
        return
    address = _literal(host)
    if address is not None and not _public(address):
        raise ForbiddenTargetError("points to a private or reserved address")
    if host.rstrip(".").lower().endswith(("localhost", ".local", ".internal", ".localdomain")):
        raise ForbiddenTargetError("points to a private name")


class GuardedResolver(AbstractResolver):
    """Resolves for the HTTP client; refuses a name any of whose addresses is not public."""

    def __init__(self, *, allow_private: bool, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or ThreadedResolver()
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host`. Raises ForbiddenTargetError."""
        found = await self._inner.resolve(host, port, family)
        if not self._allow_private:
            for result in found:
                if not _public(ipaddress.ip_address(result["host"].partition("%")[0])):
                    raise ForbiddenTargetError(f"{host} resolves to a private or reserved address")
        return found

    async def close(self) -> None:
        """Close the resolver inside."""
        await self._inner.close()
