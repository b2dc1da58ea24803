"""No collection is forgotten: each that the store names is either kept, or left out with a reason."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

from controlplane import store
from controlplane.store.backup.contents import KEPT, LEFT_OUT, kept

FOLDER = Path(store.__file__).parent
CATALOG = {"tenants", "keys", "connectors", "routes", "endpoints"}
INDIRECT = {"collection", "name", "_collection(kind)", "_collection(type(record))", "_KINDS[kind]"}
"""Subscripts that name no collection themselves: they take one that stands elsewhere in this list, or in the catalog's table."""


def named() -> set[str]:
    """Every `database[…]` of the store, but for the backup's own, which takes them all."""
    found = set()
    for path in sorted(FOLDER.glob("*.py")):
        module = importlib.import_module(f"controlplane.store.{path.stem}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Subscript) or not ast.unparse(node.value).endswith("database"):
                continue
            if ast.unparse(node.slice) in INDIRECT:
                continue
            if isinstance(node.slice, ast.Constant):
                found.add(node.slice.value)
            else:
                found.add(getattr(module, ast.unparse(node.slice)))
    return found


def test_each_collection_is_in_one_of_the_lists() -> None:
    assert len(KEPT) == len(set(KEPT))
    assert not set(KEPT) & LEFT_OUT.keys()
    assert named() | CATALOG == {*KEPT, *LEFT_OUT}


def test_the_catalog_is_as_the_store_says() -> None:
    from controlplane.domain.catalog import CallbackEndpoint, Connector, Key, Route, Tenant
    from controlplane.store.catalog import _collection

    assert {_collection(kind) for kind in (Tenant, Key, Connector, Route, CallbackEndpoint)} == CATALOG


def test_what_nobody_thought_of_is_kept() -> None:
    assert kept("a collection of next year")
    assert not kept("system.views")
    assert not kept("search_data")
    assert all(reason[-1] != "." and len(reason) > 20 for reason in LEFT_OUT.values())
