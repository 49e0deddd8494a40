"""What servers are asked, in which rounds and at which levels, and what came of it."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import uvloop

from service.load.client import Load, Prepared, Target, closed_loop, poisson, prepare
from service.load.figures import Figures, summarise
from service.load.scenarios import SCENARIOS, Scenario, number_of

WARM_UP_LEVEL = 999
_WARM_UP_REQUESTS = 8
_MIXED_SPANS = 3  # of one load's seconds: arrivals of their own need longer for a fair picture


class Plan(NamedTuple):
    """How to measure.

    levels: how many questions are open at once; empty takes each scenario's own. seconds: for
    which new questions are asked, in each run. rate: of arrivals, where they are not a closed loop.
    patience: seconds after which an answer counts as failed.
    """

    levels: Sequence[int]
    rounds: int
    seconds: float
    rate: float
    patience: float


class Result(msgspec.Struct, frozen=True):
    """One run. level: how many questions were open at once; 0: they came at their own times."""

    server: str
    scenario: str
    level: int
    round: int
    figures: Figures


class Measurement:
    """The results as they grow."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.results: list[Result] = []

    def measure(self, target: Target, number: int, scenario: Scenario) -> None:
        """Run a scenario at all its levels."""
        for level in self.levels(scenario):
            load = self._load(target, number, scenario, level)
            self.note(target.name, scenario, level, number, summarise(load))

    def levels(self, scenario: Scenario) -> list[int]:
        """Tell at which levels a scenario is run."""
        if not scenario.levels:
            return [0]
        return list(self.plan.levels or scenario.levels)

    def warm_up(self, target: Target, number: int) -> float:
        """Ask once, then a few together; returns how many seconds the first took."""
        questions = _questions(
            target, SCENARIOS["chat-image"], number, WARM_UP_LEVEL, 1 + _WARM_UP_REQUESTS
        )
        first = self._closed_loop(target, questions[:1], 1, seconds=0)
        rest = self._closed_loop(target, questions[1:], _WARM_UP_REQUESTS, seconds=0)
        for answer in (*first.answers, *rest.answers):
            if answer.fault:
                tell(f"{target.name}, warming up: {answer.fault}")
        return first.answers[0].seconds

    def note(
        self, name: str, scenario: Scenario, level: int, number: int, figures: Figures
    ) -> None:
        """Keep a run's figures, and tell them."""
        self.results.append(Result(name, scenario.name, level, number, figures))
        faults = "".join(f"; {count} x {fault}" for fault, count in figures.faults.items())
        tell(
            f"round {number + 1}, {name}, {scenario.name} at {level or 'random times'}:"
            f" {figures.requests_per_second:.2f} requests/s, {figures.requests} requests,"
            f" {figures.failures} failures{faults}"
        )

    def _load(self, target: Target, number: int, scenario: Scenario, level: int) -> Load:
        plan = self.plan
        span = plan.seconds * (1 if level else _MIXED_SPANS)
        count = max(int(scenario.most_per_second * span), 2 * level)
        questions = _questions(target, scenario, number, level, count)
        if level:
            return self._closed_loop(target, questions, level, plan.seconds)
        return uvloop.run(
            poisson(target, questions, rate=plan.rate, seconds=span, patience=plan.patience)
        )

    def _closed_loop(
        self, target: Target, questions: Sequence[Prepared], level: int, seconds: float
    ) -> Load:
        patience = self.plan.patience
        return uvloop.run(
            closed_loop(target, questions, concurrency=level, seconds=seconds, patience=patience)
        )


def tell(line: str) -> None:
    """Say how far the measurement is."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _questions(
    target: Target, scenario: Scenario, number: int, level: int, count: int
) -> list[Prepared]:
    return [
        prepare(scenario.ask(number_of(number, level, place)), target) for place in range(count)
    ]
