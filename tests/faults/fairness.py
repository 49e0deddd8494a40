"""Two keys, one of which asks ten times as much: what the other one notices.

    python tests/faults/fairness.py [--model demo] [--seconds 30] [--rate 3]

The light key asks so many questions a second, at random times, first alone, then beside the heavy
one that asks ten times as many.
"""

import argparse
import asyncio
import hashlib
import itertools
import random
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from asking import Outcome, Question, ask, native, picture
from running_service import RunningService, checkpoint

_KEYS = {"light": "loupe_light", "heavy": "loupe_heavy"}


class Figures(NamedTuple):
    """Requests of either key, and the light one's times."""

    num_light: int
    num_heavy: int
    p50_seconds: float
    p95_seconds: float


def write_keys(file: Path) -> None:
    """Write the file of API keys, as `loupe keys add` does."""
    file.write_text(
        "\n".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
            for name, key in _KEYS.items()
        )
    )


def question(key: str, number: int, *, text_only: bool) -> Question:
    shown = [] if text_only else [picture(number=number)]
    asked = native(f"Count from 1 to 10, {number}", *shown, max_new_tokens=32)
    return asked._replace(headers=(("Authorization", f"Bearer {_KEYS[key]}"),))


def questions(
    key: str, rate: float, seconds: float, *, text_only: bool
) -> list[tuple[float, Question]]:
    """When to ask what: so many questions a second, at random times."""
    dice = random.Random(key)
    due = 0.0
    asked: list[tuple[float, Question]] = []
    # No two rounds and keys ask the same.
    first = int(time.monotonic() * 1000) % 10**6 + 10**6 * list(_KEYS).index(key)
    for number in itertools.count(first):
        due += dice.expovariate(rate)
        if due >= seconds:
            return asked
        asked.append((due, question(key, number, text_only=text_only)))
    raise AssertionError


async def ask_at(url: str, key: str, asked: list[tuple[float, Question]]) -> list[Outcome]:
    """Ask each question when it is due."""
    began = time.monotonic()
    tasks: list[asyncio.Task[Outcome]] = []
    for number, (due, each) in enumerate(asked):
        await asyncio.sleep(max(0.0, began + due - time.monotonic()))
        tasks.append(asyncio.create_task(ask(url, each, f"{key}-{number}")))
    return list(await asyncio.gather(*tasks))


async def measure(
    url: str, seconds: float, rate: float, times: float, *, text_only: bool
) -> Figures:
    """Ask with the light key, and so many times as much with the heavy one."""
    asked = {"light": questions("light", rate, seconds, text_only=text_only), "heavy": []}
    if times:
        asked["heavy"] = questions("heavy", rate * times, seconds, text_only=text_only)
    light, heavy = await asyncio.gather(*(ask_at(url, key, each) for key, each in asked.items()))
    refused = {each.code() or str(each.status) for each in light if each.status != 200}
    assert not refused, refused
    ordered = sorted(each.seconds for each in light)
    return Figures(
        len(light), len(heavy), ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=3.0)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-num-seqs", default="64")
    parser.add_argument("--text-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        write_keys(keys)
        service = RunningService(
            Path(folder), "--workers", "2", "--api-keys", str(keys), "--open-metrics",
            "--model", checkpoint(arguments.model), "--max-num-seqs", arguments.max_num_seqs,
        )  # fmt: skip
        try:
            service.wait_until_ready()
            for _ in range(arguments.rounds):
                for times in (0.0, arguments.times):
                    found = asyncio.run(
                        measure(
                            service.url, arguments.seconds, arguments.rate, times,
                            text_only=arguments.text_only,
                        )
                    )  # fmt: skip
                    print(
                        f"{found.num_light} light and {found.num_heavy} heavy requests: light "
                        f"p50 {found.p50_seconds * 1e3:.0f} ms, "
                        f"p95 {found.p95_seconds * 1e3:.0f} ms",
                        flush=True,
                    )
        finally:
            service.end()


if __name__ == "__main__":
    main()
