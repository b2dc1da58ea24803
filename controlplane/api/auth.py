"""Who asks: bearer API keys and what they may do."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from controlplane.api.services import Services
from controlplane.domain.catalog import Key, Scope, Tenant
from controlplane.errors import Problem
from controlplane.store.seal import checksum_ok

__all__ = ["Caller", "authenticate", "requires"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A key and its tenant."""

    key: Key
    tenant: Tenant

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


def authenticate(services: Services, authorization: str | None, scope: Scope) -> Caller:
    """The caller, if the key is good and has `scope` (admin has all). Raises Problem 401 or 403."""
    if not authorization:
        raise _unauthorized("The request has no Authorization header.")
    kind, _, value = authorization.partition(" ")
    value = value.strip()
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
        raise Problem(
            "forbidden",
            "Tenant disabled",
            403,
            f"The tenant {key.tenant!r} is disabled.",
            "Ask the operator to enable it.",
        )
    if scope not in key.scopes and Scope.ADMIN not in key.scopes:
        raise Problem(
            "forbidden",
            "Scope missing",
            403,
            f"This call needs the scope {scope.value}; the key has {', '.join(sorted(key.scopes)) or 'none'}.",
            "Use a key that has the scope.",
        )
    return Caller(key, tenant)


class requires:  # noqa: N801 - reads as a word in a signature: Depends(requires(Scope.ADMIN))
    """A FastAPI dependency that gives the Caller."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __call__(self, request: Request) -> Caller:
        """The caller of this request."""
        services: Services = request.app.state.services
        return authenticate(services, request.headers.get("authorization"), self.scope)
