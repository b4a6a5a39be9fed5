"""Requests made from the server's own OpenAPI document, valid and not: no failure of the server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import server_models
from hypothesis import HealthCheck, Phase, given, seed, settings
from page_server import running_server

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

openapi = pytest.importorskip("schemathesis.specs.openapi.checks")
GenerationMode = schemathesis.GenerationMode

CHECKS = [
    pytest.importorskip("schemathesis.checks").not_a_server_error,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
    openapi.status_code_conformance,
]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    target, _ = server_models.write_model(tmp_path_factory.mktemp("schema"))
    options = {"max_model_len": 64, "check_invariants": True}
    with running_server(target, options=options, log_requests=False) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def run_cases(schema: Any, number: int, num_cases: int) -> None:
    """Calls every operation with what its schema allows, and with what it does not."""
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 8
    for operation in operations:
        _call(operation, GenerationMode.POSITIVE, number, num_cases)
        if operation.method == "post":  # the others have nothing that could be wrong
            _call(operation, GenerationMode.NEGATIVE, number, num_cases)


def _call(operation: Any, mode: Any, number: int, num_cases: int) -> None:
    @seed(number)
    @settings(
        max_examples=num_cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        case.validate_response(case.call(timeout=60), checks=CHECKS)

    call()


def test_no_request_of_the_document_makes_the_server_fail(schema: Any) -> None:
    run_cases(schema, number=1, num_cases=6)


@pytest.mark.long
def test_no_request_makes_the_server_fail_for_minutes(schema: Any) -> None:
    end = time.monotonic() + 60 * float(os.environ.get("FORERUN_SCHEMA_MINUTES", "10"))
    number = 2
    while time.monotonic() < end:
        run_cases(schema, number, num_cases=50)
        number += 1
