"""One question to the tiny model, what the oracle answers, and a clock."""

import pytest


class Clock:
    """Moves only when told to."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(kit, models):
    return kit.make_engine(models["dense"])


@pytest.fixture(scope="session")
def asked(kit):
    return kit.case(kit.text(20, 1))


@pytest.fixture(scope="session")
def tokens(kit, sources, asked):
    """What the oracle says to it."""
    return kit.oracle(sources["dense"], asked, 20)
