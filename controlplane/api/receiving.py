"""Receiving the table of a batch job: read while it comes, and kept in chunks; never whole in memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.api.problems import invalid
from controlplane.api.services import Services
from controlplane.api.uploads import Upload
from controlplane.domain.batch_job import BatchJob
from controlplane.domain.sheet import DELIMITERS, SAMPLE_BYTES, Reader, Row, SheetError, detect
from controlplane.errors import FieldError, Problem
from controlplane.store.batch_jobs import CHUNK_ROWS

__all__ = ["DELIMITER_WORDS", "Options", "no_longer_received", "receive"]

DELIMITER_WORDS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_CHUNK_CHARACTERS = 1_000_000


class Options(BaseModel):
    """What is said of an upload; "" is the same as nothing."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=200)] = ""
    encoding: Literal["", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "windows-1252", "latin-1"] = ""
    delimiter: Literal["", ",", ";", "\t", "|", "comma", "semicolon", "tab", "pipe"] = ""
    header: Literal["", "yes", "no"] = ""
    mapping: Annotated[str, Field(max_length=100_000)] = ""

    @classmethod
    def of(cls, upload: Upload) -> Options:
        """Raises Problem 422."""
        try:
            return cls.model_validate(upload.options)
        except ValidationError as error:
            raise invalid([FieldError(str(item["loc"][0]), item["msg"]) for item in error.errors()]) from None

    @property
    def sign(self) -> str | None:
        """The delimiter itself."""
        return next((sign for sign in DELIMITERS if self.delimiter in (sign, DELIMITER_WORDS[sign])), None)


async def receive(services: Services, job: BatchJob, upload: Upload, options: Options) -> None:
    """Read the table and keep its rows, a chunk at a time. Raises SheetError, and Problem 409 when the job is no longer received."""
    held = bytearray()
    reader: Reader | None = None
    chunks = _Chunks(services, job)

    async def begin() -> Reader:
        header = {"yes": True, "no": False}.get(options.header)
        job.dialect = detect(bytes(held), encoding=options.encoding or None, delimiter=options.sign, header=header)
        begun = Reader(job.dialect)
        await chunks.add(begun.feed(bytes(held)))
        held.clear()
        return begun

    async for piece in upload.pieces:
        job.octets += len(piece)
        if reader is not None:
            await chunks.add(reader.feed(piece))
            continue
        held += piece
        if len(held) >= SAMPLE_BYTES:
            reader = await begin()
    reader = reader or await begin()
    await chunks.add(reader.close())
    await chunks.flush()
    if not job.rows:
        raise SheetError("has no rows" + (" but its header" if job.header else ""))


def no_longer_received() -> Problem:
    """409: somebody ended the job, or the sweep did."""
    return Problem(
        "not-in-this-state",
        "No longer received",
        409,
        "The batch job was cancelled or erased before its table was whole; an upload of which nothing comes for an hour is erased.",
        "Upload the table again.",
    )


class _Chunks:
    """Gathers the rows of a job, and stores them by the chunk."""

    def __init__(self, services: Services, job: BatchJob) -> None:
        self._services = services
        self._job = job
        self._rows: list[Row] = []
        self._characters = 0
        self._headed = False

    async def add(self, rows: list[Row]) -> None:
        job, most = self._job, self._services.settings.max_upload_rows
        for row in rows:
            if job.dialect.header and not self._headed:
                self._headed = True
                if not row.error:
                    job.header = [name.strip()[:200] for name in row.cells]
                    job.width = len(job.header)
                    continue
            job.width = max(job.width, len(row.cells))
            job.rows += 1
            if job.rows > most:
                raise SheetError(f"has more than {most} rows; upload it in parts")
            self._rows.append(row)
            self._characters += sum(map(len, row.cells))
            if len(self._rows) == CHUNK_ROWS or self._characters >= _CHUNK_CHARACTERS:
                await self.flush()

    async def flush(self) -> None:
        if self._rows:
            if not await self._services.batch_jobs.add_rows(self._job.id, self._job.chunks, self._rows):
                raise no_longer_received()
            self._job.chunks += 1
            self._rows, self._characters = [], 0
