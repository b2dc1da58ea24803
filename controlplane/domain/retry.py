"""How long to wait before the next try, and what a submit_sm_resp's command_status means for the message (SMPP 3.4 section 5.1.3)."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["CALLBACK_SCHEDULE", "Verdict", "backoff", "classify"]

CALLBACK_SCHEDULE = (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800, 43_200, 57_600, 86_400)
"""Seconds between a callback's tries, about three days in all (Standard Webhooks recommends several days, with jitter)."""


class Verdict(StrEnum):
    """What to do after a response."""

    OK = "ok"
    THROTTLED = "throttled"
    """Slow the bind; nothing is wrong with the message."""
    QUEUE_FULL = "queue_full"
    TEMPORARY = "temporary"
    """May work later, or elsewhere."""
    PERMANENT = "permanent"
    """This carrier will not take this message."""


_VERDICTS = {
    0x00: Verdict.OK,
    0x58: Verdict.THROTTLED,
    0x14: Verdict.QUEUE_FULL,
    0x08: Verdict.TEMPORARY,  # ESME_RSYSERR
    0x45: Verdict.TEMPORARY,  # ESME_RSUBMITFAIL: carriers use it for trouble of their own (and for an exceeded window)
    0x64: Verdict.TEMPORARY,  # ESME_RX_T_APPN
    0xFE: Verdict.TEMPORARY,  # ESME_RDELIVERYFAILURE
    0xFF: Verdict.TEMPORARY,  # ESME_RUNKNOWNERR
    0x04: Verdict.TEMPORARY,  # ESME_RINVBNDSTS: this session, not this message
}


def classify(command_status: int) -> Verdict:
    """What a submit_sm_resp means. Everything that is not known to be temporary is permanent here: vendors' codes too."""
    return _VERDICTS.get(command_status, Verdict.PERMANENT)


def backoff(attempt: int, *, base: float, cap: float, jitter: float) -> float:
    """Seconds before try `attempt` + 1 (attempts count from 1): exponential, capped, the upper half jittered. `jitter` is uniform in 0…1."""
    span = min(cap, base * 2.0 ** min(attempt - 1, 30))
    return span * (0.5 + jitter / 2)
