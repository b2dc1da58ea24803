"""What the console writes to the audit by itself. Changes need no line here: the API writes down its calls."""

from __future__ import annotations

from fastapi import Request

from controlplane.console.identity import address_of, services_of
from controlplane.domain.audit import Entry, Outcome, person_actor

__all__ = ["record"]


async def record(
    request: Request,
    person: str,
    action: str,
    object_: str = "",
    *,
    outcome: Outcome = Outcome.DONE,
    tenant: str = "",
    detail: str = "",
) -> None:
    """`person` ("" for nobody known) did this. Numbers, texts and secrets never go in. Raises StoreUnavailableError: what cannot be written down is not done."""
    await services_of(request).audit.append(
        Entry(
            actor=person_actor(person) if person else "",
            action=action,
            object=object_,
            outcome=outcome,
            tenant=tenant,
            address=address_of(request),
            rid=str(request.scope.get("state", {}).get("request_id", "")),
            detail=detail,
        )
    )
