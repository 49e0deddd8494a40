"""Servers in turns: each is started, asked, watched and stopped, every other round in reverse."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from checkpoint_folder import checkpoint_folder
from engine_direct import measure_direct
from servers import Memory, Running, Server, ServerAbsent, versions

from service.load.client import Target
from service.load.rounds import Measurement, tell
from service.load.scenarios import Scenario


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


class Turns:
    """A measurement of several servers.

    model: what they serve, as `checkpoint_folder` takes it. logs: the folder for what they say.
    absent: servers that did not start.
    """

    def __init__(self, measurement: Measurement, model: str, logs: Path) -> None:
        self.servers: dict[str, ServerFacts] = {}
        self.absent: list[str] = []
        self._measurement = measurement
        self._model = model
        self._logs = logs
        self._resting: dict[str, Running] = {}

    def run(self, servers: Sequence[Server], scenarios: Sequence[Scenario]) -> None:
        """Let the servers take turns, every other round in reverse order."""
        for max_pixels, group in itertools.groupby(scenarios, lambda each: each.max_pixels):
            together = list(group)
            folder = checkpoint_folder(self._model, max_pixels)
            try:
                for number in range(self._measurement.plan.rounds):
                    for server in servers[:: -1 if number % 2 else 1]:
                        if server.name not in self.absent:
                            self._turn(server, folder, number, together)
            finally:
                self._end_resting()

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
                running = Running(server, folder, self._logs / f"{server.name}.log")
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
            first_seconds = self._measurement.warm_up(target, number)
            if is_new:
                facts.first_request_seconds.append(first_seconds)
            for scenario in scenarios:
                self._measurement.measure(target, number, scenario)
            facts.memory = running.memory()
            rests = server.rests and number + 1 < self._measurement.plan.rounds
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
            levels = [level for level in self._measurement.levels(scenario) if level]
            seconds = self._measurement.plan.seconds
            measured = measure_direct(folder, scenario.name, levels, seconds, number)
            for level, figures in zip(levels, measured, strict=True):
                self._measurement.note(server.name, scenario, level, number, figures)

    def _end_resting(self) -> None:
        for running in self._resting.values():
            running.stop()
        self._resting.clear()


def describe(turns: Turns) -> list[str]:
    """Write each server's versions and starts as a line of the report."""
    lines: list[str] = []
    for name, facts in turns.servers.items():
        versions_told = ", ".join(map(" ".join, facts.versions.items()))
        parts = [f"{name}: {versions_told}"]
        if facts.ready_seconds:
            parts.append(
                f"ready after {statistics.median(facts.ready_seconds):.1f} s, first answer in"
                f" {statistics.median(facts.first_request_seconds):.2f} s, load before its starts"
                f" {', '.join(f'{load:.1f}' for load in facts.load_before)}"
            )
        lines.append("; ".join(parts))
    return [*lines, *(f"{name}: did not start" for name in turns.absent)]


def memory_table(turns: Turns) -> list[str]:
    """Write the memory of each server's processes; nothing where none was looked at."""
    rows = [
        f"| {name} | {memory.process} | {memory.resident:.0f} | {memory.shared:.0f} |"
        for name, facts in turns.servers.items()
        for memory in facts.memory
    ]
    if not rows:
        return []
    head = "| server | process | resident, MiB | less what others share, MiB |"
    return [head, "| --- | --- | --- | --- |", *rows]
