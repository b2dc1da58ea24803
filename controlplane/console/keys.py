"""Tenants and their API keys. All of it is the API's `/v1/tenants` and `/v1/keys`; a key is shown once, when it is made."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.console.tenant_form import DAYS, read_tenant, show_tenant
from controlplane.domain.catalog import MessageClass, RoutingMode, Scope, UnknownPolicy
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/keys")

Admin = Annotated[Visit, Depends(allows(Role.ADMIN))]
Text = Annotated[str, Form()]
Texts = Annotated[list[str], Form()]
SCOPES = (
    (Scope.MESSAGES_WRITE.value, "send, cancel, erase; keep suppressions and preferences"),
    (Scope.MESSAGES_READ.value, "read messages and their proofs"),
    (Scope.ROUTES_READ.value, "read routes and connectors, search routes"),
    (Scope.LEDGER_READ.value, "read the ledger"),
    (Scope.ADMIN.value, "everything, for all tenants"),
)


@router.get("")
async def list_tenants(request: Request, visit: Admin) -> Response:
    """Each tenant with its keys."""
    backend = backend_of(request)
    tenants = (await backend.get(visit, "/v1/tenants"))["data"]
    keys = (await backend.get(visit, "/v1/keys"))["data"]
    keys.sort(key=lambda key: (key["tenant"], key["name"]))
    shown = [(tenant, [key for key in keys if key["tenant"] == tenant["id"]]) for tenant in tenants]
    return render(request, "keys/list.html", tenants=shown)


# -- tenants -------------------------------------------------------------------------------------------------------------


@router.get("/tenants/-/new")
async def show_new_tenant(request: Request, _visit: Admin) -> Response:
    """A form with the defaults."""
    return _tenant_page(request, show_tenant({}), new=True)


@router.post("/tenants/-/new")
async def create_tenant(request: Request, visit: Admin) -> Response:
    """The callback secret is shown this once."""
    form = await request.form()
    values, errors = read_tenant(form)
    tenant_id = str(form.get("id", "")).strip()
    try:
        if errors:
            return _tenant_page(request, show_tenant(values) | {"id": tenant_id}, errors=errors, new=True)
        made = await backend_of(request).post(visit, "/v1/tenants", values | {"id": tenant_id})
    except ApiError as error:
        return _tenant_page(request, show_tenant(values) | {"id": tenant_id}, error, new=True)
    return _secret_page(
        request,
        f"Tenant {made['id']}",
        "Callback secret",
        made["callback_secret"],
        "With it the tenant's receivers check the signature of callbacks (Standard Webhooks).",
    )


@router.get("/tenants/{tenant_id}")
async def show_one_tenant(request: Request, visit: Admin, tenant_id: str) -> Response:
    """All its fields."""
    return _tenant_page(request, show_tenant(await backend_of(request).get(visit, f"/v1/tenants/{tenant_id}")))


@router.post("/tenants/{tenant_id}")
async def replace_tenant(request: Request, visit: Admin, tenant_id: str) -> Response:
    """All its fields."""
    values, errors = read_tenant(await request.form())
    shown = show_tenant(values) | {"id": tenant_id}
    if errors:
        return _tenant_page(request, shown, errors=errors)
    try:
        await backend_of(request).put(visit, f"/v1/tenants/{tenant_id}", values)
    except ApiError as error:
        return _tenant_page(request, shown, error)
    return redirect(f"/console/keys/tenants/{tenant_id}", "Saved; all nodes know within 2 seconds.")


@router.post("/tenants/{tenant_id}/remove")
async def remove_tenant(request: Request, visit: Admin, tenant_id: str, confirm: Text = "") -> Response:
    """Only without keys."""
    backend = backend_of(request)
    if confirm == tenant_id:
        try:
            await backend.delete(visit, f"/v1/tenants/{tenant_id}")
        except ApiError as error:
            shown = show_tenant(await backend.get(visit, f"/v1/tenants/{tenant_id}"))
            return _tenant_page(request, shown, error)
        return redirect("/console/keys", f"Tenant {tenant_id} is removed.")
    shown = show_tenant(await backend.get(visit, f"/v1/tenants/{tenant_id}"))
    return _tenant_page(request, shown, unconfirmed=f"Type {tenant_id} exactly.")


def _tenant_page(
    request: Request,
    tenant: dict[str, Any],
    error: ApiError | None = None,
    *,
    errors: dict[str, str] | None = None,
    new: bool = False,
    unconfirmed: str = "",
) -> Response:
    found = errors or (error.fields if error else {})
    return render(
        request,
        "keys/tenant.html",
        status=422 if found or error or unconfirmed else 200,
        tenant=tenant,
        new=new,
        errors=found,
        problem=error.problem if error else None,
        unconfirmed=unconfirmed,
        classes=[cls.value for cls in MessageClass],
        policies=[("", "as usual"), *((policy.value, policy.value) for policy in UnknownPolicy)],
        modes=[mode.value for mode in RoutingMode],
        days=DAYS,
    )


# -- keys ----------------------------------------------------------------------------------------------------------------


@router.get("/-/new")
async def show_new_key(request: Request, visit: Admin, tenant: str = "") -> Response:
    """A form with what most keys need."""
    usual = [Scope.MESSAGES_WRITE.value, Scope.MESSAGES_READ.value, Scope.ROUTES_READ.value]
    return await _new_key_page(request, visit, {"tenant": tenant, "name": "", "scopes": usual, "rate": "0", "test": ""})


@router.post("/-/new")
async def create_key(
    request: Request,
    visit: Admin,
    tenant: Text = "",
    name: Text = "",
    rate: Text = "0",
    test: Text = "",
    scopes: Texts = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """The key is shown this once."""
    values = {"tenant": tenant, "name": name, "scopes": scopes, "rate": rate, "test": test}
    try:
        body = values | {"rate": _number(rate), "test": bool(test)}
        made = await backend_of(request).post(visit, "/v1/keys", body)
    except ApiError as error:
        return await _new_key_page(request, visit, values, error)
    return _secret_page(
        request,
        f"Key {name}",
        "API key",
        made["key"],
        "Send it as `Authorization: Bearer …`. It is not stored: whoever loses it needs a new one.",
    )


@router.get("/{key_id}")
async def show_key(request: Request, visit: Admin, key_id: str) -> Response:
    """One key; never the key itself."""
    key = await backend_of(request).get(visit, f"/v1/keys/{key_id}")
    return _key_page(request, key, key)


@router.post("/{key_id}")
async def change_key(
    request: Request,
    visit: Admin,
    key_id: str,
    name: Text = "",
    rate: Text = "0",
    enabled: Text = "",
    scopes: Texts = [],  # noqa: B006
) -> Response:
    """Name, scopes, rate, whether it works."""
    values = {"name": name, "scopes": scopes, "rate": rate, "enabled": bool(enabled)}
    backend = backend_of(request)
    try:
        await backend.put(visit, f"/v1/keys/{key_id}", values | {"rate": _number(rate)})
    except ApiError as error:
        return _key_page(request, await backend.get(visit, f"/v1/keys/{key_id}"), values, error)
    return redirect("/console/keys", f"Key {name} is saved; all nodes know within 2 seconds.")


@router.post("/{key_id}/remove")
async def remove_key(request: Request, visit: Admin, key_id: str, confirm: Text = "") -> Response:
    """It stops working, for good."""
    backend = backend_of(request)
    key = await backend.get(visit, f"/v1/keys/{key_id}")
    if confirm != key["name"]:
        return _key_page(request, key, key, unconfirmed=f"Type {key['name']} exactly.")
    await backend.delete(visit, f"/v1/keys/{key_id}")
    return redirect("/console/keys", f"Key {key['name']} is removed.")


def _number(text: str) -> int | str:
    """For the API, which says what is wrong with what is no number."""
    return int(text) if text.strip().lstrip("-").isdecimal() else text


async def _new_key_page(
    request: Request, visit: Visit, values: dict[str, Any], error: ApiError | None = None
) -> Response:
    tenants = (await backend_of(request).get(visit, "/v1/tenants"))["data"]
    return render(
        request,
        "keys/new.html",
        status=422 if error else 200,
        values=values,
        errors=error.fields if error else {},
        problem=error.problem if error and not error.fields else None,
        scopes=SCOPES,
        tenants=[(tenant["id"], f"{tenant['id']}: {tenant['name']}") for tenant in tenants],
    )


def _key_page(
    request: Request,
    key: dict[str, Any],
    values: dict[str, Any],
    error: ApiError | None = None,
    *,
    unconfirmed: str = "",
) -> Response:
    return render(
        request,
        "keys/key.html",
        status=422 if error or unconfirmed else 200,
        key=key,
        values=values,
        errors=error.fields if error else {},
        problem=error.problem if error and not error.fields else None,
        unconfirmed=unconfirmed,
        scopes=SCOPES,
    )


def _secret_page(request: Request, title: str, label: str, secret: str, about: str) -> Response:
    return render(request, "keys/secret.html", title=title, label=label, secret=secret, about=about)
