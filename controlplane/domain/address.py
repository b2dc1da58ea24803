"""Recipients and senders: E.164 numbers, short codes, alphanumeric sender ids, their TON and NPI (SMPP 3.4 sections 5.2.5 and 5.2.6)."""

from __future__ import annotations

import re
from functools import lru_cache

from controlplane.domain.catalog import SenderType

__all__ = ["classify_sender", "mask", "normalise_recipient", "source_address"]

_SEPARATORS = re.compile(r"[\s().\-/\u00a0\u2010-\u2015]+")
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_FAST = re.compile(r"\+[1-9][0-9]{6,14}\Z").match
_SHORT = re.compile(r"[0-9]{3,8}")
_LONG = re.compile(r"\+?[1-9][0-9]{8,14}")
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9 &_.\-+!#%*/?$@]{1,11}")

TON_INTERNATIONAL, TON_NETWORK_SPECIFIC, TON_ALPHANUMERIC = 1, 3, 5
NPI_UNKNOWN, NPI_E164 = 0, 1


def normalise_recipient(value: str) -> str:
    """`+<country><number>` in E.164. Spaces and punctuation are dropped, a leading 00 is read as +. ValueError says what is wrong."""
    if _FAST(value):
        return value
    text = _SEPARATORS.sub("", value)
    if text.startswith("00"):
        text = "+" + text[2:]
    if _E164.fullmatch(text):
        return text
    if not text.startswith("+"):
        raise ValueError(
            "must be an international number that starts with + and the country code, such as +4915112345678"
        )
    raise ValueError("must be + and 7 to 15 digits, the first not 0 (E.164), such as +4915112345678")


@lru_cache(maxsize=4096)
def classify_sender(value: str) -> SenderType:
    """What kind of sender id it is. ValueError says what is wrong."""
    if _SHORT.fullmatch(value):
        return SenderType.SHORT
    if _LONG.fullmatch(value):
        return SenderType.LONG
    if _ALPHANUMERIC.fullmatch(value) and any(c.isalpha() for c in value) and value == value.strip():
        return SenderType.ALPHANUMERIC
    raise ValueError(
        "must be a short code (3 to 8 digits), an international number, or up to 11 Latin letters, digits, spaces and &_.-+!#%*/?$@"
        " with at least one letter"
    )


@lru_cache(maxsize=4096)
def source_address(value: str, ton: int, npi: int) -> tuple[int, int, str]:
    """(TON, NPI, address) for SMPP; -1 derives them from the sender. No sender: the carrier's default (0, 0, "")."""
    if not value:
        return max(ton, 0), max(npi, 0), ""
    kind = classify_sender(value)
    derived = {
        SenderType.ALPHANUMERIC: (TON_ALPHANUMERIC, NPI_UNKNOWN),
        SenderType.SHORT: (TON_NETWORK_SPECIFIC, NPI_UNKNOWN),
        SenderType.LONG: (TON_INTERNATIONAL, NPI_E164),
    }[kind]
    address = value.removeprefix("+") if kind is SenderType.LONG else value
    return derived[0] if ton < 0 else ton, derived[1] if npi < 0 else npi, address


def mask(value: str) -> str:
    """A number as logs and lists show it: `+4915******78`."""
    if len(value) <= 4:
        return "*" * len(value)
    head = min(5, len(value) - 4)
    return value[:head] + "*" * (len(value) - head - 2) + value[-2:]
