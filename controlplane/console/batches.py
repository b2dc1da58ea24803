"""Batch jobs: upload a table, say what its columns are, read the check, start, follow, fetch the results."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, redirect, refused, render
from controlplane.console.identity import Visit, allows
from controlplane.console.tenancy import Tenancy, tenancy_of
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/batches")

Sender = Annotated[Visit, Depends(allows(Role.SENDER))]
_MOVING = frozenset({"receiving", "checking", "running"})
_SHOWN = 5
_FIELDS = (
    ("to", "Recipient", ""),
    ("from", "Sender", ""),
    ("class", "Class", "otp, transactional or marketing"),
    ("reference", "Reference", ""),
    ("send_at", "Send at", "such as 2030-01-31T09:00:00+01:00"),
    ("validity_seconds", "Validity in seconds", ""),
    ("origin", "Your country", "such as DE"),
    ("max_price", "Highest price", "of a message, in minor units"),
)


@router.get("")
async def list_jobs(request: Request, visit: Sender) -> Response:
    """Newest first, below the upload."""
    return await _list_page(request, visit)


@router.post("")
async def upload(request: Request, visit: Sender) -> Response:
    """The form goes on to the API as it comes."""
    tenancy = await tenancy_of(request, visit)
    content_type = request.headers.get("content-type", "")
    try:
        job = await backend_of(request).upload(
            visit, "/v1/batch-jobs", request.receive, content_type, tenant=tenancy.tenant
        )
    except ApiError as error:
        return await _list_page(request, visit, error)
    return redirect(tenancy.url(f"/console/batches/{job['id']}"), "Uploaded. Nothing is sent before you start it.")


async def _list_page(request: Request, visit: Visit, error: ApiError | None = None) -> Response:
    tenancy = await tenancy_of(request, visit)
    cursor = request.query_params.get("cursor", "") if error is None else ""
    found = await backend_of(request).get(visit, "/v1/batch-jobs", {"cursor": cursor}, tenant=tenancy.tenant)
    return render(
        request,
        "batches/list.html",
        status=error.status if error else 200,
        tenancy=tenancy,
        jobs=found["data"],
        older=tenancy.url("/console/batches", cursor=found["next"]) if found["next"] else "",
        newest=tenancy.url("/console/batches") if cursor else "",
        problem=error.problem if error else None,
        errors=error.fields if error else {},
    )


@router.get("/{job_id}")
async def show_job(request: Request, visit: Sender, job_id: str) -> Response:
    """Where it stands, and what can be done now. htmx asks for the part that moves."""
    job = await _job(request, visit, job_id)
    return await _job_page(request, visit, job, mapping=job["mapping"] or {})


@router.post("/{job_id}/preview")
async def preview(request: Request, visit: Sender, job_id: str) -> Response:
    """What the first rows become with a mapping that is not kept."""
    job = await _job(request, visit, job_id)
    return await _job_page(request, visit, job, mapping=_mapping(await request.form()))


@router.post("/{job_id}/mapping")
async def save_mapping(request: Request, visit: Sender, job_id: str) -> Response:
    """Keeps it; the rows are checked (anew)."""
    tenancy, mapping = await tenancy_of(request, visit), _mapping(await request.form())
    try:
        await backend_of(request).put(visit, f"/v1/batch-jobs/{job_id}/mapping", mapping, tenant=tenancy.tenant)
    except ApiError as error:
        job = await _job(request, visit, job_id)
        return await _job_page(request, visit, job, mapping=mapping, error=error)
    return redirect(tenancy.url(f"/console/batches/{job_id}"), "The rows are being checked.")


@router.post("/{job_id}/start")
async def start(request: Request, visit: Sender, job_id: str) -> Response:
    """From now on it is sent."""
    return await _act(request, visit, job_id, "start", "Started.")


@router.post("/{job_id}/cancel")
async def cancel(request: Request, visit: Sender, job_id: str) -> Response:
    """What was accepted stays."""
    return await _act(request, visit, job_id, "cancel", "It stops. What was accepted stays accepted.")


@router.post("/{job_id}/remove")
async def remove(request: Request, visit: Sender, job_id: str, confirm: Annotated[str, Form()] = "") -> Response:
    """The table and its results; not the messages."""
    job = await _job(request, visit, job_id)
    mapping = job["mapping"] or {}
    if confirm != "erase":
        return await _job_page(request, visit, job, mapping=mapping, unconfirmed="Type erase exactly.")
    tenancy = await tenancy_of(request, visit)
    try:
        await backend_of(request).delete(visit, f"/v1/batch-jobs/{job_id}", tenant=tenancy.tenant)
    except ApiError as error:
        return await _job_page(request, visit, job, mapping=mapping, error=error)
    return redirect(tenancy.url("/console/batches"), "The table and its results are erased.")


@router.get("/{job_id}/results.csv")
async def results(request: Request, visit: Sender, job_id: str) -> Response:
    """As the API gives it."""
    tenancy = await tenancy_of(request, visit)
    path = f"/v1/batch-jobs/{job_id}/results.csv"
    return backend_of(request).download(visit, path, {}, lambda error: refused(request, error), tenant=tenancy.tenant)


async def _act(request: Request, visit: Visit, job_id: str, verb: str, said: str) -> Response:
    tenancy = await tenancy_of(request, visit)
    try:
        await backend_of(request).post(visit, f"/v1/batch-jobs/{job_id}/{verb}", tenant=tenancy.tenant)
    except ApiError as error:
        job = await _job(request, visit, job_id)
        return await _job_page(request, visit, job, mapping=job["mapping"] or {}, error=error)
    return redirect(tenancy.url(f"/console/batches/{job_id}"), said)


async def _job(request: Request, visit: Visit, job_id: str) -> dict[str, Any]:
    tenancy = await tenancy_of(request, visit)
    return await backend_of(request).get(visit, f"/v1/batch-jobs/{job_id}", tenant=tenancy.tenant)


async def _job_page(
    request: Request,
    visit: Visit,
    job: dict[str, Any],
    *,
    mapping: dict[str, Any],
    error: ApiError | None = None,
    unconfirmed: str = "",
) -> Response:
    tenancy = await tenancy_of(request, visit)
    rows: list[dict[str, Any]] = []
    if job["state"] in ("mapping", "ready"):
        try:
            rows = await _preview(request, visit, tenancy, job["id"], mapping)
        except ApiError as refusal:
            if mapping.get("body") or mapping.get("values"):  # else it is only not said yet
                error = error or refusal
    moving = job["state"] in _MOVING
    return render(
        request,
        "batches/job.html",
        fragment="state",
        status=error.status if error else 200,
        tenancy=tenancy,
        job=job,
        moving=moving,
        fields=_FIELDS,
        columns=_columns(job["table"]["columns"]),
        mapping={"columns": {}, "values": {}, "body": ""} | mapping,
        rows=rows,
        problem=error.problem if error else None,
        errors=error.fields if error else {},
        unconfirmed=unconfirmed,
    )


async def _preview(
    request: Request, visit: Visit, tenancy: Tenancy, job_id: str, mapping: dict[str, Any]
) -> list[dict[str, Any]]:
    path = f"/v1/batch-jobs/{job_id}/preview"
    found = await backend_of(request).call(
        visit, "POST", path, params={"limit": _SHOWN}, body=mapping, tenant=tenancy.tenant
    )
    rows: list[dict[str, Any]] = found["data"]
    return rows


def _columns(names: list[str]) -> list[tuple[str, str]]:
    """(how the mapping names a column, how people see it): by its number where the name is not its own."""
    counts = Counter(name.strip().lower() for name in names)
    return [
        (name if name.strip() and counts[name.strip().lower()] == 1 else str(number), name or f"column {number}")
        for number, name in enumerate(names, 1)
    ]


def _mapping(form: FormData) -> dict[str, Any]:
    """The API's mapping from the form: `column.to`, `value.from`, `body`."""
    names = ["body", *(name for name, _, _ in _FIELDS)]
    columns = {name: column for name in names if (column := str(form.get(f"column.{name}", "")))}
    values = {name: value for name in names if (value := str(form.get(f"value.{name}", "")).strip())}
    body = str(form.get("body", "")).replace("\r\n", "\n")
    return {"columns": columns, "values": values, "body": "" if "body" in columns and not body.strip() else body}
