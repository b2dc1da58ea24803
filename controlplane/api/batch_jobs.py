"""Batch jobs: a table is uploaded, its columns are mapped, its rows are checked, and then sent, in the background."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.api.auth import Caller, requires
from controlplane.api.cursor import open_cursor, seal_cursor
from controlplane.api.problems import invalid
from controlplane.api.reading import services_of
from controlplane.api.receiving import DELIMITER_WORDS, Options, no_longer_received, receive
from controlplane.api.rows import Rows
from controlplane.api.services import Services
from controlplane.api.times import iso
from controlplane.api.uploads import CSV, FORM, upload_of
from controlplane.domain.batch_job import ENDED, BatchJob, JobState
from controlplane.domain.catalog import Scope
from controlplane.domain.merge import FIELDS, Mapping, Merge, guess
from controlplane.domain.sheet import SheetError, cell
from controlplane.errors import FieldError, Problem
from controlplane.ids import token

__all__ = ["router"]

router = APIRouter(prefix="/v1/batch-jobs", tags=["batch jobs"])

Reader_ = Annotated[Caller, Depends(requires(Scope.MESSAGES_READ))]
Writer = Annotated[Caller, Depends(requires(Scope.MESSAGES_WRITE))]

_MAX_OPEN_JOBS = 50
_MAX_STORED_UPLOADS = 20
"""A tenant's jobs may hold as many octets as so many of the largest uploads."""
_ID = re.compile(r"job_[0-9a-v]{13}")


class MappingBody(BaseModel):
    """What the columns are. A column is known by its name in the header, whatever its case, or by its number from 1."""

    model_config = ConfigDict(extra="forbid")
    columns: Annotated[
        dict[Annotated[str, Field(max_length=40)], Annotated[str, Field(max_length=200)]],
        Field(max_length=len(FIELDS), description=f"Field → column. The fields: {', '.join(FIELDS)}."),
    ] = Field(default_factory=dict)
    body: Annotated[
        str,
        Field(
            max_length=40_000, description="A text, in which `{column}` stands for the row's value; `{{` for a brace."
        ),
    ] = ""
    values: Annotated[
        dict[Annotated[str, Field(max_length=40)], Annotated[str, Field(max_length=40_000)]],
        Field(max_length=len(FIELDS), description="Field → what it is where its column is empty, or there is none."),
    ] = Field(default_factory=dict)

    def mapping(self) -> Mapping:
        """As the domain knows it."""
        return Mapping(columns=self.columns, body=self.body, values=self.values)


def view(job: BatchJob) -> dict[str, Any]:
    """A job as answers show it."""
    return {
        "id": job.id,
        "name": job.name or None,
        "state": job.state.value,
        "cancelling": job.cancel and job.state not in ENDED,
        "test": job.test,
        "created_at": iso(job.at),
        "started_at": iso(job.started) if job.started else None,
        "ended_at": iso(job.ended) if job.ended else None,
        "table": {
            "encoding": job.dialect.encoding,
            "delimiter": DELIMITER_WORDS[job.dialect.delimiter],
            "header": job.dialect.header,
            "columns": job.header or [str(number) for number in range(1, job.width + 1)],
            "rows": job.rows,
            "octets": job.octets,
        },
        "mapping": asdict(job.mapping) if job.mapping else None,
        "report": job.report,
        "progress": {
            "checked": job.within if job.state is JobState.CHECKING else job.rows if job.report else 0,
            "settled": job.settled + (job.within if job.state is JobState.RUNNING else 0),
            "accepted": job.accepted,
            "rejected": job.rejected,
            "waiting": job.waiting or None,
        },
        "error": job.error or None,
    }


# -- receiving -----------------------------------------------------------------------------------------------------------

_SAID = {
    "name": {"type": "string", "maxLength": 200},
    "encoding": {"type": "string", "enum": ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "windows-1252", "latin-1"]},
    "delimiter": {"type": "string", "enum": ["comma", "semicolon", "tab", "pipe"]},
    "header": {"type": "string", "enum": ["yes", "no"]},
    "mapping": {"type": "string", "description": "A MappingBody as JSON; without one, the header is read."},
}
_UPLOAD = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": "Found out where it is missing.",
        }
        for name, schema in _SAID.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            CSV: {"schema": {"type": "string"}, "example": "to,name\n+4915112345678,Ada\n"},
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {**_SAID, "file": {"type": "string", "format": "binary"}},
                }
            },
        },
    },
}


@router.post(
    "",
    status_code=201,
    operation_id="createBatchJob",
    summary="Upload a table of messages",
    openapi_extra=_UPLOAD,
    responses={
        415: {"description": "Neither text/csv nor a form."},
        429: {"description": "Too many open jobs, or too much stored."},
    },
)
async def create_batch_job(request: Request, caller: Writer) -> dict[str, Any]:
    """Nothing is sent yet. Where the columns are known, from the header or a mapping, the check begins; else the job waits for a mapping."""
    services = services_of(request)
    upload = await upload_of(request)
    options = Options.of(upload)
    now = services.clock.now_ms()
    job = BatchJob(
        id=token("job", 8),
        tenant=caller.tenant.id,
        key=caller.key.id,
        test=caller.key.test,
        name=(options.name or upload.name)[:200],
        at=now,
        changed=now,
    )
    mapping = _given_mapping(options.mapping)
    await _make_room(services, job, _announced(request, services.settings.max_upload_bytes))
    try:
        await receive(services, job, upload, options)
        _decide(job, mapping)
    except BaseException as error:
        await services.batch_jobs.abandon(job.id)
        if isinstance(error, SheetError):
            raise invalid([FieldError("file", str(error))]) from None
        raise
    if not await services.batch_jobs.received(job):
        await services.batch_jobs.abandon(job.id)
        raise no_longer_received()
    return view(job)


def _announced(request: Request, most: int) -> int:
    """Octets that are to come; as many as may come where that is not said."""
    length = request.headers.get("content-length", "")
    return min(int(length), most) if length.isdecimal() and "transfer-encoding" not in request.headers else most


async def _make_room(services: Services, job: BatchJob, announced: int) -> None:
    """Let the job be there while its table comes. Raises Problem 429."""
    job.octets = announced
    most = _MAX_STORED_UPLOADS * services.settings.max_upload_bytes
    over = await services.batch_jobs.create(job, open_jobs=_MAX_OPEN_JOBS, octets=most)
    job.octets = 0
    if over == "jobs":
        raise Problem(
            "too-many-jobs",
            "Too many open jobs",
            429,
            f"The tenant has {_MAX_OPEN_JOBS} batch jobs that are not at their end.",
            "Start, cancel or delete some; GET /v1/batch-jobs lists them.",
        )
    if over:
        raise Problem(
            "too-much-stored",
            "Too much is stored",
            429,
            f"With this one, the tables of the tenant's batch jobs would have more than {most} octets.",
            "Delete jobs that are at their end: DELETE /v1/batch-jobs/{id}. Else they are erased after "
            f"{services.settings.batch_job_days} days.",
        )


def _given_mapping(text: str) -> Mapping | None:
    if not text:
        return None
    try:
        return MappingBody.model_validate_json(text).mapping()
    except ValidationError as error:
        errors = [FieldError("/".join(map(str, ("mapping", *item["loc"]))), item["msg"]) for item in error.errors()]
        raise invalid(errors) from None


def _decide(job: BatchJob, mapping: Mapping | None) -> None:
    """Whether the check can begin. Raises Problem 422 for a given mapping that does not fit."""
    job.mapping = mapping or guess(job.header)
    try:
        _fit(job, job.mapping)
    except Problem:
        if mapping is not None:
            raise
        job.state = JobState.MAPPING
    else:
        job.state = JobState.CHECKING


def _fit(job: BatchJob, mapping: Mapping) -> None:
    """Raises Problem 422."""
    try:
        Merge(mapping, job.header, job.width)
    except ValueError as error:
        place, _, detail = str(error).partition(": ")
        raise invalid([FieldError(f"/{place}", detail)]) from None


# -- reading -------------------------------------------------------------------------------------------------------------


@router.get("", operation_id="listBatchJobs", summary="Your batch jobs, newest first")
async def list_batch_jobs(
    request: Request,
    caller: Reader_,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> dict[str, Any]:
    """They are erased some days after they came to rest (HELIOGRAPH_BATCH_JOB_DAYS)."""
    services = services_of(request)
    secret, context = services.settings.secret, f"batch-jobs|{caller.tenant.id}"
    before = open_cursor(secret, context, cursor) if cursor else None
    jobs = await services.batch_jobs.page(caller.tenant.id, (before[0], before[1]) if before else None, limit)
    more = seal_cursor(secret, context, [jobs[-1].at, jobs[-1].id]) if len(jobs) == limit else None
    return {"data": [view(job) for job in jobs], "next": more}


async def _own(services: Services, caller: Caller, job_id: str) -> BatchJob:
    job = await services.batch_jobs.find(caller.tenant.id, job_id) if _ID.fullmatch(job_id) else None
    if job is None:
        raise Problem(
            "not-found",
            "No such batch job",
            404,
            f"There is no batch job {job_id[:60]!r} of yours.",
            "GET /v1/batch-jobs lists what there is; jobs at rest are erased after some days.",
        )
    return job


@router.get("/{job_id}", operation_id="getBatchJob", summary="One batch job: its check, its progress")
async def get_batch_job(request: Request, job_id: str, caller: Reader_) -> dict[str, Any]:
    """`progress` moves every few seconds while the job is checked or sent."""
    return view(await _own(services_of(request), caller, job_id))


@router.post("/{job_id}/preview", operation_id="previewBatchJob", summary="What the first rows become")
async def preview_batch_job(
    request: Request,
    job_id: str,
    caller: Reader_,
    mapping: Annotated[MappingBody | None, Body(description="In the place of the job's own.")] = None,
    limit: Annotated[int, Query(ge=1, le=50)] = 5,
) -> dict[str, Any]:
    """Nothing is kept of the mapping, and nothing is sent."""
    services = services_of(request)
    job = await _own(services, caller, job_id)
    chosen = mapping.mapping() if mapping is not None else job.mapping or Mapping()
    _fit(job, chosen)
    rows = (await services.batch_jobs.chunk(job.id, 0))[:limit]
    desk: Rows = request.app.state.rows
    messages = desk.fields(job, rows, chosen)
    judged = await desk.check(job, rows, chosen)
    return {
        "data": [
            {
                "line": row.line,
                "cells": row.cells,
                "message": fields,
                "parts": found.parts or None,
                "encoding": found.encoding or None,
                "price": {"amount": found.price, "currency": found.currency} if found.currency else None,
                "error": found.result.error or None,
                "detail": found.result.detail or None,
            }
            for row, fields, found in zip(rows, messages, judged, strict=True)
        ]
    }


@router.get(
    "/{job_id}/results.csv",
    operation_id="getBatchJobResults",
    summary="What became of each row",
    response_class=StreamingResponse,
    responses={200: {"content": {CSV: {"schema": {"type": "string"}}}, "description": "line,id,status,error,detail"}},
)
async def get_batch_job_results(request: Request, job_id: str, caller: Reader_) -> StreamingResponse:
    """CSV in UTF-8: a row that is not sent yet has no status. Cells that a spreadsheet would run begin with an apostrophe."""
    services = services_of(request)
    job = await _own(services, caller, job_id)
    headers = {"content-disposition": f'attachment; filename="{job.id}.csv"', "cache-control": "no-store"}
    return StreamingResponse(_results(services, job.id), media_type=f"{CSV}; charset=utf-8", headers=headers)


async def _results(services: Services, job: str) -> AsyncIterator[bytes]:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("line", "id", "status", "error", "detail"))
    async for row, result in services.batch_jobs.results(job):
        writer.writerow((row.line, *map(cell, result)))
        if out.tell() > 64 * 1024:
            yield out.getvalue().encode()
            out.seek(0)
            out.truncate()
    yield out.getvalue().encode()


# -- acting --------------------------------------------------------------------------------------------------------------


def _not_now(job: BatchJob, verb: str, next_step: str) -> Problem:
    return Problem("not-in-this-state", f"Cannot be {verb} now", 409, f"The batch job is {job.state.value}.", next_step)


@router.put("/{job_id}/mapping", operation_id="mapBatchJob", summary="Say what the columns are, and check the rows")
async def map_batch_job(request: Request, job_id: str, body: MappingBody, caller: Writer) -> dict[str, Any]:
    """As often as needed until the job is started; each time the rows are checked anew."""
    services = services_of(request)
    job = await _own(services, caller, job_id)
    _fit(job, body.mapping())
    mapped = await services.batch_jobs.map(job, body.mapping())
    if mapped is None:
        raise _not_now(job, "mapped", "Upload the table again as another job.")
    return view(mapped)


@router.post("/{job_id}/start", status_code=202, operation_id="startBatchJob", summary="Send the rows")
async def start_batch_job(request: Request, job_id: str, caller: Writer) -> dict[str, Any]:
    """Possible once the check is done. Rows that are refused are told in the results and spoil no others. A repetition changes nothing."""
    services = services_of(request)
    job = await _own(services, caller, job_id)
    started = await services.batch_jobs.start(job) or await _own(services, caller, job_id)
    if started.state not in (JobState.RUNNING, JobState.DONE):
        raise _not_now(started, "started", "Wait until its state is `ready`; a job without mapping needs one first.")
    return view(started)


@router.post("/{job_id}/cancel", status_code=202, operation_id="cancelBatchJob", summary="Stop sending")
async def cancel_batch_job(request: Request, job_id: str, caller: Writer) -> dict[str, Any]:
    """What was accepted stays accepted; its messages can be cancelled one by one while they wait."""
    services = services_of(request)
    job = await _own(services, caller, job_id)
    cancelled = await services.batch_jobs.cancel(job) or await _own(services, caller, job_id)
    if cancelled.state is not JobState.CANCELLED and not cancelled.cancel:
        raise _not_now(cancelled, "cancelled", "Nothing: it is at its end.")
    return view(cancelled)


@router.delete("/{job_id}", status_code=204, operation_id="deleteBatchJob", summary="Erase the table and its results")
async def delete_batch_job(request: Request, job_id: str, caller: Writer) -> None:
    """Its messages stay. Not while it is sent."""
    services = services_of(request)
    job = await _own(services, caller, job_id)
    if not await services.batch_jobs.erase(job.id):
        raise _not_now(await _own(services, caller, job_id), "deleted", "Cancel it first.")
