"""Who asks: bearer API keys and what they may do."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fastapi import Request

from controlplane.api.grants import SCHEME
from controlplane.api.services import Services
from controlplane.domain.audit import person_actor
from controlplane.domain.catalog import Key, Scope, Tenant
from controlplane.domain.people import Role
from controlplane.errors import ConfigError, Problem
from controlplane.store.seal import checksum_ok

__all__ = ["Caller", "act_for", "administrator", "authenticate", "caller_of", "relay", "requires"]

_RELAY = "relay"
_RELAY_MS = 60_000
"""Longer than clocks of one datacenter differ."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A key and its tenant."""

    key: Key
    tenant: Tenant
    everywhere: bool = False
    """A person of the whole deployment: reads the messages of all tenants."""

    @property
    def person(self) -> str:
        """Name of the person for whom the console calls; "" for an API key."""
        return self.key.name if self.key.id == person_actor(self.key.name) else ""

    @property
    def admin(self) -> bool:
        """Whether it may see and change everything."""
        return Scope.ADMIN in self.key.scopes


def _unauthorized(detail: str) -> Problem:
    return Problem(
        "unauthorized",
        "No usable API key",
        401,
        detail,
        "Send `Authorization: Bearer hg_live_…` with a key that is enabled.",
        headers={"WWW-Authenticate": 'Bearer realm="heliograph"'},
    )


def act_for(
    services: Services, person: str, *, tenant: str, own: str, scopes: frozenset[str]
) -> AbstractContextManager[str]:
    """An Authorization header with which the console calls for a person; it holds while the context lasts.

    `own` is the tenant that the person is bound to, "" for none; `tenant` is the one to act for, "" for any. Raises Problem 404.
    """
    tenants = services.catalog.snapshot.tenants
    wanted = own or tenant
    anyone = (each for each in tenants.values() if each.enabled)
    found = tenants.get(wanted) if wanted else next(anyone, Tenant(id="", name="nobody"))
    if found is None:
        raise Problem(
            "not-found", "No such tenant", 404, f"There is no tenant {wanted[:60]!r}.", "Choose one that exists."
        )
    return services.grants.give(Caller(_key_of(person, found.id, scopes), found, everywhere=not own))


def relay(services: Services, authorization: str, *, to: str, path: str) -> str:
    """The header with which a request is handed to the node `to`, where a grant of ours says nothing: who it is goes along.

    Sealed, for this one path, for a minute, and for no more than to change messages.
    """
    kind, _, value = authorization.partition(" ")
    caller = services.grants.holder(value) if kind.lower() == SCHEME else None
    if caller is None or not (caller.admin or Scope.MESSAGES_WRITE in caller.key.scopes):
        return authorization
    said = {
        "until": services.clock.now_ms() + _RELAY_MS,
        "to": to,
        "path": path,
        "person": caller.person,
        "tenant": caller.tenant.id,
        "everywhere": caller.everywhere,
    }
    return f"{_RELAY} {services.seal.seal(json.dumps(said))}"


def _granted(services: Services, kind: str, value: str, path: str) -> Caller | None:
    """The person behind a grant of this node, or behind what another node relays to this path."""
    if kind == SCHEME:
        return services.grants.holder(value)
    try:
        said = json.loads(services.seal.open(value))
        tenant = services.catalog.snapshot.tenants.get(said["tenant"])
        meant = (said["to"], said["path"]) == (services.settings.node, path)
        if not meant or said["until"] < services.clock.now_ms() or tenant is None:
            return None
        key = _key_of(said["person"], tenant.id, frozenset({Scope.MESSAGES_WRITE.value}))
        return Caller(key, tenant, everywhere=said["everywhere"])
    except (ValueError, KeyError, TypeError, ConfigError):
        return None


def _key_of(person: str, tenant: str, scopes: frozenset[str]) -> Key:
    return Key(id=person_actor(person), tenant=tenant, name=person, scopes=scopes, digest="", hint="console")


def caller_of(services: Services, authorization: str | None, path: str) -> Caller | None:
    """Whose key or grant it is, whatever they may do; None for nobody who is known."""
    kind, _, value = (authorization or "").partition(" ")
    if kind.lower() in (SCHEME, _RELAY):
        return _granted(services, kind.lower(), value.strip(), path)
    snapshot = services.catalog.snapshot
    key = snapshot.keys.get(services.seal.digest_key(value.strip()))
    tenant = snapshot.tenants.get(key.tenant) if key and key.enabled else None
    return Caller(key, tenant) if key and tenant else None


def authenticate(services: Services, authorization: str | None, scope: Scope, path: str = "") -> Caller:
    """The caller, if the key is good and has `scope` (admin has all). `path`: the request's, which a relay must name. Raises Problem 401 or 403."""
    if not authorization:
        raise _unauthorized("The request has no Authorization header.")
    kind, _, value = authorization.partition(" ")
    value = value.strip()
    if kind.lower() in (SCHEME, _RELAY):
        granted = _granted(services, kind.lower(), value, path)
        if granted is None:
            raise _unauthorized("The grant is over.")
        if not granted.tenant.enabled and (not granted.everywhere or scope is Scope.MESSAGES_WRITE):
            raise _tenant_disabled(granted.tenant)
        return _with_scope(granted, scope)
    if kind.lower() != "bearer" or not value:
        raise _unauthorized("The Authorization header is not of the form `Bearer <key>`.")
    if not checksum_ok(value):
        raise _unauthorized("The key is not complete or has a typing error: its checksum is wrong.")
    snapshot = services.catalog.snapshot
    key = snapshot.keys.get(services.seal.digest_key(value))
    if key is None or not key.enabled:
        raise _unauthorized("The key is unknown or disabled.")
    tenant = snapshot.tenants.get(key.tenant)
    if tenant is None or not tenant.enabled:
        raise _tenant_disabled(tenant or Tenant(id=key.tenant, name=key.tenant))
    return _with_scope(Caller(key, tenant), scope)


def _tenant_disabled(tenant: Tenant) -> Problem:
    detail, todo = f"The tenant {tenant.id!r} is disabled.", "Ask the operator to enable it."
    return Problem("forbidden", "Tenant disabled", 403, detail, todo)


def _with_scope(caller: Caller, scope: Scope) -> Caller:
    if scope not in caller.key.scopes and not caller.admin:
        raise Problem(
            "forbidden",
            "Scope missing",
            403,
            f"This call needs the scope {scope.value}; the key has {', '.join(sorted(caller.key.scopes)) or 'none'}.",
            "Use a key that has the scope.",
        )
    return caller


class requires:  # noqa: N801 - reads as a word in a signature: Depends(requires(Scope.ADMIN))
    """A FastAPI dependency that gives the Caller."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __call__(self, request: Request) -> Caller:
        """The caller of this request."""
        services: Services = request.app.state.services
        return authenticate(services, request.headers.get("authorization"), self.scope, request.url.path)


async def administrator(request: Request) -> Caller:
    """A FastAPI dependency: an admin key, or a person whose role is admin at this moment; an operator may do everything but this."""
    services: Services = request.app.state.services
    caller = authenticate(services, request.headers.get("authorization"), Scope.ADMIN)
    if caller.person:
        person = await services.people.find(caller.person)
        if person is None or person.role < Role.ADMIN:
            raise Problem(
                "forbidden", "Not for your role", 403, "This call needs the role admin.", "Ask an admin to do it."
            )
    return caller
