"""What operators configure, in MongoDB, and as one immutable snapshot in every node.

A write ends with a step of the catalog's version; each node looks at that number twice a second and reads everything anew when it moved. The whole
catalog is small (thousands of documents), changes rarely, and is read on every message: so it is kept whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import structlog
from pymongo.errors import DuplicateKeyError

from controlplane.domain.catalog import BindType, CallbackEndpoint, Connector, Key, Route, Snapshot, Tenant
from controlplane.domain.quiet import quiet_document, quiet_record
from controlplane.errors import Problem, StoreUnavailableError
from controlplane.store.client import Database, Document, border
from controlplane.store.seal import Seal
from controlplane.tasks import going_on

__all__ = ["Catalog", "CatalogError", "not_found"]

_log = structlog.get_logger()
_POLL_SECONDS = 0.5

Record = Tenant | Key | Connector | Route | CallbackEndpoint
R = TypeVar("R", Tenant, Key, Connector, Route, CallbackEndpoint)

_SETS = {"scopes", "sender_types", "classes", "events", "opt_out_classes"}
_TUPLES = {"prefixes", "callback_secrets", "opt_out_keywords", "opt_in_keywords"}


class CatalogError(Problem):
    """A change that the catalog refuses."""


class Catalog:
    """The catalog as this node sees it, and the way to change it."""

    def __init__(self, database: Database, seal: Seal) -> None:
        self._database = database
        self._seal = seal
        self._listeners: list[Callable[[Snapshot], None]] = []
        self.snapshot = Snapshot()

    def subscribe(self, listener: Callable[[Snapshot], None]) -> None:
        """Hear of each new snapshot (and of the present one, now)."""
        self._listeners.append(listener)
        listener(self.snapshot)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def refresh(self) -> bool:
        """Read anew if the version moved; whether it did. Raises StoreUnavailableError."""
        with border():
            head = await self._database["meta"].find_one({"_id": "catalog"})
        version = head["version"] if head else 0
        if version == self.snapshot.version:
            return False
        tenants = await self._all("tenants", Tenant)
        keys = await self._all("keys", Key)
        connectors = await self._all("connectors", Connector)
        routes = await self._all("routes", Route)
        endpoints = await self._all("endpoints", CallbackEndpoint)
        self.snapshot = Snapshot(
            version=version,
            tenants={tenant.id: tenant for tenant in tenants},
            keys={key.digest: key for key in keys},
            connectors={connector.name: connector for connector in connectors},
            routes={route.name: route for route in routes},
            endpoints={endpoint.id: endpoint for endpoint in endpoints},
        )
        for listener in self._listeners:
            listener(self.snapshot)
        return True

    async def run(self) -> None:
        """Follow the version until cancelled; without MongoDB the last snapshot stays in force."""
        while going_on():
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await self.refresh()
            except StoreUnavailableError as error:
                _log.warning("catalog_not_refreshed", reason=str(error)[:200])

    async def _all(self, collection: str, kind: type[R]) -> list[R]:
        with border():
            documents = await self._database[collection].find({}).to_list()
        return [self._record(document, kind) for document in documents]

    def _record(self, document: Document, kind: type[R]) -> R:
        names = {field.name for field in fields(kind)}
        values: dict[str, Any] = {key: value for key, value in document.items() if key in names}
        for name in _SETS & values.keys():
            values[name] = frozenset(values[name])
        for name in _TUPLES & values.keys():
            values[name] = tuple(values[name])
        if kind is Connector:
            values["password"] = self._seal.open(values["password"])
            values["bind_type"] = BindType(values["bind_type"])
        if kind is Tenant:
            values["callback_secrets"] = tuple(map(self._seal.open, values.get("callback_secrets", ())))
            values["quiet_hours"] = quiet_record(values.get("quiet_hours", {}))
        return kind(**values)

    def _document(self, record: Record) -> Document:
        document: Document = {}
        for field in fields(record):
            value = getattr(record, field.name)
            document[field.name] = sorted(value) if isinstance(value, frozenset) else value
        if isinstance(record, Connector):
            document["password"] = self._seal.seal(record.password)
            document["bind_type"] = record.bind_type.value
        if isinstance(record, Tenant):
            document["callback_secrets"] = [self._seal.seal(secret) for secret in record.callback_secrets]
            document["quiet_hours"] = quiet_document(record.quiet_hours)
        document["_id"] = _identity(record)
        return document

    # -- writing -------------------------------------------------------------------------------------------------------

    async def put(self, record: Record, *, create: bool = False) -> None:
        """Store a record. `create`: refuse to replace one. Raises CatalogError, StoreUnavailableError."""
        await self.refresh()
        self._check_references(record)
        document = self._document(record)
        collection = self._database[_collection(type(record))]
        try:
            with border():
                if create:
                    await collection.insert_one(document)
                else:
                    await collection.replace_one({"_id": document["_id"]}, document, upsert=True)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, DuplicateKeyError):
                raise _conflict(record) from None
            raise
        await self._changed()

    async def delete(self, kind: type[Record], identity: str) -> None:
        """Remove a record. Raises CatalogError when it is not there, or is in use."""
        await self.refresh()
        self._check_unused(kind, identity)
        with border():
            result = await self._database[_collection(kind)].delete_one({"_id": identity})
        if not result.deleted_count:
            raise not_found(kind, identity)
        await self._changed()

    async def rotate_callback_secret(self, tenant: str, secret: str, *, keep: int = 2) -> None:
        """A new secret in front; the one before signs along until the next rotation."""
        await self.refresh()
        record = self.snapshot.tenants.get(tenant)
        if record is None:
            raise not_found(Tenant, tenant)
        await self.put(replace(record, callback_secrets=(secret, *record.callback_secrets)[:keep]))

    async def disable_endpoint(self, endpoint_id: str, reason: str) -> None:
        """Stop sending callbacks to an endpoint; the reason is shown."""
        await self.refresh()
        record = self.snapshot.endpoints.get(endpoint_id)
        if record is not None and record.enabled:
            await self.put(replace(record, enabled=False, disabled_reason=reason))

    async def _changed(self) -> None:
        with border():
            await self._database["meta"].update_one({"_id": "catalog"}, {"$inc": {"version": 1}}, upsert=True)
        await self.refresh()

    def _check_references(self, record: Record) -> None:
        snapshot = self.snapshot
        if isinstance(record, Route) and record.connector not in snapshot.connectors:
            raise CatalogError(
                "unknown-connector",
                "No such connector",
                422,
                f"Route {record.name!r} names the connector {record.connector!r}, which does not exist.",
                "Create the connector first, or name one that GET /v1/connectors lists.",
            )
        if isinstance(record, Key | CallbackEndpoint) and record.tenant not in snapshot.tenants:
            raise _unknown_tenant(record.tenant)
        if isinstance(record, Connector) and record.tenant and record.tenant not in snapshot.tenants:
            raise _unknown_tenant(record.tenant)

    def _check_unused(self, kind: type[Record], identity: str) -> None:
        snapshot = self.snapshot
        users: list[str] = []
        if kind is Connector:
            users = [f"route {route.name}" for route in snapshot.routes.values() if route.connector == identity]
        elif kind is Tenant:
            users = [f"key {key.id}" for key in snapshot.keys.values() if key.tenant == identity]
        if users:
            raise CatalogError(
                "in-use",
                "Still in use",
                409,
                f"{identity!r} is used by {', '.join(sorted(users)[:5])}.",
                "Delete those first, or disable it instead.",
            )


def _collection(kind: type[Record]) -> str:
    return {Tenant: "tenants", Key: "keys", Connector: "connectors", Route: "routes", CallbackEndpoint: "endpoints"}[
        kind
    ]


def _identity(record: Record) -> str:
    return record.name if isinstance(record, Connector | Route) else record.id


def _noun(kind: type[Record]) -> str:
    return {Tenant: "tenant", Key: "key", Connector: "connector", Route: "route", CallbackEndpoint: "callback"}[kind]


def not_found(kind: type[Record], identity: str) -> CatalogError:
    """404 for a record that is not there."""
    noun = _noun(kind)
    return CatalogError(
        "not-found",
        f"No such {noun}",
        404,
        f"There is no {noun} {identity!r}.",
        f"GET /v1/{noun}s lists what there is.",
    )


def _conflict(record: Record) -> CatalogError:
    noun = _noun(type(record))
    return CatalogError(
        "already-exists",
        f"The {noun} exists already",
        409,
        f"There is a {noun} {_identity(record)!r} already.",
        "Choose another name, or replace it with PUT.",
    )


def _unknown_tenant(tenant: str) -> CatalogError:
    return CatalogError(
        "unknown-tenant",
        "No such tenant",
        422,
        f"The tenant {tenant!r} does not exist.",
        "Create the tenant first, or name one that GET /v1/tenants lists.",
    )
