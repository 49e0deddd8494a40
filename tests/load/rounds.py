"""The rounds of a measurement: who is asked what, in which order, and what came of it."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop
from checkpoint_folder import checkpoint_folder
from client import Load, Prepared, closed_loop, poisson, prepare
from dialects import DIALECTS
from engine_direct import measure_direct
from figures import Figures, summarise
from scenarios import SCENARIOS, Scenario, number_of
from servers import Memory, Running, Server, ServerAbsent, versions

_WARM_UP_LEVEL = 999
_WARM_UP_REQUESTS = 8
_MIXED_SPANS = 3  # of one load's seconds: arrivals of their own need longer for a fair picture


class Plan(NamedTuple):
    """How to measure.

    seconds: for which new questions are asked, in each run. rate: of arrivals, where they are not
    a closed loop. patience: seconds after which an answer counts as failed.
    """

    levels: tuple[int, ...]
    rounds: int
    seconds: float
    rate: float
    patience: float
    model: str
    output: Path


class Result(msgspec.Struct, frozen=True):
    """One run. level: how many questions were open at once; 0: they came at their own times."""

    server: str
    scenario: str
    level: int
    round: int
    figures: Figures


class ServerFacts(msgspec.Struct):
    """What is told of a server beside its runs.

    ready_seconds: of every start. first_request_seconds: of the first answer after each.
    load_before: the machine's when it was started. memory: at the end of its last turn.
    """

    versions: dict[str, str]
    ready_seconds: list[float] = []
    first_request_seconds: list[float] = []
    load_before: list[float] = []
    memory: list[Memory] = []


class Target(NamedTuple):
    """A server that answers, as the client sees it."""

    name: str
    url: str
    dialect: str
    model: str


class Measurement:
    """The results as they grow. absent: servers that did not start."""

    def __init__(self, plan: Plan) -> None:
        self.results: list[Result] = []
        self.servers: dict[str, ServerFacts] = {}
        self.absent: list[str] = []
        self._plan = plan
        self._resting: dict[str, Running] = {}

    def run(self, servers: Sequence[Server], scenarios: Sequence[Scenario]) -> None:
        """Let the servers take turns, every other round in reverse order."""
        for max_pixels, group in itertools.groupby(scenarios, lambda each: each.max_pixels):
            together = list(group)
            folder = checkpoint_folder(self._plan.model, max_pixels)
            try:
                for number in range(self._plan.rounds):
                    for server in servers[:: -1 if number % 2 else 1]:
                        if server.name not in self.absent:
                            self._turn(server, folder, number, together)
            finally:
                self._end_resting()

    def measure(self, target: Target, number: int, scenario: Scenario) -> None:
        """Run a scenario at all its levels against whoever answers."""
        for level in self.levels(scenario):
            load = self._load(target, number, scenario, level)
            self._note(target.name, scenario, level, number, summarise(load))

    def levels(self, scenario: Scenario) -> list[int]:
        """Tell at which levels a scenario is run."""
        if not scenario.levels:
            return [0]
        return [level for level in scenario.levels if level in self._plan.levels]

    def _turn(
        self, server: Server, folder: Path, number: int, scenarios: Sequence[Scenario]
    ) -> None:
        facts = self.servers.setdefault(server.name, ServerFacts(versions(server)))
        if not server.command:
            self._measure_direct(server, folder, number, scenarios)
            return
        running = self._resting.pop(server.name, None)
        is_new = running is None
        if running is None:
            tell(f"starting {server.name}")
            try:
                running = Running(server, folder, self._plan.output / f"{server.name}.log")
            except ServerAbsent as absence:
                tell(str(absence))
                self.absent.append(server.name)
                return
            facts.ready_seconds.append(running.ready_seconds)
            facts.load_before.append(running.load_before)
        else:
            running.resume()
        rests = False
        try:
            target = Target(server.name, running.url, server.dialect, str(folder))
            first_seconds = self._warm_up(target, number)
            if is_new:
                facts.first_request_seconds.append(first_seconds)
            for scenario in scenarios:
                self.measure(target, number, scenario)
            facts.memory = running.memory()
            rests = server.rests and number + 1 < self._plan.rounds
        finally:
            if rests:
                running.rest()
                self._resting[server.name] = running
            else:
                running.stop()

    def _measure_direct(
        self, server: Server, folder: Path, number: int, scenarios: Sequence[Scenario]
    ) -> None:
        for scenario in scenarios:
            levels = [level for level in self.levels(scenario) if level]
            measured = measure_direct(folder, scenario.name, levels, self._plan.seconds, number)
            for level, figures in zip(levels, measured, strict=True):
                self._note(server.name, scenario, level, number, figures)

    def _end_resting(self) -> None:
        for running in self._resting.values():
            running.stop()
        self._resting.clear()

    def _warm_up(self, target: Target, number: int) -> float:
        """Ask once, then a few together; returns how long the first took."""
        questions = self._questions(
            target, SCENARIOS["chat-image"], number, _WARM_UP_LEVEL, 1 + _WARM_UP_REQUESTS
        )
        first = self._closed_loop(target, questions[:1], 1, seconds=0)
        rest = self._closed_loop(target, questions[1:], _WARM_UP_REQUESTS, seconds=0)
        for answer in (*first.answers, *rest.answers):
            if answer.fault:
                tell(f"{target.name}, warming up: {answer.fault}")
        return first.answers[0].seconds

    def _load(self, target: Target, number: int, scenario: Scenario, level: int) -> Load:
        plan = self._plan
        span = plan.seconds * (1 if level else _MIXED_SPANS)
        count = max(int(scenario.most_per_second * span), 2 * level)
        questions = self._questions(target, scenario, number, level, count)
        if level:
            return self._closed_loop(target, questions, level, plan.seconds)
        dialect = DIALECTS[target.dialect]
        return uvloop.run(
            poisson(
                target.url, dialect, questions,
                rate=plan.rate, seconds=span, patience=plan.patience,
            )
        )  # fmt: skip

    def _closed_loop(
        self, target: Target, questions: Sequence[Prepared], level: int, seconds: float
    ) -> Load:
        dialect = DIALECTS[target.dialect]
        return uvloop.run(
            closed_loop(
                target.url, dialect, questions,
                concurrency=level, seconds=seconds, patience=self._plan.patience,
            )
        )  # fmt: skip

    def _questions(
        self, target: Target, scenario: Scenario, number: int, level: int, count: int
    ) -> list[Prepared]:
        dialect = DIALECTS[target.dialect]
        return [
            prepare(
                scenario.ask(number_of(number, level, place)), dialect, target.url, target.model
            )
            for place in range(count)
        ]

    def _note(
        self, name: str, scenario: Scenario, level: int, number: int, figures: Figures
    ) -> None:
        self.results.append(Result(name, scenario.name, level, number, figures))
        faults = "".join(f"; {count} x {fault}" for fault, count in figures.faults.items())
        tell(
            f"round {number + 1}, {name}, {scenario.name} at {level or 'random times'}:"
            f" {figures.requests_per_second:.2f} requests/s, {figures.requests} requests,"
            f" {figures.failures} failures{faults}"
        )


def tell(line: str) -> None:
    """Say how far the measurement is."""
    print(line, file=sys.stderr, flush=True)
