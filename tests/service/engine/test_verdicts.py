"""Which requests a refusal speaks for, and for how long."""

import math

import pytest

from service.engine import verdicts
from service.engine.verdicts import Demand, Verdicts
from service.errors import DeadlineUnreachable, Overloaded

PICTURE = Demand(num_media=1, seconds_left=math.inf)


@pytest.fixture
def latest():
    return Verdicts()


def test_the_like_of_what_was_refused_is_refused(latest):
    latest.note("alice", Overloaded(3.0), PICTURE)

    with pytest.raises(Overloaded) as caught:
        latest.check("alice", PICTURE)
    assert caught.value.retry_after_seconds == 3.0
    with pytest.raises(Overloaded):
        latest.check("alice", PICTURE._replace(num_media=2))


def test_other_callers_and_lighter_requests_are_for_the_engine_to_judge(latest):
    latest.note("alice", Overloaded(3.0), PICTURE._replace(num_media=2))

    latest.check("bob", PICTURE._replace(num_media=2))
    latest.check("alice", PICTURE)
    latest.check("alice", PICTURE._replace(num_media=0))


def test_text_alone_is_always_asked_about(latest):
    latest.note("alice", Overloaded(3.0), PICTURE._replace(num_media=0))

    latest.check("alice", PICTURE._replace(num_media=0))


def test_more_time_is_another_question(latest):
    latest.note("alice", DeadlineUnreachable(3.0), PICTURE._replace(seconds_left=2.0))

    latest.check("alice", PICTURE._replace(seconds_left=2.5))
    with pytest.raises(DeadlineUnreachable):
        latest.check("alice", PICTURE._replace(seconds_left=1.9))


def test_a_verdict_does_not_stand_for_long(latest, monkeypatch):
    monkeypatch.setattr(verdicts, "_STANDS_SECONDS", -1.0)
    latest.note("alice", Overloaded(3.0), PICTURE)

    latest.check("alice", PICTURE)
