"""For which tenant a page is: its person's own; those of the whole deployment choose one, which stands in the URL."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from fastapi import Request

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of
from controlplane.console.identity import Visit
from controlplane.errors import Problem

__all__ = ["Tenancy", "tenancy_of"]


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What a page of one tenant's things knows of it."""

    tenant: str
    """The one to act for; "" = the person's own."""
    choices: list[tuple[str, str]]
    """(id, name); none where there is nothing to choose."""

    def url(self, path: str, **query: str | None) -> str:
        """An address of this tenant's."""
        given = {name: value for name, value in {"tenant": self.tenant, **query}.items() if value}
        return f"{path}?{urlencode(given)}" if given else path


async def tenancy_of(request: Request, visit: Visit) -> Tenancy:
    """By the query's `tenant`; without one the first tenant there is."""
    if visit.tenant:
        return Tenancy("", [])
    wanted = request.query_params.get("tenant", "")[:64]
    try:
        found = await backend_of(request).get(visit, "/v1/tenants")
    except ApiError as error:
        if error.status != 403:
            raise
        if not wanted and request.method != "GET":
            raise Problem(
                "invalid-request",
                "For which tenant?",
                422,
                "Nothing was done: the address names no tenant.",
                "Open the page with ?tenant= and the tenant's id.",
            ) from None
        return Tenancy(wanted, [])
    choices = [(tenant["id"], tenant["name"]) for tenant in found["data"]]
    chosen = wanted or (choices[0][0] if choices else "")
    return Tenancy(chosen, choices)
