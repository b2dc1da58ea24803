"""All messages of a database, one after another, each with its events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from controlplane.domain.events import Event, Kind
from controlplane.store.client import Database, Document, border
from controlplane.store.events import EventReader, from_document
from controlplane.store.schema import EVENTS

__all__ = ["Story", "stories"]

_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class Story:
    """What is stored of one message id; also of what only fills a place, or is the ledger's own."""

    mid: str
    accepted: bool
    """It begins with `accepted`."""
    events: list[Event] = field(default_factory=list)
    """In order of k."""
    problem: str = ""
    """Why they cannot be read."""


async def stories(database: Database) -> AsyncIterator[Story]:
    """All of them. An id sorts with its message's others (`<mid>:<k>`), so one reading of the index is enough."""
    reader = EventReader(database, "")
    group: list[Document] = []
    with border():
        async for document in database[EVENTS].find(batch_size=_BATCH).sort("_id"):
            if group and group[0].get("mid") != document.get("mid"):
                yield await _story(reader, group)
                group = []
            group.append(document)
        if group:
            yield await _story(reader, group)


async def _story(reader: EventReader, group: list[Document]) -> Story:
    mid = str(group[0].get("mid", group[0]["_id"]))
    accepted = any(one.get("kind") == Kind.ACCEPTED for one in group)
    try:
        events = sorted(map(from_document, group), key=lambda event: event.k)
        if "@" in mid and events[0].k:  # another datacenter's story, which begins as the first one does
            events = await reader.load(mid)
    except (KeyError, TypeError, ValueError) as error:
        return Story(mid, accepted, problem=f"an event cannot be read: {error!r}")
    return Story(mid, accepted, events)
