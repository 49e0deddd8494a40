"""The API document, read by a stranger: what it permits is answered, and every answer is in it."""

from collections.abc import Iterator
from typing import Any

import anyio.from_thread
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.routes.docs import OPERATIONS

# Every example is an exchange; the profile's number is meant for examples that are not.
RELAXED = settings(
    max_examples=settings().max_examples // 5,
    deadline=None,
    suppress_health_check=[
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
        HealthCheck.too_slow,
    ],
)
JSON_PATHS = [
    operation.path
    for operation in OPERATIONS
    if any(content.media_type == "application/json" for content in operation.body)
]


def no_fault_of_ours(_: object, response: Any, __: object) -> None:
    """At capacity and too late are answers; a fault is not."""
    assert response.status_code != 500


CHECKS = [
    no_fault_of_ours,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def base_url(new_engine, serve) -> Iterator[str]:
    """The application in a thread of its own, as the tests here call without an event loop."""
    with anyio.from_thread.start_blocking_portal("asyncio") as portal:
        serving = portal.wrap_async_context_manager(serve(new_engine()))
        with serving as (_, port):
            yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def api(base_url: str) -> Any:
    return schemathesis.openapi.from_url(f"{base_url}/schema/openapi.json")


@pytest.mark.parametrize(
    ("method", "path"), [(operation.method, operation.path) for operation in OPERATIONS]
)
def test_what_the_document_permits_is_answered_as_it_says(api, base_url, method, path):
    ask_at_random(base_url, api[path][method].as_strategy())


@pytest.mark.parametrize("path", JSON_PATHS)
def test_what_the_document_forbids_is_refused_as_it_says(api, base_url, path):
    operation = api[path]["POST"]
    ask_at_random(
        base_url, operation.as_strategy(GenerationMode.NEGATIVE, media_type="application/json")
    )


def ask_at_random(base_url: str, cases: SearchStrategy[Any]) -> None:
    @RELAXED
    @given(case=cases)
    def ask(case: Any) -> None:
        case.call_and_validate(base_url=base_url, checks=CHECKS)

    ask()
