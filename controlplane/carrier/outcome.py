"""What becomes of a part."""

from __future__ import annotations

import random
from dataclasses import dataclass

from controlplane.carrier.config import Behaviour

__all__ = ["SUFFIXES", "Fate", "decide"]


@dataclass(frozen=True, slots=True)
class Fate:
    """`status` answers the submit; `state` is the receipt's, "" for none; `became` is what query_sm tells."""

    status: int = 0
    state: str = ""
    became: str = ""
    respond: bool = True
    cut: bool = False


SUFFIXES: dict[str, tuple[Fate, str]] = {
    "0001": (Fate(state="DELIVRD"), "delivered"),
    "0002": (Fate(state="UNDELIV"), "undelivered"),
    "0003": (Fate(state="EXPIRED"), "expired at the carrier"),
    "0004": (Fate(status=0x0B), "refused at submit: invalid number"),
    "0005": (Fate(), "taken; no receipt ever comes"),
    "0006": (Fate(state="DELIVRD", respond=False), "taken; no response, but a receipt"),
    "0007": (Fate(state="REJECTD"), "rejected by a receipt"),
    "0008": (Fate(respond=False), "taken; neither response nor receipt"),
    "0009": (Fate(status=0x08), "refused for now: system error"),
}
"""The last four digits of a number → what happens to it."""


def decide(behaviour: Behaviour, recipient: str, rng: random.Random) -> Fate:
    """The fate of one part."""
    if behaviour.suffix_rules:
        rule = SUFFIXES.get(recipient[-4:])
        if rule is not None:
            return rule[0]
    if behaviour.reject:
        draw = rng.random()
        for status, probability in behaviour.reject.items():
            draw -= probability
            if draw < 0:
                return Fate(status=int(status, 0))
    state = became = rng.choices(list(behaviour.outcomes), list(behaviour.outcomes.values()))[0]
    if behaviour.receipt_missing and rng.random() < behaviour.receipt_missing:
        state = ""
    if behaviour.drop_connection and rng.random() < behaviour.drop_connection:
        return Fate(state=state, became=became, respond=False, cut=True)
    respond = not (behaviour.drop_response and rng.random() < behaviour.drop_response)
    return Fate(state=state, became=became, respond=respond)
