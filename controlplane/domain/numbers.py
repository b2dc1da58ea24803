"""What a number says about itself: country, range holder, kind, time zones (ITU-T E.164 ranges, from the `phonenumbers` metadata).

The answer depends on the number's first digits and its length only, and is kept by them: country code and six digits of prefix, or seven where the metadata
goes as far (Brazil, Chile, a few more).
"""

from __future__ import annotations

import zoneinfo
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import phonenumbers
from phonenumbers import PhoneNumber, PhoneNumberType, carrier, timezone
from phonenumbers.carrierdata import CARRIER_DATA

__all__ = ["Numbering", "numbering", "zones_of_country"]

_UNKNOWN_ZONE = "Etc/Unknown"
_KINDS = {
    PhoneNumberType.MOBILE: "mobile",
    PhoneNumberType.FIXED_LINE: "fixed",
    PhoneNumberType.FIXED_LINE_OR_MOBILE: "fixed_or_mobile",
    PhoneNumberType.TOLL_FREE: "toll_free",
    PhoneNumberType.PREMIUM_RATE: "premium_rate",
    PhoneNumberType.SHARED_COST: "shared_cost",
    PhoneNumberType.VOIP: "voip",
    PhoneNumberType.PERSONAL_NUMBER: "personal",
    PhoneNumberType.PAGER: "pager",
    PhoneNumberType.UAN: "universal_access",
    PhoneNumberType.VOICEMAIL: "voicemail",
}
_MOBILE = frozenset({PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE, PhoneNumberType.PAGER})
"""Kinds of which `carrier` names the range's holder."""
# E.164 country codes are prefix-free: one digit (1, 7), two or three. Two digits that no two-digit code has begin a code of three.
_CODE_DIGITS = {
    f"{first}{second}": 1
    if first in {1, 7}
    else 2
    if first * 10 + second in phonenumbers.COUNTRY_CODE_TO_REGION_CODE
    else 3
    for first in range(10)
    for second in range(10)
}


def _digits(prefix: str) -> int:
    """How many digits of prefix the metadata has after the country code."""
    return len(prefix) - _CODE_DIGITS[prefix[:2].ljust(2, "0")]


_DEEP = {prefix[:2] for prefix in CARRIER_DATA if _digits(prefix) > 6}
_KEY_LENGTH = {head: 1 + code + (7 if head in _DEEP else 6) for head, code in _CODE_DIGITS.items()}
"""The first two digits → how much of a number, with its +, decides."""
_LONGEST = max(_KEY_LENGTH.values())


class Numbering(NamedTuple):
    """What is known of a number's range."""

    country: str
    """ISO 3166-1 alpha-2; "001" for numbers of global services, "" for a range that nobody knows."""
    network: str
    """Who the range was given to, in English ("" unknown): a prior, for the number may have been ported since."""
    kind: str
    """mobile, fixed, fixed_or_mobile, toll_free, premium_rate, shared_cost, voip, personal, pager, universal_access, voicemail or
    unknown."""
    time_zones: tuple[str, ...]
    """IANA names, sorted; more than one where the range does not say which; empty where nothing is known."""


_NOTHING = Numbering("", "", "unknown", ())


def numbering(to: str) -> Numbering:
    """What `to` ("+", country code, number) says about itself. Never raises: other text gives the empty answer."""
    return _of_prefix(to[: _KEY_LENGTH.get(to[1:3], _LONGEST)], len(to))


@lru_cache(maxsize=65_536)
def _of_prefix(prefix: str, length: int) -> Numbering:
    """By a number's beginning and its length: zeros stand for the other digits, so that the answer is the same for all of them."""
    try:
        number = phonenumbers.parse(prefix.ljust(length, "0"), None)
    except phonenumbers.NumberParseException:
        return _NOTHING
    country = phonenumbers.region_code_for_number(number) or _only_country(number.country_code or 0)
    kind = phonenumbers.number_type(number)
    network = carrier.name_for_valid_number(number, "en") if kind in _MOBILE else ""
    return Numbering(country, network, _KINDS.get(kind, "unknown"), _zones(number, country))


def _only_country(code: int) -> str:
    """The country of a range that the metadata does not know (yet), where its country code belongs to one country alone."""
    countries = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(code, ())
    return countries[0] if len(countries) == 1 else ""


def _zones(number: PhoneNumber, country: str) -> tuple[str, ...]:
    """The range's zones; those of its country alone where the metadata names all of a shared country code (+1, +7, +44)."""
    known = frozenset(timezone.time_zones_for_number(number)) - {_UNKNOWN_ZONE}
    own = zones_of_country(country)
    elsewhere = (
        _zones_with_a_country() - own if own else frozenset[str]()
    )  # known - elsewhere: it also has names that are older
    return tuple(sorted(known - elsewhere or known or own))


def zones_of_country(country: str) -> frozenset[str]:
    """IANA names of a country's zones (zone.tab of the time zone database); empty for none."""
    return _zone_table().get(country, frozenset())


@cache
def _zones_with_a_country() -> frozenset[str]:
    return frozenset().union(*_zone_table().values())


@cache
def _zone_table() -> dict[str, frozenset[str]]:
    zones: dict[str, set[str]] = {}
    for line in _zone_tab().splitlines():
        if line and not line.startswith("#"):
            country, _, name = line.split("\t")[:3]
            zones.setdefault(country, set()).add(name)
    return {country: frozenset(names) for country, names in zones.items()}


def _zone_tab() -> str:
    """zone.tab, from where `zoneinfo` finds its zones: the system's, else the `tzdata` package's."""
    for folder in zoneinfo.TZPATH:
        path = Path(folder, "zone.tab")
        if path.is_file():
            return path.read_text(encoding="utf-8")
    try:
        return resources.files("tzdata").joinpath("zoneinfo/zone.tab").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        return ""
