"""Many requests, every picture another one, with clients that leave and requests that fail.

Some streams are resumable: their clients leave, come back, and must get every event once.

    python tests/faults/soak.py [--seconds 600] [--workers 2]

Afterwards memory, descriptors, blocks and processes must be what they were when it was warm. What
grows is found by a line through the second half of what each process held.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from asking import Outcome, Question, ask, come_back, native, openai, picture
from audit import leftovers
from mixture import COUNTED
from running_service import Holdings, RunningService

_MIB = 1024 * 1024
_LOOK_SECONDS = 1.0
# Pools that are soon full: a page counts as memory from its first use on.
SMALL_POOLS = ("--kv-cache-bytes", str(64 * _MIB), "--embedding-cache-bytes", str(8 * _MIB))
# Told streams are kept for so long; thousands of them are asked for here.
SHORT_STREAMS = ("--resume-seconds", "2")
_PICTURED = "What is in this image?"
_RESUMABLE = (("X-Resumable", "true"),)
_MOST_RETURNS = 4


class Sample(NamedTuple):
    """What every process held at one moment; seconds: since the beginning."""

    seconds: float
    holdings: list[Holdings]


class Growth(NamedTuple):
    """How one process changed over the second half; rates are of a straight line.

    first_mib, last_mib: medians of that half's first and last quarter.
    """

    title: str
    first_mib: float
    last_mib: float
    mib_per_minute: float
    fds_per_minute: float


class Course(NamedTuple):
    """How a soak went.

    codes: how many clients left, or saw which error or status; 0 is broken. `resumed` came back to
    their streams and got every event once; `torn` did not.
    """

    codes: Counter[str]
    samples: list[Sample]


def questions(seed: int) -> Iterator[Question]:
    """Endless questions, right and wrong ones of every kind; no picture comes twice."""
    dice = random.Random(seed)
    for number in itertools.count():
        shape, color = dice.choice(["circle", "square"]), dice.choice(["red", "blue", "green"])
        shown = picture(color, shape, number + 100_000 * seed)
        kinds = [
            native(_PICTURED, shown),
            native(_PICTURED, shown, stream=True),
            native("Count from 1 to 30", stream=True),
            openai(_PICTURED, shown, stream=True, n=2),
            openai(_PICTURED, shown, shown, max_tokens=20),
            native(_PICTURED, shown[: len(shown) // 2]),
            native(_PICTURED, b"no picture at all"),
            native("Hello!", temperature=9),
            native(_PICTURED, shown, deadline_ms=1 + number % 50),
            native(_PICTURED, shown, stream=True)._replace(headers=_RESUMABLE),
            native("Count from 1 to 30", stream=True)._replace(headers=_RESUMABLE),
        ]
        yield dice.choices(kinds, [6, 6, 1, 2, 2, 1, 1, 1, 1, 1, 1])[0]


async def ask_and_return(
    url: str, question: Question, request_id: str, dice: random.Random
) -> Outcome:
    """Ask for a resumable stream, leave at some moment and come back, until all of it is told."""
    outcome = await ask(url, question, request_id, dice.uniform(0, 0.3))
    for number in range(_MOST_RETURNS):
        if outcome.is_whole or not outcome.stream_id:
            break
        is_last = number == _MOST_RETURNS - 1
        await come_back(url, outcome, None if is_last else dice.uniform(0, 0.2))
    return outcome


def code_of_return(question: Question, outcome: Outcome) -> str:
    """Tell how a resumable stream went; one whose id never came was nobody's to come back to."""
    if not outcome.stream_id or outcome.code():
        return "left" if outcome.has_left else outcome.code() or str(outcome.status)
    events, numbers = outcome.events(), outcome.numbers()
    is_told = outcome.is_whole and bool(events) and events[-1]["done"]
    is_right = "Count" not in question.body["text"] or outcome.texts() == [COUNTED]
    once = numbers == list(range(1, len(events) + 1))
    return "resumed" if is_told and is_right and once else "torn"


async def soak(service: RunningService, seconds: float, *, concurrency: int, seed: int) -> Course:
    """Ask for so long, every fourth client leaving at some moment, and look every second."""
    began = time.monotonic()
    codes: Counter[str] = Counter()
    samples: list[Sample] = []
    asked = enumerate(questions(seed))
    dice = random.Random(seed)

    async def client() -> None:
        while time.monotonic() < began + seconds:
            number, question = next(asked)
            name = f"soak{seed}-{number}"
            if question.headers == _RESUMABLE:
                outcome = await ask_and_return(service.url, question, name, dice)
                codes[code_of_return(question, outcome)] += 1
                continue
            leave_after = dice.uniform(0, 0.3) if dice.random() < 0.25 else None
            outcome = await ask(service.url, question, name, leave_after)
            codes["left" if outcome.has_left else outcome.code() or str(outcome.status)] += 1

    async def look() -> None:
        while time.monotonic() < began + seconds:
            held = await asyncio.to_thread(service.holdings)
            samples.append(Sample(time.monotonic() - began, held))
            await asyncio.sleep(_LOOK_SECONDS)

    await asyncio.gather(look(), *(client() for _ in range(concurrency)))
    return Course(codes, samples)


def growth(samples: list[Sample]) -> list[Growth]:
    """Fit a line to the second half, for every title; decoders come and go and count as one."""
    half = samples[len(samples) // 2 :]
    minutes = [each.seconds / 60 for each in half]
    titles = sorted({held.title for each in half for held in each.holdings})
    found: list[Growth] = []
    for title in titles:
        sizes = [_sum(each, title, "num_bytes") / _MIB for each in half]
        files = [_sum(each, title, "num_files") for each in half]
        quarter = max(1, len(half) // 4)
        found.append(
            Growth(
                title,
                statistics.median(sizes[:quarter]),
                statistics.median(sizes[-quarter:]),
                statistics.linear_regression(minutes, sizes).slope,
                statistics.linear_regression(minutes, files).slope,
            )
        )
    return found


def _sum(sample: Sample, title: str, field: str) -> float:
    return float(sum(getattr(each, field) for each in sample.holdings if each.title == title))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", default="2")
    parser.add_argument("--concurrency", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = RunningService(
            Path(folder), "--workers", arguments.workers, *SMALL_POOLS, *SHORT_STREAMS
        )
        try:
            service.wait_until_ready()
            course = asyncio.run(
                soak(service, arguments.seconds, concurrency=arguments.concurrency, seed=1)
            )
            leftovers(service)
            num_requests = course.codes.total()
            print(f"{num_requests} requests in {arguments.seconds:g} s: {dict(course.codes)}")
            for each in growth(course.samples):
                print(
                    f"{each.title[:20]:20} {each.first_mib:8.1f} MiB, then {each.last_mib:8.1f}; "
                    f"{each.mib_per_minute:+.2f} MiB and {each.fds_per_minute:+.2f} fds a minute"
                )
            print("stopped with", service.stop())
        finally:
            service.end()


if __name__ == "__main__":
    main()
