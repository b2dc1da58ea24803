"""Help: what the words mean, what to do about each error, and the keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from controlplane.console.frame import render
from controlplane.console.identity import Visit, allows
from controlplane.domain.message import FINAL, Status
from controlplane.domain.people import Role
from controlplane.errors import SLUGS

__all__ = ["STATUSES", "router"]

router = APIRouter()

STATUSES: dict[Status, tuple[str, str]] = {
    Status.SCHEDULED: ("waits for its time", "Cancel it, if you changed your mind."),
    Status.ACCEPTED: ("durable, and about to be sent", "Nothing."),
    Status.QUEUED: ("waits for its turn, or for another try", "Nothing; the timeline says what it waits for."),
    Status.SUBMITTED: ("a carrier took it; its receipt is awaited", "Nothing."),
    Status.UNKNOWN: (
        "sent, and nobody knows whether the carrier took it",
        "Wait: a late response or receipt resolves it.",
    ),
    Status.DELIVERED: ("on the handset", "Nothing."),
    Status.UNDELIVERED: ("the carrier gave up", "Read the reason in the timeline; send again if it makes sense."),
    Status.FAILED: ("no carrier would take it", "Read the timeline: it says why for each attempt."),
    Status.EXPIRED: (
        "its validity ended, or no outcome came in time",
        "Send again, with a longer validity if need be.",
    ),
    Status.CANCELLED: ("cancelled on request", "Nothing."),
    Status.RECEIVED: ("a message from a phone", "Nothing."),
}
"""Status → (meaning, what to do)."""

KEYS = (
    ("/", "Search"),
    ("j, k", "Next and previous row"),
    ("g o", "Overview"),
    ("g m", "Messages"),
    ("g s", "Send"),
    ("g r", "Routes"),
    ("g l", "Ledger"),
    ("g a", "Alerts"),
    ("?", "This page"),
)


@router.get("/help")
async def show(request: Request, _visit: Annotated[Visit, Depends(allows(Role.VIEWER))]) -> Response:
    """The glossary."""
    statuses = [(status.value, status in FINAL, *words) for status, words in STATUSES.items()]
    return render(request, "help/index.html", statuses=statuses, slugs=SLUGS, keys=KEYS)
