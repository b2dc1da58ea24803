"""The API against its own OpenAPI document, with inputs that nobody would think of: no 500, no undocumented answer, no answer off its schema."""

from __future__ import annotations

import asyncio

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


class TestConformance:
    """What the document says is what the node does."""

    async def test_every_operation(self, node, carriers):
        await node.connect(await carriers())
        await asyncio.to_thread(self.run_all, node.base_url, node.key)

    @staticmethod
    def run_all(base_url: str, key: str) -> None:
        schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
        tried = 0
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=25, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def check(case):
                headers = {"authorization": f"Bearer {key}"} if case.path.startswith("/v1/") else {}
                response = case.call(base_url=base_url, headers=headers, timeout=10)
                if response.status_code == 503 and case.path == "/readyz":
                    return
                case.validate_response(response, checks=CHECKS)

            hypothesis_given(operation, check)
            tried += 1
        assert tried >= 30


def hypothesis_given(operation, check) -> None:
    from hypothesis import given

    given(case=operation.as_strategy())(check)()
