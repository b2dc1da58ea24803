"""A batch job: a table that was uploaded, what became of the check of its rows, and how far they are sent."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple, Self

from controlplane.domain.merge import Mapping
from controlplane.domain.sheet import Dialect

__all__ = ["ENDED", "BatchJob", "JobState", "Judged", "Result"]


class JobState(StrEnum):
    """Where a job stands. docs/api.md says what each means and what to do."""

    RECEIVING = "receiving"
    MAPPING = "mapping"
    CHECKING = "checking"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


ENDED = frozenset({JobState.DONE, JobState.CANCELLED, JobState.FAILED})


class Result(NamedTuple):
    """What became of one row, as it is kept."""

    id: str = ""
    """The message, where there is one."""
    status: str = ""
    """Of the message when it was accepted; `rejected`; `test` under a test key; "" while the row is not sent."""
    error: str = ""
    """The problem's slug."""
    detail: str = ""


@dataclass(slots=True)
class Judged:
    """What the rules say of one row."""

    result: Result
    to: str = ""
    parts: int = 0
    encoding: str = ""
    price: int = 0
    currency: str = ""
    body: str = ""
    again: float = 0.0
    """It is not decided: to be asked again after so many seconds."""


@dataclass(slots=True, kw_only=True)
class BatchJob:
    """Times in ms since the epoch."""

    id: str
    tenant: str
    key: str
    """Id of the API key that began it, or what stands for the person who did."""
    test: bool = False
    """It was begun with a test key: nothing is sent."""
    name: str = ""
    state: JobState = JobState.RECEIVING
    cancel: bool = False
    """It is to end; who works at it finishes its chunk first."""
    at: int
    changed: int
    dialect: Dialect = field(default_factory=Dialect)
    header: list[str] = field(default_factory=list)
    width: int = 0
    """Columns of the widest row."""
    octets: int = 0
    rows: int = 0
    chunks: int = 0
    mapping: Mapping | None = None
    report: dict[str, Any] | None = None
    """Of the check."""
    next: int = 0
    """The chunk that is to be sent, or checked, next."""
    within: int = 0
    """Rows of it that are settled."""
    settled: int = 0
    accepted: int = 0
    rejected: int = 0
    waiting: str = ""
    """Why it does not go on at present."""
    error: str = ""
    by: str = ""
    """Term (`<node>:<epoch>`) that works at it."""
    beat: int = 0
    started: int = 0
    ended: int = 0

    def document(self) -> dict[str, Any]:
        """As stored."""
        document = asdict(self)
        document["_id"] = document.pop("id")
        return document

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """As read. What a newer version added is left out; but of a mapping, whose rows would become others without it (TypeError)."""
        values = _known(cls, document)
        values["state"] = JobState(values["state"])
        values["dialect"] = Dialect(**_known(Dialect, values["dialect"]))
        if values["mapping"] is not None:
            values["mapping"] = Mapping(**values["mapping"])
        return cls(id=document["_id"], **values)


def _known(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    return {each.name: values[each.name] for each in fields(kind) if each.name in values}
