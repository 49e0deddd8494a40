"""What every test gets: the service's one event loop, and no network."""

import os

import pytest

# Read when the library is imported, so before any test module; children inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
