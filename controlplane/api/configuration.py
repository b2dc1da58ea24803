"""What operators configure: tenants, keys, connectors, routes. POST creates, PUT replaces, DELETE removes; each takes effect on all nodes within 2 s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from controlplane.api.audit import note
from controlplane.api.auth import Caller, administrator, requires
from controlplane.api.problems import invalid
from controlplane.api.quiet import QuietBody, quiet_hours, quiet_view
from controlplane.api.reading import services_of
from controlplane.api.services import Services
from controlplane.domain.catalog import (
    BindType,
    Connector,
    Key,
    MessageClass,
    Route,
    RoutingMode,
    Scope,
    SenderType,
    Tenant,
    UnknownPolicy,
)
from controlplane.domain.keywords import OPT_IN, OPT_OUT
from controlplane.domain.node_state import SeenNode, joined
from controlplane.errors import FieldError, Problem
from controlplane.ids import token
from controlplane.store.catalog import not_found
from controlplane.store.seal import new_key

__all__ = ["router"]

router = APIRouter(prefix="/v1")

Admin = Annotated[Caller, Depends(requires(Scope.ADMIN))]
Administrator = Annotated[Caller, Depends(administrator)]
RouteReader = Annotated[Caller, Depends(requires(Scope.ROUTES_READ))]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Keyword = Annotated[str, Field(pattern=r"^\w[\w ]{0,39}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


# -- tenants -------------------------------------------------------------------------------------------------------------


class RoutingTerms(_Body):
    """What a message of one class is worth to its tenant, in minor units."""

    value: Annotated[float, Field(gt=0, le=1_000_000, description="Of a delivery within the class's deadline.")]
    price: Annotated[float, Field(ge=0, le=1_000, description="How much a minor unit of price weighs.")] = 1.0
    latency: Annotated[float, Field(ge=0, le=10_000, description="Of a second until the delivery.")] = 0.0


class TenantBody(_Body):
    """A customer."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    enabled: bool = True
    rate: Annotated[
        int, Field(ge=0, le=1_000_000, description="Messages a second on each node; 0 = the node's default.")
    ] = 0
    unknown_policies: dict[MessageClass, UnknownPolicy] = Field(default_factory=dict)
    smart_encoding: bool = False
    retention_days: Annotated[
        int | None,
        Field(
            ge=1,
            le=3650,
            description="Erase recipient, sender and text of final messages older than this; null: never.",
        ),
    ] = None
    quiet_hours: Annotated[
        dict[MessageClass, QuietBody],
        Field(description="By class: when its messages must not arrive, by each recipient's own clock."),
    ] = Field(default_factory=dict)
    opt_out_keywords: Annotated[
        list[Keyword], Field(max_length=100, description="A text from a phone that is one of them opts its number out.")
    ] = Field(default_factory=lambda: list(OPT_OUT))
    opt_in_keywords: Annotated[
        list[Keyword], Field(max_length=100, description="A text that is one of them lifts that.")
    ] = Field(default_factory=lambda: list(OPT_IN))
    opt_out_classes: Annotated[
        set[MessageClass], Field(min_length=1, description="What an opt-out by keyword covers.")
    ] = Field(default_factory=lambda: {MessageClass.TRANSACTIONAL, MessageClass.MARKETING})
    routing: Annotated[
        RoutingMode,
        Field(
            description="static: by priority and price; shadow: the same, and what would have been learned is recorded; "
            "learned: by what is learned of delivery, latency and price."
        ),
    ] = RoutingMode.STATIC
    routing_terms: Annotated[
        dict[MessageClass, RoutingTerms],
        Field(description="What messages are worth, by class; the defaults of docs/routing.md where it says nothing."),
    ] = Field(default_factory=dict)


class NewTenant(TenantBody):
    """A customer to be created."""

    id: Name


def _tenant_view(tenant: Tenant) -> dict[str, Any]:
    view = {key: value for key, value in asdict(tenant).items() if key != "callback_secrets"}
    return view | {
        "quiet_hours": quiet_view(tenant.quiet_hours),
        "opt_out_classes": sorted(tenant.opt_out_classes),
    }


def _tenant_values(body: TenantBody) -> dict[str, Any]:
    values = body.model_dump(exclude={"id"})
    values["quiet_hours"] = quiet_hours(body.quiet_hours)
    values["opt_out_keywords"] = tuple(body.opt_out_keywords)
    values["opt_in_keywords"] = tuple(body.opt_in_keywords)
    values["opt_out_classes"] = frozenset(cls.value for cls in body.opt_out_classes)
    values["unknown_policies"] = {key.value: policy.value for key, policy in body.unknown_policies.items()}
    values["routing"] = body.routing.value
    values["routing_terms"] = {key.value: terms.model_dump() for key, terms in body.routing_terms.items()}
    return values


@router.get("/tenants", tags=["tenants"], operation_id="listTenants")
async def list_tenants(request: Request, _caller: Admin) -> dict[str, Any]:
    """All tenants."""
    return {"data": [_tenant_view(tenant) for tenant in services_of(request).catalog.snapshot.tenants.values()]}


@router.post("/tenants", status_code=201, tags=["tenants"], operation_id="createTenant")
async def create_tenant(request: Request, body: NewTenant, _caller: Administrator) -> dict[str, Any]:
    """The answer holds the tenant's callback signing secret; it is shown only here and after a rotation."""
    services = services_of(request)
    secret = services.new_callback_secret()
    tenant = Tenant(id=body.id, callback_secrets=(secret,), **_tenant_values(body))
    await services.catalog.put(tenant, create=True)
    return {**_tenant_view(tenant), "callback_secret": secret}


@router.get("/tenants/{tenant_id}", tags=["tenants"], operation_id="getTenant")
async def get_tenant(request: Request, tenant_id: str, _caller: Admin) -> dict[str, Any]:
    """One tenant."""
    return _tenant_view(_tenant(services_of(request), tenant_id))


@router.put("/tenants/{tenant_id}", tags=["tenants"], operation_id="replaceTenant")
async def replace_tenant(request: Request, tenant_id: str, body: TenantBody, _caller: Administrator) -> dict[str, Any]:
    """Everything but the callback secrets."""
    services = services_of(request)
    tenant = replace(_tenant(services, tenant_id), **_tenant_values(body))
    await services.catalog.put(tenant)
    return _tenant_view(tenant)


@router.delete("/tenants/{tenant_id}", status_code=204, tags=["tenants"], operation_id="deleteTenant")
async def delete_tenant(request: Request, tenant_id: str, _caller: Administrator) -> None:
    """Only when no key and no person is left."""
    services = services_of(request)
    theirs = [person.name for person in await services.people.all() if person.tenant == tenant_id]
    if theirs:
        raise Problem(
            "in-use",
            "Still in use",
            409,
            f"{tenant_id!r} is the tenant of {', '.join(theirs[:5])}.",
            "Remove those people first, or bind them to another tenant; or disable the tenant instead.",
        )
    await services.catalog.delete(Tenant, tenant_id)


def _tenant(services: Services, tenant_id: str) -> Tenant:
    tenant = services.catalog.snapshot.tenants.get(tenant_id)
    if tenant is None:
        raise not_found(Tenant, tenant_id)
    return tenant


# -- keys ----------------------------------------------------------------------------------------------------------------


class KeyBody(_Body):
    """What a key may do."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[set[Scope], Field(min_length=1)]
    rate: Annotated[int, Field(ge=0, le=1_000_000, description="Messages a second on each node; 0 = the tenant's.")] = 0
    enabled: bool = True


class NewKey(KeyBody):
    """A key to be created."""

    tenant: Name
    test: bool = False


def _key_view(key: Key) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "digest"} | {"scopes": sorted(key.scopes)}


@router.get("/keys", tags=["keys"], operation_id="listKeys")
async def list_keys(request: Request, _caller: Admin) -> dict[str, Any]:
    """All keys; never the keys themselves."""
    return {"data": [_key_view(key) for key in services_of(request).catalog.snapshot.keys.values()]}


@router.post("/keys", status_code=201, tags=["keys"], operation_id="createKey")
async def create_key(request: Request, body: NewKey, _caller: Administrator) -> dict[str, Any]:
    """The answer holds the key; it is shown only here."""
    services = services_of(request)
    secret = new_key(test=body.test)
    key = Key(
        id=token("key", 8),
        tenant=body.tenant,
        name=body.name,
        scopes=frozenset(scope.value for scope in body.scopes),
        digest=services.seal.digest_key(secret),
        hint=secret[:12] + "…",
        test=body.test,
        created_at=services.clock.now_ms(),
        rate=body.rate,
        enabled=body.enabled,
    )
    await services.catalog.put(key, create=True)
    return {**_key_view(key), "key": secret}


@router.get("/keys/{key_id}", tags=["keys"], operation_id="getKey")
async def get_key(request: Request, key_id: str, _caller: Admin) -> dict[str, Any]:
    """One key; never the key itself."""
    return _key_view(_find_key(services_of(request), key_id))


@router.put("/keys/{key_id}", tags=["keys"], operation_id="replaceKey")
async def replace_key(request: Request, key_id: str, body: KeyBody, _caller: Administrator) -> dict[str, Any]:
    """Its name, scopes, rate, and whether it works; on all nodes within 2 s."""
    services = services_of(request)
    key = replace(
        _find_key(services, key_id),
        name=body.name,
        scopes=frozenset(scope.value for scope in body.scopes),
        rate=body.rate,
        enabled=body.enabled,
    )
    await services.catalog.put(key)
    return _key_view(key)


@router.delete("/keys/{key_id}", status_code=204, tags=["keys"], operation_id="deleteKey")
async def delete_key(request: Request, key_id: str, _caller: Administrator) -> None:
    """The key stops working on all nodes within 2 s."""
    await services_of(request).catalog.delete(Key, key_id)


def _find_key(services: Services, key_id: str) -> Key:
    key = next((key for key in services.catalog.snapshot.keys.values() if key.id == key_id), None)
    if key is None:
        raise not_found(Key, key_id)
    return key


# -- connectors ----------------------------------------------------------------------------------------------------------


class ConnectorBody(_Body):
    """One SMPP account at a carrier. Times in seconds."""

    host: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_.:\-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    system_id: Annotated[str, Field(min_length=1, max_length=15, pattern=r"^[\x20-\x7e]*$")]
    password: Annotated[
        SecretStr | None, Field(max_length=8, description="Write-only; null in PUT keeps the present one.")
    ] = None
    system_type: Annotated[str, Field(max_length=12, pattern=r"^[\x20-\x7e]*$")] = ""
    bind_type: BindType = BindType.TRANSCEIVER
    binds: Annotated[int, Field(ge=1, le=32)] = 1
    max_binds: Annotated[int, Field(ge=0, le=256)] = 0
    window: Annotated[int, Field(ge=1, le=1000)] = 10
    rate: Annotated[float, Field(gt=0, le=100_000)] = 100.0
    tls: bool = False
    tls_ca: Annotated[str, Field(max_length=20_000)] = ""
    tls_verify: bool = True
    tls_server_name: Annotated[str, Field(max_length=255)] = ""
    enquire_link_seconds: Annotated[float, Field(ge=1, le=3600)] = 30.0
    response_seconds: Annotated[float, Field(ge=1, le=600)] = 30.0
    source_ton: Annotated[int, Field(ge=-1, le=6)] = -1
    source_npi: Annotated[int, Field(ge=-1, le=18)] = -1
    dest_ton: Annotated[int, Field(ge=0, le=6)] = 1
    dest_npi: Annotated[int, Field(ge=0, le=18)] = 1
    service_type: Annotated[str, Field(max_length=5, pattern=r"^[\x20-\x7e]*$")] = ""
    default_alphabet: Literal["gsm7", "latin1"] = "gsm7"
    long_messages: Literal["udh8", "udh16", "sar", "payload"] = "udh8"
    registered_delivery: Annotated[
        Literal[1, 17],
        Field(description="1: final receipts; 17: intermediate ones too. Without receipts no outcome is known."),
    ] = 1
    receipt_id_format: Literal["auto", "as_is", "hex", "dec"] = "auto"
    send_validity: bool = True
    query_sm: Annotated[
        bool, Field(description="Ask the carrier for the state of what has no receipt when its validity is over.")
    ] = False
    tenant: Annotated[str, Field(max_length=64)] = ""
    enabled: bool = True

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ConnectorBody:
        if self.tls_ca and "BEGIN CERTIFICATE" not in self.tls_ca:
            raise ValueError("tls_ca must be a PEM certificate")
        return self


class NewConnector(ConnectorBody):
    """A connector to be created."""

    name: Name
    password: SecretStr = Field(max_length=8)


class TrialBody(_Body):
    """What is to be tried: a stored connector, or settings that are not stored yet."""

    name: Annotated[
        Name | None, Field(description="A stored connector; or whose password is taken where `settings` has none.")
    ] = None
    settings: Annotated[ConnectorBody | None, Field(description="Instead of the stored ones.")] = None

    @model_validator(mode="after")
    def _something(self) -> TrialBody:
        if self.name is None and self.settings is None:
            raise ValueError("name a connector, or give settings")
        return self


def _connector_view(connector: Connector, nodes: Sequence[SeenNode], caller: Caller) -> dict[str, Any]:
    """Who has to do with one tenant only sees whether it works, not whose account it is and what all others send over it."""
    view = asdict(connector) | {"password": None, "state": joined(connector.name, nodes)}
    if caller.admin or caller.everywhere:
        return view
    state = view["state"]
    view["state"] = {name: state[name] for name in _STATE_FOR_TENANTS} if state else None
    return {name: value for name, value in view.items() if name not in _ACCOUNT}


_ACCOUNT = frozenset({"tenant", "host", "port", "system_id", "tls_ca", "tls_server_name"})
_STATE_FOR_TENANTS = ("name", "live", "bound")


def _connector(body: ConnectorBody, name: str, password: str) -> Connector:
    return Connector(name=name, password=password, **body.model_dump(exclude={"name", "password"}))


@router.get("/connectors", tags=["connectors"], operation_id="listConnectors")
async def list_connectors(request: Request, caller: RouteReader) -> dict[str, Any]:
    """All connectors. `state` is what all nodes of this datacenter say of it together (counts of the last minute, and since each node's start); null where none has it.

    To a key without the scope admin `state` says `live` and `bound` only, and the account (`host`, `port`, `system_id`, `tls_ca`, `tls_server_name`, `tenant`) is left out.
    """
    services = services_of(request)
    nodes = await services.watch.nodes_or_self()
    return {"data": [_connector_view(item, nodes, caller) for item in services.catalog.snapshot.connectors.values()]}


@router.post("/connectors", status_code=201, tags=["connectors"], operation_id="createConnector")
async def create_connector(request: Request, body: NewConnector, caller: Admin) -> dict[str, Any]:
    """All nodes bind within 2 s."""
    services = services_of(request)
    connector = _connector(body, body.name, body.password.get_secret_value())
    await services.catalog.put(connector, create=True)
    return _connector_view(connector, (), caller)


@router.post("/connectors/test", tags=["connectors"], operation_id="testConnector")
async def try_connector(request: Request, body: TrialBody, _caller: Admin) -> dict[str, Any]:
    """Opens one bind, sends enquire_link, unbinds, and says in words what happened: name, connection, TLS, bind. Sends no message; at most 10 s.

    Where `max_binds` limits the account, a free session is needed for it.
    """
    services = services_of(request)
    stored = services.catalog.snapshot.connectors.get(body.name) if body.name else None
    if body.settings is None:
        connector = _find_connector(services, body.name or "")
    else:
        given = body.settings.password
        password = given.get_secret_value() if given else stored.password if stored else ""
        connector = _connector(body.settings, body.name or "unnamed", password)
        if stored and not given and _where(connector) != _where(stored):
            raise invalid(
                [
                    FieldError(
                        "/settings/password", "give it: the stored one goes to the stored address and TLS settings only"
                    )
                ]
            )
    note(request, f"{connector.host}:{connector.port}")
    return (await services.try_bind(connector)).document()


def _where(connector: Connector) -> tuple[str | int | bool, ...]:
    """Whom a password would be told."""
    return (
        *(connector.host, connector.port),
        *(connector.tls, connector.tls_ca, connector.tls_verify, connector.tls_server_name),
    )


@router.get("/connectors/{name}", tags=["connectors"], operation_id="getConnector")
async def get_connector(request: Request, name: str, caller: RouteReader) -> dict[str, Any]:
    """One connector, as the list shows it."""
    services = services_of(request)
    return _connector_view(_find_connector(services, name), await services.watch.nodes_or_self(), caller)


@router.put("/connectors/{name}", tags=["connectors"], operation_id="replaceConnector")
async def replace_connector(request: Request, name: str, body: ConnectorBody, caller: Admin) -> dict[str, Any]:
    """Sessions are replaced where they must be; a new rate takes effect without."""
    services = services_of(request)
    old = _find_connector(services, name)
    connector = _connector(body, name, body.password.get_secret_value() if body.password else old.password)
    await services.catalog.put(connector)
    return _connector_view(connector, await services.watch.nodes_or_self(), caller)


@router.post("/connectors/{name}/drain", tags=["connectors"], operation_id="drainConnector")
async def drain_connector(request: Request, name: str, caller: Admin) -> dict[str, Any]:
    """Every node waits for the answers that are on their way, unbinds, and routes anew what is queued. Receipts of what was sent come again once it is enabled."""
    return await _switch(services_of(request), name, caller, enabled=False)


@router.post("/connectors/{name}/enable", tags=["connectors"], operation_id="enableConnector")
async def enable_connector(request: Request, name: str, caller: Admin) -> dict[str, Any]:
    """Every node binds again within 2 s."""
    return await _switch(services_of(request), name, caller, enabled=True)


async def _switch(services: Services, name: str, caller: Caller, *, enabled: bool) -> dict[str, Any]:
    await services.catalog.refresh()
    connector = replace(_find_connector(services, name), enabled=enabled)
    await services.catalog.put(connector)
    return _connector_view(connector, await services.watch.nodes_or_self(), caller)


@router.delete("/connectors/{name}", status_code=204, tags=["connectors"], operation_id="deleteConnector")
async def delete_connector(request: Request, name: str, _caller: Admin) -> None:
    """Only when no route uses it."""
    await services_of(request).catalog.delete(Connector, name)


def _find_connector(services: Services, name: str) -> Connector:
    connector = services.catalog.snapshot.connectors.get(name)
    if connector is None:
        raise not_found(Connector, name)
    return connector


# -- routes --------------------------------------------------------------------------------------------------------------


class RouteBody(_Body):
    """A way to reach destinations."""

    connector: Name
    prefixes: Annotated[list[Annotated[str, Field(max_length=15)]], Field(min_length=1, max_length=1000)] = Field(
        default_factory=lambda: [""], description='Digits after the +; the longest that matches counts; "" matches all.'
    )
    sender_types: Annotated[set[SenderType], Field(min_length=1)] = Field(default_factory=lambda: set(SenderType))
    classes: Annotated[set[MessageClass], Field(min_length=1)] = Field(default_factory=lambda: set(MessageClass))
    price: Annotated[int, Field(ge=0, le=1_000_000, description="Minor units a part.")] = 0
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "EUR"
    priority: Annotated[int, Field(ge=0, le=10_000, description="Lower goes first.")] = 100
    enabled: bool = True

    @field_validator("prefixes")
    @classmethod
    def _digits(cls, prefixes: list[str]) -> list[str]:
        cleaned = [prefix.removeprefix("+") for prefix in prefixes]
        for prefix in cleaned:
            if prefix and not (prefix.isascii() and prefix.isdigit()):
                raise ValueError(f"{prefix!r} is not a prefix: digits after the +, such as 49")
        return cleaned


class NewRoute(RouteBody):
    """A route to be created."""

    name: Name


def _route_view(route: Route) -> dict[str, Any]:
    return asdict(route) | {"sender_types": sorted(route.sender_types), "classes": sorted(route.classes)}


def _route(body: RouteBody, name: str) -> Route:
    return Route(
        name=name,
        connector=body.connector,
        prefixes=tuple(body.prefixes),
        sender_types=frozenset(item.value for item in body.sender_types),
        classes=frozenset(item.value for item in body.classes),
        price=body.price,
        currency=body.currency,
        priority=body.priority,
        enabled=body.enabled,
    )


@router.get("/routes", tags=["routes"], operation_id="listRoutes")
async def list_routes(request: Request, _caller: RouteReader) -> dict[str, Any]:
    """All routes."""
    return {"data": [_route_view(route) for route in services_of(request).catalog.snapshot.routes.values()]}


@router.post("/routes", status_code=201, tags=["routes"], operation_id="createRoute")
async def create_route(request: Request, body: NewRoute, _caller: Admin) -> dict[str, Any]:
    """Its connector must exist."""
    route = _route(body, body.name)
    await services_of(request).catalog.put(route, create=True)
    return _route_view(route)


@router.get("/routes/{name}", tags=["routes"], operation_id="getRoute")
async def get_route(request: Request, name: str, _caller: RouteReader) -> dict[str, Any]:
    """One route."""
    route = services_of(request).catalog.snapshot.routes.get(name)
    if route is None:
        raise not_found(Route, name)
    return _route_view(route)


@router.put("/routes/{name}", tags=["routes"], operation_id="replaceRoute")
async def replace_route(request: Request, name: str, body: RouteBody, _caller: Admin) -> dict[str, Any]:
    """The whole route."""
    services = services_of(request)
    if name not in services.catalog.snapshot.routes:
        raise not_found(Route, name)
    route = _route(body, name)
    await services.catalog.put(route)
    return _route_view(route)


@router.delete("/routes/{name}", status_code=204, tags=["routes"], operation_id="deleteRoute")
async def delete_route(request: Request, name: str, _caller: Admin) -> None:
    """Messages that wait for it are routed anew."""
    await services_of(request).catalog.delete(Route, name)
