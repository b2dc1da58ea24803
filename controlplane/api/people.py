"""The people of the console: who may log in, and as what. Their passwords and second factors are theirs: here they can only be taken away."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.audit import note
from controlplane.api.auth import Caller, administrator
from controlplane.api.problems import invalid
from controlplane.api.reading import services_of
from controlplane.api.services import Services
from controlplane.api.times import iso
from controlplane.domain.audit import person_actor
from controlplane.domain.people import NAME, Invitation, Person, Role, standing_fault
from controlplane.errors import FieldError, Problem
from controlplane.store.people import nobody

__all__ = ["router"]

router = APIRouter(prefix="/v1/people", tags=["people"])

Admin = Annotated[Caller, Depends(administrator)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StandingBody(_Body):
    """What a person may do, and for whom."""

    role: Role
    tenant: Annotated[
        str, Field(max_length=64, description='Only this tenant is theirs (viewer, sender); "": the whole deployment.')
    ] = ""


class NewPerson(StandingBody):
    """A person to be invited."""

    name: Annotated[
        str,
        Field(
            pattern=f"{NAME}|^$", description="Login name, in lower case; empty: whoever follows the link chooses it."
        ),
    ] = ""


class PersonBody(StandingBody):
    """A person as they shall be."""

    enabled: bool = True


def _view(person: Person) -> dict[str, Any]:
    return {
        "name": person.name,
        "role": person.role.value,
        "tenant": person.tenant,
        "enabled": person.enabled,
        "state": person.state,
        "totp": person.totp,
        "recovery_codes": person.recovery_codes,
        "created_at": iso(person.created_at),
        "last_login_at": iso(person.last_login_at) if person.last_login_at else None,
    }


def _link(token: str, invitation: Invitation) -> dict[str, Any]:
    """`path` belongs behind the console's address."""
    return {"path": f"/console/setup?token={token}", "expires_at": iso(invitation.until)}


def _check(services: Services, body: StandingBody) -> None:
    fault = standing_fault(body.role, body.tenant)
    if fault:
        raise invalid([FieldError("/role", fault)])
    if body.tenant and body.tenant not in services.catalog.snapshot.tenants:
        raise invalid([FieldError("/tenant", "does not exist; GET /v1/tenants lists those that do")])


async def _find(services: Services, name: str) -> Person:
    person = await services.people.find(name)
    if person is None:
        raise nobody(name)
    return person


def _lets_in(person: Person) -> bool:
    """Whether they can let people in."""
    return person.role is Role.ADMIN and person.state == "active"


async def _others_let_in(services: Services, name: str) -> bool:
    return any(_lets_in(person) for person in await services.people.all() if person.name != name)


def _last_admin(name: str) -> Problem:
    return Problem(
        "last-admin",
        "The last admin",
        409,
        f"{name} is the only admin who can log in.",
        "Make somebody else admin first, and let them log in.",
    )


@router.get("", operation_id="listPeople", summary="Who may use the console")
async def list_people(request: Request, _caller: Admin) -> dict[str, Any]:
    """By name. `state` is active, invited (no password yet) or disabled."""
    return {"data": [_view(person) for person in await services_of(request).people.all()]}


@router.post("", status_code=201, operation_id="invitePerson", summary="Let somebody in")
async def invite(request: Request, body: NewPerson, caller: Admin) -> dict[str, Any]:
    """The answer holds the set-up link, shown only here: it works once, within 24 hours. With a name, the person is listed as invited at once."""
    services = services_of(request)
    _check(services, body)
    person = await services.people.create(body.name, body.role, body.tenant) if body.name else None
    note(request, f"{body.role.value}{f' of {body.tenant}' if body.tenant else ''}")
    link = _link(*await services.links.make(body.name, body.role, body.tenant, caller.key.id))
    return {"name": body.name, "person": _view(person) if person else None, "link": link}


@router.get("/{name}", operation_id="getPerson", summary="One person")
async def get_person(request: Request, name: str, _caller: Admin) -> dict[str, Any]:
    """Never a password or a secret."""
    return _view(await _find(services_of(request), name))


@router.put("/{name}", operation_id="replacePerson", summary="Change role, tenant, or whether they may log in")
async def replace_person(request: Request, name: str, body: PersonBody, _caller: Admin) -> dict[str, Any]:
    """Counts with their next request; whoever is disabled is logged out everywhere. The unused links that somebody made end once they are no admin any more."""
    services = services_of(request)
    _check(services, body)
    old = await _find(services, name)
    leaves = _lets_in(old) and not (body.enabled and body.role is Role.ADMIN)
    if leaves and not await _others_let_in(services, name):
        raise _last_admin(name)
    new = await services.people.change(name, role=body.role, tenant=body.tenant, enabled=body.enabled)
    if leaves and not await _others_let_in(services, name):  # they left at the same moment
        await services.people.change(name, role=old.role, tenant=old.tenant, enabled=old.enabled)
        raise _last_admin(name)
    note(request, f"{_standing(old)} to {_standing(new)}")
    if not new.enabled or new.role < Role.ADMIN:
        await services.links.withdraw_by(person_actor(name))
    if not new.enabled:
        await services.links.withdraw(name)
        await services.sessions.end_all(name)
    return _view(new)


def _standing(person: Person) -> str:
    return " ".join(
        filter(
            None, (person.role.value, person.tenant and f"of {person.tenant}", "" if person.enabled else "(disabled)")
        )
    )


@router.delete("/{name}", status_code=204, operation_id="deletePerson", summary="Remove a person")
async def delete_person(request: Request, name: str, _caller: Admin) -> None:
    """What they did stays in the audit, under their name; the unused links that they made end."""
    services = services_of(request)
    leaves = _lets_in(await _find(services, name))
    if leaves and not await _others_let_in(services, name):
        raise _last_admin(name)
    removed = await services.people.remove(name)
    if leaves and not await _others_let_in(services, name):  # they left at the same moment
        await services.people.put_back(removed)
        raise _last_admin(name)
    await services.links.withdraw(name)
    await services.links.withdraw_by(person_actor(name))
    await services.sessions.end_all(name)


@router.post("/{name}/link", status_code=201, operation_id="linkPerson", summary="A new set-up link")
async def link_person(request: Request, name: str, caller: Admin) -> dict[str, Any]:
    """For somebody who forgot their password or whose invitation is over. Their second factor stays; with the new password all their sessions end."""
    services = services_of(request)
    person = await _find(services, name)
    return _link(*await services.links.make(name, person.role, person.tenant, caller.key.id))


@router.delete("/{name}/totp", operation_id="resetPersonTotp", summary="Take the second factor away")
async def reset_totp(request: Request, name: str, _caller: Admin) -> dict[str, Any]:
    """For somebody who lost their phone and their recovery codes. They are logged out, and set a new one at their next login."""
    services = services_of(request)
    person = await services.people.reset_totp(name)
    await services.sessions.end_all(name)
    return _view(person)


@router.delete("/{name}/sessions", operation_id="endPersonSessions", summary="Log a person out everywhere")
async def end_sessions(request: Request, name: str, _caller: Admin) -> dict[str, Any]:
    """How many sessions ended."""
    services = services_of(request)
    await _find(services, name)
    return {"ended": await services.sessions.end_all(name)}
