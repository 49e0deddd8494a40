"""What dies, hangs or is torn away, under load: every request is accounted for, nothing is left.

Real processes and signals. The table of tests/faults/table.py times the same faults.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Callable

import psutil
import pytest
from asking import Outcome, Question, ask, ask_all, native, picture, run_with
from audit import account
from mixture import PICTURED, is_right, mixed, wrong
from rest import check_rest
from running_service import RunningService, wait_until


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def pause(seconds: float) -> Callable[[psutil.Process], None]:
    """Stop a process in its tracks for so long; whoever kills it meanwhile may."""

    def stop(process: psutil.Process) -> None:
        process.suspend()
        psutil.wait_procs([process], timeout=seconds)
        if process.is_running():
            process.resume()

    return stop


def slow_down(process: psutil.Process) -> None:
    """Let it run a tenth of the time."""
    for _ in range(10):
        process.suspend()
        time.sleep(0.09)
        process.resume()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strike",
    [
        pytest.param(kill, id="killed"),
        pytest.param(pause(20.0), id="stuck"),
        pytest.param(slow_down, id="slow"),
    ],
)
def test_no_request_notices_what_happens_to_the_engine(service, at_rest, strike, request):
    questions, prefix = mixed(30), f"engine-{request.node.callspec.id}"
    before = service.scrape()
    engine = service.inference()

    outcomes = run_with(service.url, questions, prefix, lambda: strike(engine), after=0.15)

    assert wrong(questions, outcomes) == []
    assert account(service, outcomes, before, prefix=prefix) == []
    check_rest(service, at_rest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "loses"),
    [
        pytest.param(kill, True, id="killed"),
        pytest.param(pause(20.0), True, id="stuck"),
        pytest.param(slow_down, False, id="slow"),
    ],
)
def test_what_happens_to_a_worker_harms_its_own_connections_alone(
    service, at_rest, strike, loses, request
):
    questions, prefix = mixed(30), f"worker-{request.node.callspec.id}"
    before = service.scrape()
    worker = service.workers()[0]

    outcomes = run_with(service.url, questions, prefix, lambda: strike(worker), after=0.15)

    # How many is chance: the kernel may have brought all connections to this one worker.
    harmed = wrong(questions, outcomes)
    assert all(loses and outcome.is_broken for outcome in harmed), harmed
    faults = account(service, outcomes, before, prefix=prefix, has_lost_workers=loses)
    assert faults == []
    check_rest(service, at_rest)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strike",
    [
        pytest.param(kill, id="killed"),
        pytest.param(slow_down, id="slow"),
    ],
)
def test_what_happens_to_a_decoder_costs_no_request(service, at_rest, strike, request):
    questions = [native(PICTURED, picture("red", "circle", 800 + number)) for number in range(30)]
    prefix = f"decoder-{request.node.callspec.id}"
    before = service.scrape()
    decoder = service.decoders()[0]

    outcomes = run_with(service.url, questions, prefix, lambda: strike(decoder), after=0.1)

    assert wrong(questions, outcomes) == []
    assert account(service, outcomes, before, prefix=prefix) == []
    check_rest(service, at_rest)


@pytest.mark.slow
def test_a_decoder_that_hangs_is_replaced_in_time_and_costs_no_request(service, at_rest):
    for decoder in service.decoders():
        decoder.suspend()
    before = service.scrape()
    questions = [native(PICTURED, picture("red", "circle", 1000 + number)) for number in range(12)]

    outcomes = asyncio.run(ask_all(service.url, questions, "patient"))

    assert wrong(questions, outcomes) == []
    assert account(service, outcomes, before, prefix="patient") == []
    resume_all(service)  # of a worker that none of the questions reached
    check_rest(service, at_rest)


def resume_all(service: RunningService) -> None:
    for decoder in service.decoders():
        with contextlib.suppress(psutil.NoSuchProcess):
            decoder.resume()


@pytest.mark.slow
def test_a_decoder_that_hangs_is_replaced_when_a_deadline_comes_first(service, at_rest):
    hung = service.decoders()
    for decoder in hung:
        decoder.suspend()
    before = service.scrape()
    questions = [
        native(PICTURED, picture("red", "circle", 900 + number), deadline_ms=700)
        for number in range(12)
    ]

    outcomes = asyncio.run(ask_all(service.url, questions, "hung"))

    # One at a time finds the decoder hung, and the others wait behind it.
    assert {outcome.code() for outcome in outcomes} == {"deadline_exceeded"}
    assert account(service, outcomes, before, prefix="hung") == []
    # A worker that none of the questions reached has not found out; it need not.
    wait_until(lambda: not all(decoder.is_running() for decoder in hung))
    for decoder in hung:
        with contextlib.suppress(psutil.NoSuchProcess):
            decoder.resume()
    check_rest(service, at_rest)


@pytest.mark.slow
def test_a_supervisor_that_sleeps_is_not_missed(service, at_rest):
    """For longer than any of its children may be silent."""
    supervisor = psutil.Process(service.process.pid)
    engine, workers = service.inference(), service.workers()
    questions, prefix = mixed(30), "asleep"
    before = service.scrape()

    outcomes = run_with(service.url, questions, prefix, lambda: pause(8.0)(supervisor), after=0.1)

    assert wrong(questions, outcomes) == []
    assert account(service, outcomes, before, prefix=prefix) == []
    assert [service.inference(), *service.workers()] == [engine, *workers]
    check_rest(service, at_rest)


@pytest.mark.slow
def test_a_machine_that_stands_still_for_a_while_costs_no_request_and_no_process(service, at_rest):
    """For longer than any process may be silent, as a paused container or virtual machine."""
    family = service.family()
    engine, workers = service.inference(), service.workers()
    questions, prefix = mixed(30), "frozen"
    before = service.scrape()

    def freeze() -> None:
        for each in family:
            each.suspend()
        time.sleep(8.0)
        for each in family:  # the supervisor first: it must wait to hear from the others
            each.resume()

    outcomes = run_with(service.url, questions, prefix, freeze, after=0.1)

    assert wrong(questions, outcomes) == []
    assert account(service, outcomes, before, prefix=prefix) == []
    assert [service.inference(), *service.workers()] == [engine, *workers]
    check_rest(service, at_rest)


@pytest.mark.slow
def test_who_leaves_and_asks_again_by_the_same_id_gets_an_answer_of_its_own(service, at_rest):
    async def run() -> list[tuple[Question, Outcome]]:
        seen: list[tuple[Question, Outcome]] = []
        engine = service.inference()
        for number in range(10):
            left = native("Tell me a story", max_new_tokens=300)
            question = mixed(1, 1300 + number)[0]
            engine.suspend()  # what it has to say of the one that left comes after the next one
            await ask(service.url, left, f"again-{number}", leave_after=0.2)
            again = asyncio.ensure_future(ask(service.url, question, f"again-{number}"))
            await asyncio.sleep(0.2)
            engine.resume()
            seen.append((question, await again))
        return seen

    seen = asyncio.run(run())

    assert [outcome for question, outcome in seen if not is_right(question, outcome)] == []
    check_rest(service, at_rest)


@pytest.mark.slow
def test_new_workers_find_an_engine_whose_socket_was_removed(service, at_rest):
    socket = service.runtime_folder() / "engine.sock"

    socket.unlink()
    kill(service.workers()[0])
    wait_until(lambda: service.is_whole(2), explain=service.log)

    questions = mixed(20)
    outcomes = asyncio.run(ask_all(service.url, questions, "unlinked"))
    assert wrong(questions, outcomes) == []
    check_rest(service, at_rest)


@pytest.mark.slow
def test_two_hundred_clients_that_leave_at_any_stage_leave_nothing_behind(service, at_rest):
    dice = random.Random(7)
    questions = mixed(200, 2000)
    before = service.scrape()

    async def run() -> list[Outcome]:
        return await asyncio.gather(
            *(
                ask(service.url, question, f"crowd-{number}", leave_after=leave_after)
                for number, question in enumerate(questions)
                for leave_after in [dice.choice([None, dice.uniform(0, 0.05), dice.uniform(0, 3)])]
            )
        )

    outcomes = asyncio.run(run())

    stayed = [pair for pair in zip(questions, outcomes, strict=True) if not pair[1].has_left]
    assert [outcome for question, outcome in stayed if not is_right(question, outcome)] == []
    assert sum(outcome.has_left for outcome in outcomes) > 50
    known = [each for each in outcomes if each.is_whole or lines_seen(service, each)]
    assert account(service, known, before, prefix="crowd") == []
    check_rest(service, at_rest)


def lines_seen(service: RunningService, outcome: Outcome) -> bool:
    """Who left before its request was read has never asked."""
    return f'"{outcome.request_id}"' in service.log()


@pytest.mark.slow
def test_a_killed_supervisor_takes_everything_along(start):
    service = start("--workers", "1")
    family = service.family()

    outcomes = run_with(service.url, mixed(10), "orphan", service.process.kill, after=0.1)

    assert all(outcome.is_whole or outcome.is_broken for outcome in outcomes)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
