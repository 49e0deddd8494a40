"""What a client sees of each fault, and how long the service takes to be whole again.

    python tests/faults/table.py [--rounds 3]

Each fault strikes while thirty clients ask three hundred questions, every round anew; the table has
the medians. It is the README's, in Markdown.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
from asking import Outcome, native, picture, run_with
from running_service import NO_PAUSES, RunningService, wait_until

NUM_WORKERS = 2
NUM_CLIENTS = 30
NUM_REQUESTS = 300
STRIKE_SECONDS = 0.3  # after the first question; all of them take a few times as long
HEARTBEAT_SECONDS = 5
_SETTINGS = (
    "--workers", str(NUM_WORKERS), "--image-processes", "1", "--restart-budget", "1000",
    "--heartbeat-timeout-seconds", str(HEARTBEAT_SECONDS), *NO_PAUSES,
)  # fmt: skip


class Fault(NamedTuple):
    """Something that happens to one process."""

    name: str
    victim: Callable[[RunningService], psutil.Process]
    strike: Callable[[psutil.Process], None]


class Round(NamedTuple):
    """One strike: what clients saw, and the seconds until the service was whole."""

    seen: Counter[str]
    slowest_seconds: float
    recovery_seconds: float


def kill(process: psutil.Process) -> None:
    process.kill()


def stop(process: psutil.Process) -> None:
    process.suspend()


def doze(process: psutil.Process) -> None:
    process.suspend()
    time.sleep(1.0)
    process.resume()


FAULTS = (
    Fault("nothing", RunningService.inference, lambda process: None),
    Fault("the engine is killed", RunningService.inference, kill),
    Fault("the engine hangs", RunningService.inference, stop),
    Fault("the engine stands still for 1 s", RunningService.inference, doze),
    Fault("a web worker is killed", lambda service: service.workers()[0], kill),
    Fault("a web worker hangs", lambda service: service.workers()[0], stop),
    Fault("a decoder process is killed", lambda service: service.decoders()[0], kill),
    Fault(
        "the supervisor stands still for 1 s",
        lambda service: psutil.Process(service.process.pid),
        doze,
    ),
)


def strike(service: RunningService, fault: Fault, prefix: str) -> Round:
    """Strike while requests are under way."""
    questions = [
        native("Count from 1 to 30", picture(number=number), stream=number % 2 == 0)
        for number in range(NUM_REQUESTS)
    ]
    victim = fault.victim(service)
    recovery: list[float] = []

    def disturb() -> None:
        began = time.monotonic()
        fault.strike(victim)
        if fault.strike in (kill, stop) and "decoder" not in fault.name:
            wait_until(lambda: not victim.is_running(), explain=service.log)
            wait_until(lambda: service.is_whole(NUM_WORKERS), explain=service.log)
        recovery.append(time.monotonic() - began)

    outcomes = run_with(
        service.url, questions, prefix, disturb, after=STRIKE_SECONDS, concurrency=NUM_CLIENTS
    )
    wait_until(lambda: service.is_whole(NUM_WORKERS), explain=service.log)
    seen = Counter(_seen(outcome) for outcome in outcomes)
    return Round(seen, max(each.seconds for each in outcomes), recovery[0])


def _seen(outcome: Outcome) -> str:
    if outcome.is_broken:
        return "broken connection"
    return outcome.code() or ("right answer" if outcome.status == 200 else str(outcome.status))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(
        f"| fault, with {NUM_CLIENTS} clients | what clients see | "
        "slowest answer, s | whole again after, s |\n| --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as folder:
        service = RunningService(Path(folder), *_SETTINGS)
        try:
            service.wait_until_ready()
            for fault in FAULTS:
                rounds = [
                    strike(service, fault, f"{fault.name.replace(' ', '_')}_{number}")
                    for number in range(arguments.rounds)
                ]
                _tell(fault, rounds)
        finally:
            service.end()


def _tell(fault: Fault, rounds: list[Round]) -> None:
    seen = sum((each.seen for each in rounds), Counter[str]())
    told = ", ".join(f"{count / len(rounds):.3g} × {what}" for what, count in seen.most_common())
    slowest = statistics.median(each.slowest_seconds for each in rounds)
    recovery = statistics.median(each.recovery_seconds for each in rounds)
    print(f"| {fault.name} | {told} | {slowest:.1f} | {recovery:.1f} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
