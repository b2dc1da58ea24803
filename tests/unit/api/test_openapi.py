"""The committed OpenAPI document is the code's, and is valid OpenAPI 3.1."""

from __future__ import annotations

import json
from pathlib import Path

from openapi_spec_validator import OpenAPIV31SpecValidator

from controlplane.api.app import bare_app
from controlplane.api.openapi import document
from controlplane.errors import SLUGS

DOCS = Path(__file__).parents[3] / "docs"


def test_the_committed_document_is_current():
    committed = json.loads((DOCS / "openapi.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(document(bare_app()))), "run: make openapi"


def test_it_is_valid_openapi():
    OpenAPIV31SpecValidator(document(bare_app())).validate()


def test_every_operation_is_named_and_secured():
    operations = [
        (path, operation) for path, item in document(bare_app())["paths"].items() for operation in item.values()
    ]
    names = [operation["operationId"] for _, operation in operations]
    assert len(names) == len(set(names)) >= 30
    for path, operation in operations:
        secured = path.startswith(("/v1/", "/ledger/")) and path != "/ledger/verifier.py"
        assert secured == bool(operation.get("security")), path


def test_every_problem_is_documented():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [slug for slug in SLUGS if f"`{slug}`" not in text] == []
