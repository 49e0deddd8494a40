"""Three times the load that a service can carry, and what becomes of it.

    python tests/faults/overload.py [--model mid] [--seconds 60] [--times 3] [--deadline-ms 5000]

First the best throughput, from closed loops of several sizes, then the overload: requests at random
times, whoever is refused does not return. Every request has a picture of its own unless
`--text-only` says otherwise.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from asking import Outcome, Question, ask, native, picture
from running_service import RunningService, checkpoint

_MIB = 1024 * 1024
_REFUSALS = ("overloaded", "deadline_unreachable")


class Phase(NamedTuple):
    """What one load brought, over so many seconds."""

    outcomes: list[Outcome]
    seconds: float

    def throughput(self) -> float:
        """Right answers a second."""
        return sum(each.status == 200 and not each.code() for each in self.outcomes) / self.seconds


def questions(*, text_only: bool, deadline_ms: int | None) -> Iterator[Question]:
    """Endless questions of about equal size, each another one."""
    dice = random.Random(1)
    for number in count():
        fields: dict[str, Any] = {"max_new_tokens": 32}
        if deadline_ms is not None:
            fields["deadline_ms"] = deadline_ms
        text = f"What is in this image? Look for the number {dice.randrange(10**9)}."
        yield native(text, *([] if text_only else [picture(number=number)]), **fields)


async def closed_loop(
    url: str, asked: list[Question], *, concurrency: int, seconds: float, prefix: str
) -> Phase:
    """So many clients that ask one question after the other."""
    outcomes: list[Outcome] = []
    began = time.perf_counter()
    waiting = iter(enumerate(asked))

    async def client() -> None:
        for number, question in waiting:
            outcomes.append(await ask(url, question, f"{prefix}-{number}"))
            if time.perf_counter() - began > seconds:
                return

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return Phase(outcomes, time.perf_counter() - began)


async def open_loop(url: str, asked: list[Question], *, rate: float, prefix: str) -> Phase:
    """Clients that come at random times, so many a second on average."""
    dice = random.Random(2)
    began = due = time.perf_counter()
    tasks: list[asyncio.Task[Outcome]] = []
    for number, question in enumerate(asked):
        due += dice.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(url, question, f"{prefix}-{number}")))
    seconds = time.perf_counter() - began
    outcomes = await asyncio.gather(*tasks)
    return Phase(list(outcomes), max(seconds, time.perf_counter() - began))


def quantile(values: list[float], share: float) -> float:
    """The value below which this share is; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def resident_mib(service: RunningService) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for each in service.holdings():
        sums[each.title] += each.num_bytes // _MIB
    return dict(sums)


def tell(best: float, phase: Phase, deadline_ms: int, rate: float) -> None:
    """Print the figures of an overload."""
    codes = Counter(each.code() or str(each.status) for each in phase.outcomes)
    refused = [each.seconds for each in phase.outcomes if each.code() in _REFUSALS]
    accepted = [each for each in phase.outcomes if each.code() not in _REFUSALS]
    met = [
        each for each in accepted
        if each.status == 200 and not each.code() and each.seconds * 1000 <= deadline_ms
    ]  # fmt: skip
    answered = [each.seconds for each in accepted if each.status == 200]
    print(f"offered {rate:.1f}/s: {dict(codes)}")
    print(
        f"accepted {len(accepted)}, of which {len(met) / max(1, len(accepted)):.2%} "
        f"within {deadline_ms} ms"
    )
    print(f"answers: p50 {quantile(answered, 0.5):.2f} s, p99 {quantile(answered, 0.99):.2f} s")
    print(
        f"refusals: p50 {quantile(refused, 0.5) * 1e3:.1f} ms, "
        f"p99 {quantile(refused, 0.99) * 1e3:.1f} ms"
    )
    print(f"throughput {phase.throughput():.2f}/s, {phase.throughput() / best:.3f} of the best")


async def measure(service: RunningService, arguments: argparse.Namespace) -> None:
    """Find the best throughput, then overload."""
    fresh = questions(text_only=arguments.text_only, deadline_ms=None)
    found: list[float] = []
    for concurrency in (32, 64):
        asked = [next(fresh) for _ in range(int(arguments.most_rate * arguments.best_seconds))]
        phase = await closed_loop(
            service.url, asked, concurrency=concurrency, seconds=arguments.best_seconds,
            prefix=f"best{concurrency}",
        )  # fmt: skip
        found.append(phase.throughput())
        print(f"{concurrency} clients: {found[-1]:.2f}/s", flush=True)
    best = max(found)
    rate = best * arguments.times
    limited = questions(text_only=arguments.text_only, deadline_ms=arguments.deadline_ms)
    asked = [next(limited) for _ in range(int(rate * arguments.seconds))]
    for number in range(arguments.rounds):
        before = resident_mib(service)
        phase = await open_loop(service.url, asked, rate=rate, prefix=f"over{number}")
        tell(best, phase, arguments.deadline_ms, rate)
        after = resident_mib(service)
        print("resident MiB:", {name: (before.get(name), size) for name, size in after.items()})
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mid")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--best-seconds", type=float, default=15)
    parser.add_argument("--most-rate", type=float, default=200, help="answers/s beyond all hope")
    parser.add_argument("--times", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--deadline-ms", type=int, default=5000)
    parser.add_argument("--text-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint(arguments.model)
        service = RunningService(Path(folder), "--workers", "2", "--model", model)
        try:
            service.wait_until_ready()
            asyncio.run(measure(service, arguments))
            print("stopped with", service.stop())
        finally:
            service.end()


if __name__ == "__main__":
    main()
