"""`loupe bench`: the load on a server that runs already, and the report of it."""

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from service.client.address import Address, address_of
from service.client.ask import served_model
from service.client.connection import Connection
from service.client.failure import ClientMistake, RequestFailed
from service.load import machine
from service.load.calibration import TargetUnfit, calibrated
from service.load.client import Target
from service.load.report import Surroundings, write_report
from service.load.rounds import Measurement, Plan, tell
from service.load.scenarios import SCENARIOS, Scenario
from service.options import nearest
from service.version import version

MOST_CLIENTS = 512
_FAILED, _MISTAKEN = 1, 2
_LOOK_UP_SECONDS = 30.0


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was typed."""

    url: str | None = None
    api_key_file: str | None = None
    model: str | None = None
    dialect: str | None = None
    concurrency: str | None = None
    scenario: str = "chat-image"
    seconds: float = 10.0
    rounds: int = 1
    rate: float = 2.0
    patience: float = 300.0
    output: str = "bench-results"
    any_length: bool = False


def bench(options: BenchOptions) -> int:
    """Measure and print the table; the exit status is 1 where an answer was not right."""
    try:
        measurement = _bench(options)
    except ClientMistake as mistake:
        tell(f"loupe bench: {mistake}")
        return _MISTAKEN
    except (RequestFailed, TargetUnfit) as failure:
        tell(f"loupe bench: {failure}")
        return _FAILED
    is_right = measurement.results and not any(
        result.figures.failures for result in measurement.results
    )
    return 0 if is_right else _FAILED


def _bench(options: BenchOptions) -> Measurement:
    scenarios = _scenarios(options.scenario)
    measurement = Measurement(_plan(options))
    address = address_of(options.url, options.api_key_file, os.environ)
    target = _target(options, address)
    folder = _folder(options.output)
    served = {"server": f"{address.url}, {target.model}", "client": f"loupe {version()}"}
    facts = machine.facts(served, ["loupe", "bench", *sys.argv[2:]])
    plan = measurement.plan
    try:
        fitting = [calibrated(scenario, target, plan.patience) for scenario in scenarios]
        measurement.warm_up(target, 0)
        for number, scenario in itertools.product(range(plan.rounds), fitting):
            measurement.measure(target, number, scenario)
    except KeyboardInterrupt:
        told = "the report has what was measured" if measurement.results else "nothing was measured"
        tell(f"stopped; {told}")
    if measurement.results:
        sys.stdout.write(write_report(folder, Surroundings(facts), measurement.results) + "\n")
        tell(f"written: {folder / 'results.md'}, with results.json and the plots beside it")
    return measurement


def _target(options: BenchOptions, address: Address) -> Target:
    with Connection(address, _LOOK_UP_SECONDS) as connection:
        served = served_model(connection)
    dialect = options.dialect or ("loupe" if served.owned_by == "loupe" else "openai")
    model = options.model or served.id
    return Target(model, address.url, dialect, model, address.headers, options.any_length)


def _scenarios(names: str) -> list[Scenario]:
    if names == "all":
        return list(SCENARIOS.values())
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in SCENARIOS:
            raise ClientMistake(f"--scenario: there is no {name}{nearest(name, SCENARIOS)}")
    return [SCENARIOS[name] for name in chosen]


def _plan(options: BenchOptions) -> Plan:
    positive = (options.seconds, options.rounds, options.rate, options.patience)
    if min(positive) <= 0:
        raise ClientMistake("--seconds, --rounds, --rate and --patience must be above 0")
    return Plan(
        levels=_levels(options.concurrency),
        rounds=options.rounds,
        seconds=options.seconds,
        rate=options.rate,
        patience=options.patience,
    )


def _levels(concurrency: str | None) -> Sequence[int]:
    if concurrency is None:
        return ()
    try:
        levels = tuple(int(level) for level in concurrency.split(","))
    except ValueError as error:
        raise ClientMistake("--concurrency is a list of numbers, such as 1,8,32") from error
    if not all(1 <= level <= MOST_CLIENTS for level in levels):
        raise ClientMistake(f"--concurrency: from 1 to {MOST_CLIENTS}")
    return levels


def _folder(output: str) -> Path:
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClientMistake(f"cannot make the folder {folder}: {error.strerror}") from error
    return folder
