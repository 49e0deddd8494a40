"""Processes that get no more memory, under load: every request is accounted for, nothing is left.

The kernel refuses what goes over a limit that is put on a living process, as a full machine would.
"""

import asyncio
import io
import resource
import time
from collections.abc import Sequence

import psutil
import pytest
from asking import Question, ask_all, native
from audit import account
from mixture import PICTURED, mixed, wrong
from PIL import Image, ImageDraw
from rest import check_rest
from running_service import wait_until

MIB = 1024 * 1024


def limit(process: psutil.Process, num_bytes: int) -> None:
    """Refuse a process what goes over so much memory, that which it has included."""
    process.rlimit(psutil.RLIMIT_AS, (num_bytes, resource.RLIM_INFINITY))


def free(processes: Sequence[psutil.Process]) -> None:
    """Lift the limit of those that live."""
    for each in processes:
        if is_alive(each):
            limit(each, resource.RLIM_INFINITY)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def large_picture() -> bytes:
    """Draw a red circle of 8 MiB, of which nothing is compressed."""
    image = Image.new("RGB", (1700, 1700), "white")
    ImageDraw.Draw(image).ellipse((340, 340, 1360, 1360), fill="#ff0000")
    encoded = io.BytesIO()
    image.save(encoded, "BMP")
    return encoded.getvalue()


def greedy_picture() -> Question:
    """A picture of a few kilobytes that takes more than 96 MiB to decode."""
    encoded = io.BytesIO()
    Image.new("1", (5900, 5900)).save(encoded, "PNG")
    return native(PICTURED, encoded.getvalue())


@pytest.mark.slow
def test_workers_without_memory_refuse_large_bodies_for_now_and_answer_others(service, at_rest):
    picture = large_picture()
    questions = [native(PICTURED, picture) for _ in range(24)] + mixed(10, 1100)
    before = service.scrape()
    workers = service.workers()
    for worker in workers:
        limit(worker, worker.memory_info().vms + 24 * MIB)

    outcomes = asyncio.run(ask_all(service.url, questions, "crammed"))

    loses = not all(is_alive(worker) for worker in workers)
    free(workers)
    codes = {outcome.code() for outcome in wrong(questions, outcomes)}
    assert "overloaded" in codes
    # Where no thread or process can be started, that is told as a fault.
    assert codes <= {"overloaded", "internal_error"} | ({""} if loses else set()), codes
    faults = account(service, outcomes, before, prefix="crammed", has_lost_workers=loses)
    assert faults == []
    check_rest(service, at_rest)


@pytest.mark.slow
def test_a_picture_that_takes_too_much_memory_is_refused_alone(service, at_rest):
    greedy = [greedy_picture() for _ in range(6)]
    others = mixed(20, 1200)
    decoders = service.decoders()
    before = service.scrape()

    outcomes = asyncio.run(ask_all(service.url, greedy + others, "greedy"))

    refused, answered = outcomes[: len(greedy)], outcomes[len(greedy) :]
    assert {(outcome.status, outcome.code()) for outcome in refused} == {
        (413, "media_memory_exceeded")
    }
    assert wrong(others, answered) == []
    assert account(service, outcomes, before, prefix="greedy") == []
    assert service.decoders() == decoders
    check_rest(service, at_rest)


@pytest.mark.slow
def test_an_engine_without_memory_for_a_step_answers_or_says_so(service, at_rest):
    """It may die of that, and be replaced; what it cannot do is refused by name."""
    questions = mixed(30, 400)
    before = service.scrape()
    engine = service.inference()
    limit(engine, 1)

    outcomes = asyncio.run(ask_all(service.url, questions, "starved"))

    codes = {outcome.code() for outcome in wrong(questions, outcomes)}
    assert codes <= {"gpu_out_of_memory", "overloaded"}, codes
    assert codes or not is_alive(engine)
    free([engine])
    assert account(service, outcomes, before, prefix="starved") == []
    check_rest(service, at_rest)


@pytest.mark.slow
def test_a_worker_that_comes_while_the_engine_has_no_memory_is_let_in_later(service, at_rest):
    engine = service.inference()
    limit(engine, 1)
    service.workers()[0].kill()

    time.sleep(3.0)  # another one starts, and knocks
    free([engine])

    wait_until(lambda: service.is_whole(2), explain=service.log)
    check_rest(service, at_rest)
