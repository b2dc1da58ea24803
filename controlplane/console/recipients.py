"""Recipients: suppressions and preferences of a tenant: lists, one number, new ones, imports."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.console.recipient_forms import CLASSES, DAYS, read_preference, read_table, show_preference
from controlplane.console.tenancy import tenancy_of
from controlplane.domain.people import Role
from controlplane.domain.preferences import Reason
from controlplane.domain.sheet import SheetError

__all__ = ["router"]

router = APIRouter(prefix="/recipients")

Viewer = Annotated[Visit, Depends(allows(Role.VIEWER))]
Sender = Annotated[Visit, Depends(allows(Role.SENDER))]
Text = Annotated[str, Form()]
_HERE = "/console/recipients"
_WISHES = f"{_HERE}/preferences"
_REASONS = [
    (Reason.MANUAL.value, "manual: somebody here decided it"),
    (Reason.OPT_OUT.value, "opt_out: the recipient does not want messages"),
    (Reason.COMPLAINT.value, "complaint: the recipient complained"),
    (Reason.INVALID.value, "invalid: the number does not exist"),
]
_COUNTED = 20
"""Rows of an import that are told one by one."""


# -- suppressions --------------------------------------------------------------------------------------------------------


@router.get("")
async def list_suppressions(request: Request, visit: Viewer) -> Response:
    """Newest first: all, or those of one number or reason."""
    return await _list_page(request, visit, "suppressions", _HERE, ("recipient", "reason"))


@router.get("/new")
async def show_new(request: Request, visit: Sender) -> Response:
    """An empty form."""
    return await _suppression_page(request, visit, {"recipient": request.query_params.get("recipient", "")})


@router.post("/new")
async def suppress(request: Request, visit: Sender) -> Response:
    """From now on it gets nothing."""
    tenancy, values = await tenancy_of(request, visit), _suppression(await request.form())
    try:
        await backend_of(request).post(visit, "/v1/suppressions", values, tenant=tenancy.tenant)
    except ApiError as error:
        return await _suppression_page(request, visit, values, error)
    return redirect(tenancy.url(_HERE), "Suppressed; all nodes know within 2 seconds.")


@router.get("/import")
async def show_import(request: Request, visit: Sender) -> Response:
    """A file, or numbers one a line."""
    return await _import_page(request, visit, {})


@router.post("/import")
async def import_numbers(request: Request, visit: Sender) -> Response:
    """Up to 10,000 at once; each bad one is told."""
    tenancy = await tenancy_of(request, visit)
    async with request.form() as form:
        common = _suppression(form)
        file = form.get("file")
        data = await file.read() if isinstance(file, UploadFile) else b""
        data = data or str(form.get("numbers", "")).encode()
    try:
        rows = read_table(data)
    except SheetError as error:
        return await _import_page(request, visit, common, errors={"file": str(error)})
    items = [{**common, "recipient": number} for _, number in rows]
    try:
        done = await backend_of(request).post(visit, "/v1/suppressions/import", {"items": items}, tenant=tenancy.tenant)
    except ApiError as error:
        return await _import_page(request, visit, common, error)
    wrong = [(rows[result["index"]][0], result["error"]["detail"]) for result in done["results"] if "error" in result]
    if not wrong:
        return redirect(tenancy.url(_HERE), f"{done['imported']} numbers are suppressed.")
    return await _import_page(request, visit, common, imported=done["imported"], wrong=wrong)


@router.post("/{suppression_id}/lift")
async def lift(request: Request, visit: Sender, suppression_id: str, confirm: Text = "") -> Response:
    """Only with the recipient's consent where the recipient asked for it."""
    return await _remove(request, visit, f"/v1/suppressions/{suppression_id}", "lift", confirm, _HERE)


def _suppression(form: FormData) -> dict[str, Any]:
    classes = [str(cls) for cls in form.getlist("classes")]
    return {
        "recipient": str(form.get("recipient", "")).strip(),
        "reason": str(form.get("reason", Reason.MANUAL.value)),
        "sender": str(form.get("sender", "")).strip(),
        "source": str(form.get("source", "")).strip(),
        **({"classes": classes} if classes else {}),
    }


async def _suppression_page(
    request: Request, visit: Visit, values: dict[str, Any], error: ApiError | None = None
) -> Response:
    return render(
        request,
        "recipients/suppression.html",
        status=error.status if error else 200,
        tenancy=await tenancy_of(request, visit),
        values={"reason": "manual", "sender": "", "source": "", "classes": []} | values,
        reasons=_REASONS,
        classes=CLASSES,
        problem=error.problem if error else None,
        errors=error.fields if error else {},
    )


async def _import_page(
    request: Request,
    visit: Visit,
    values: dict[str, Any],
    error: ApiError | None = None,
    *,
    errors: dict[str, str] | None = None,
    imported: int | None = None,
    wrong: list[tuple[int, str]] | None = None,
) -> Response:
    return render(
        request,
        "recipients/import.html",
        status=error.status if error else 422 if errors else 200,
        tenancy=await tenancy_of(request, visit),
        values={"reason": "manual", "sender": "", "source": "", "classes": []} | values,
        reasons=_REASONS,
        classes=CLASSES,
        problem=error.problem if error else None,
        errors=errors or (error.fields if error else {}),
        imported=imported,
        wrong=(wrong or [])[:_COUNTED],
        more=max(0, len(wrong or []) - _COUNTED),
    )


# -- preferences ---------------------------------------------------------------------------------------------------------


@router.get("/preferences")
async def list_preferences(request: Request, visit: Viewer) -> Response:
    """Newest first: all, or that of one number."""
    return await _list_page(request, visit, "preferences", _WISHES, ("recipient",))


@router.get("/preferences/new")
async def show_new_preference(request: Request, visit: Sender) -> Response:
    """An empty form."""
    values = show_preference({"recipient": request.query_params.get("recipient", "")})
    return await _preference_page(request, visit, values)


@router.post("/preferences/new")
async def prefer(request: Request, visit: Sender) -> Response:
    """One for each recipient; the one before is replaced."""
    form = await request.form()
    tenancy = await tenancy_of(request, visit)
    values = read_preference(form) | {"recipient": str(form.get("recipient", "")).strip()}
    try:
        await backend_of(request).post(visit, "/v1/preferences", values, tenant=tenancy.tenant)
    except ApiError as error:
        return await _preference_page(request, visit, show_preference(values), error)
    return redirect(tenancy.url(_WISHES), "Kept; all nodes know within 2 seconds.")


@router.get("/preferences/{preference_id}")
async def show_preference_form(request: Request, visit: Sender, preference_id: str) -> Response:
    """What is recorded."""
    return await _preference_page(request, visit, show_preference(await _wish(request, visit, preference_id)))


@router.post("/preferences/{preference_id}")
async def replace_preference(request: Request, visit: Sender, preference_id: str) -> Response:
    """All of it."""
    tenancy, values = await tenancy_of(request, visit), read_preference(await request.form())
    try:
        await backend_of(request).put(visit, f"/v1/preferences/{preference_id}", values, tenant=tenancy.tenant)
    except ApiError as error:
        found = await _wish(request, visit, preference_id)
        return await _preference_page(request, visit, show_preference(found | values), error)
    return redirect(tenancy.url(_WISHES), "Saved; all nodes know within 2 seconds.")


@router.post("/preferences/{preference_id}/remove")
async def remove_preference(request: Request, visit: Sender, preference_id: str, confirm: Text = "") -> Response:
    """Forgotten."""
    return await _remove(request, visit, f"/v1/preferences/{preference_id}", "remove", confirm, _WISHES)


async def _wish(request: Request, visit: Visit, preference_id: str) -> dict[str, Any]:
    tenancy = await tenancy_of(request, visit)
    return await backend_of(request).get(visit, f"/v1/preferences/{preference_id}", tenant=tenancy.tenant)


async def _preference_page(
    request: Request, visit: Visit, values: dict[str, Any], error: ApiError | None = None
) -> Response:
    return render(
        request,
        "recipients/preference.html",
        status=error.status if error else 200,
        tenancy=await tenancy_of(request, visit),
        values=values,
        classes=CLASSES,
        days=DAYS,
        problem=error.problem if error else None,
        errors=error.fields if error else {},
    )


# -- both ----------------------------------------------------------------------------------------------------------------


async def _list_page(
    request: Request,
    visit: Visit,
    what: str,
    here: str,
    filters: tuple[str, ...],
    *,
    unconfirmed: str = "",
    status: int = 200,
) -> Response:
    tenancy = await tenancy_of(request, visit)
    wanted = {name: request.query_params.get(name, "").strip()[:40] for name in filters}
    cursor = request.query_params.get("cursor", "")
    found: dict[str, Any] = {"data": [], "next": None}
    error = None
    try:
        found = await backend_of(request).get(visit, f"/v1/{what}", {**wanted, "cursor": cursor}, tenant=tenancy.tenant)
    except ApiError as refusal:
        if refusal.status != 422:
            raise
        error = refusal
    return render(
        request,
        f"recipients/{what}.html",
        status=error.status if error else status,
        tenancy=tenancy,
        items=found["data"],
        wanted=wanted,
        reasons=_REASONS,
        older=tenancy.url(here, **wanted, cursor=found["next"]) if found["next"] else "",
        newest=tenancy.url(here, **wanted) if cursor else "",
        may=visit.role >= Role.SENDER,
        errors=error.fields if error else {},
        unconfirmed=unconfirmed,
    )


async def _remove(request: Request, visit: Visit, path: str, word: str, confirm: str, here: str) -> Response:
    tenancy = await tenancy_of(request, visit)
    if confirm != word:
        what, filters = ("suppressions", ("recipient", "reason")) if here == _HERE else ("preferences", ("recipient",))
        return await _list_page(
            request, visit, what, here, filters, unconfirmed=f"Nothing was done: type {word} exactly.", status=422
        )
    await backend_of(request).delete(visit, path, tenant=tenancy.tenant)
    return redirect(tenancy.url(here), "Lifted." if word == "lift" else "Removed.")
