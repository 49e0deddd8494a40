"""What every test gets, the service's one event loop and no network, and what some ask for."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# `pytest --hypothesis-profile=thorough` searches for an hour rather than for seconds.
settings.register_profile("thorough", max_examples=5000, deadline=None)

# Read when the library is imported, so before any test module; children inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Leave what is in a cycle where it is, so that a test can see that nothing is."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
