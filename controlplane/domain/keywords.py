"""Words from phones that act at once: opt out and back in. A text counts when it is the word and nothing else; case, spaces, punctuation and accents do not matter."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache

__all__ = ["OPT_IN", "OPT_OUT", "Wish", "bare", "wish_of"]

OPT_OUT = ("STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "ARRET", "STOPP", "ABMELDEN", "BAJA")
OPT_IN = ("START", "UNSTOP")
_LONGEST = 60
"""Characters of a text that may still be one word."""


class Wish(StrEnum):
    """What a keyword asks for."""

    OPT_OUT = "opt_out"
    OPT_IN = "opt_in"


def bare(text: str) -> str:
    """Letters and digits alone, without case and accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


def wish_of(text: str, opt_out: Iterable[str], opt_in: Iterable[str]) -> Wish | None:
    """What this text asks for, by a tenant's keywords."""
    if len(text) > _LONGEST or not (word := bare(text)):
        return None
    if word in _bare_all(tuple(opt_out)):
        return Wish.OPT_OUT
    return Wish.OPT_IN if word in _bare_all(tuple(opt_in)) else None


@lru_cache(maxsize=1024)
def _bare_all(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(filter(None, map(bare, words)))
