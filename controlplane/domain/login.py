"""How tries to log in are counted, so that guessing takes for ever and nobody is locked out of their own account."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

__all__ = ["Counted", "address_of", "code_of", "name_of"]


@dataclass(frozen=True, slots=True)
class Counted:
    """What tries are counted by, and how its delays grow: 1, 2, 4 … s after `free` tries, up to `longest`."""

    key: str
    free: int
    longest: int
    """Seconds."""


def name_of(name: str, device: str) -> Counted:
    """Passwords for one name: from one known browser (`device`), or from all others together (""). At most a minute: 1,440 guesses a day find no password of twelve characters."""
    return Counted(f"name:{name}:{device}", 5, 60)


def address_of(address: str) -> Counted:
    """Passwords for all names from one address (IPv6: its /64). A whole office may stand behind it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return Counted(f"address:{address[:60]}", 20, 900)
    if parsed.version == 6 and parsed.ipv4_mapped is None:
        return Counted(f"address:{ipaddress.ip_network((parsed, 64), strict=False)}", 20, 900)
    return Counted(f"address:{parsed}", 20, 900)


def code_of(name: str, device: str) -> Counted:
    """Second factors for one name, by somebody who knows its password. At most an hour: a code has six digits only."""
    return Counted(f"code:{name}:{device}", 5, 3600)
