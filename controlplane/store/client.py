"""The connection to MongoDB, and the one border where pymongo's errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError, InvalidURI, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.settings import Settings

__all__ = ["Database", "Document", "border", "connect"]

Document = dict[str, Any]
Database = AsyncDatabase[Document]

_DURABLE = WriteConcern(w="majority", j=True)


def connect(settings: Settings) -> Database:
    """The product's database: majority reads, majority + journal writes. Connects lazily; close with `database.client.close()`."""
    try:
        client: AsyncMongoClient[Document] = AsyncMongoClient(
            settings.mongodb_uri.get_secret_value(),
            appname=f"heliograph-{settings.node}",
            serverSelectionTimeoutMS=5_000,
            connectTimeoutMS=5_000,
            socketTimeoutMS=30_000,
            maxPoolSize=32,
            # Every write of ours is idempotent by `_id` or conditional, and retried where it is known to be safe.
            retryWrites=False,
        )
    except (ConfigurationError, InvalidURI, ValueError) as error:
        raise ConfigError(
            f"HELIOGRAPH_MONGODB_URI is not usable: {error}. Expected mongodb://host:port/?replicaSet=name"
        ) from error
    return client.get_database(settings.database, write_concern=_DURABLE, read_concern=ReadConcern("majority"))


@contextmanager
def border() -> Iterator[None]:
    """Everything that pymongo raises inside leaves as StoreUnavailableError (which says what pymongo said)."""
    try:
        yield
    except PyMongoError as error:
        raise StoreUnavailableError(f"MongoDB: {error}") from error
