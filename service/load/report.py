"""The report: `results.json` with every run, `results.md` with medians, two plots a scenario."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec

from service.load.figures import Figures
from service.load.plot import Bar, bar_chart
from service.load.rounds import Result

Key: TypeAlias = tuple[str, int, str]  # scenario, level, server
Runs: TypeAlias = dict[Key, list[Figures]]


class Surroundings(NamedTuple):
    """What a report tells beside the runs.

    facts: of the measurement. notes: lines below them. closing: lines at the end.
    document: further keys of `results.json`.
    """

    facts: Mapping[str, str]
    notes: Sequence[str] = ()
    closing: Sequence[str] = ()
    document: Mapping[str, object] = {}


def write_report(folder: Path, surroundings: Surroundings, results: Sequence[Result]) -> str:
    """Write the files into a folder that is there; returns the text of `results.md`."""
    runs = _grouped(results)
    lines = [
        *(f"* {name}: {value}" for name, value in surroundings.facts.items()),
        *(f"* {note}" for note in surroundings.notes),
        "",
        *_tables(runs),
        *surroundings.closing,
    ]
    text = "\n".join(lines).rstrip()
    (folder / "results.md").write_text(text + "\n")
    document = {"facts": surroundings.facts, **surroundings.document, "results": results}
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    caption = _caption(surroundings.facts)
    for scenario in dict.fromkeys(scenario for scenario, _, _ in runs):
        chart = bar_chart(
            f"{scenario}: throughput", "right answers per second", _rates(runs, scenario), caption
        )
        (folder / f"{scenario}-throughput.svg").write_text(chart)
        chart = bar_chart(
            f"{scenario}: latency, half the answers (bar) and 99 % (line)",
            "seconds",
            _latencies(runs, scenario),
            caption,
        )
        (folder / f"{scenario}-latency.svg").write_text(chart)
    return text


def _grouped(results: Iterable[Result]) -> Runs:
    runs: Runs = {}
    for result in results:
        runs.setdefault((result.scenario, result.level, result.server), []).append(result.figures)
    # Rounds alternate; in the report servers keep the order of the first.
    order = list(dict.fromkeys(server for _, _, server in runs))
    scenarios = list(dict.fromkeys(scenario for scenario, _, _ in runs))
    return dict(
        sorted(
            runs.items(),
            key=lambda item: (scenarios.index(item[0][0]), item[0][1], order.index(item[0][2])),
        )
    )


def _rates(runs: Runs, scenario: str) -> dict[tuple[int, str], Bar]:
    """Find the medians of the rounds, with their spread."""
    bars: dict[tuple[int, str], Bar] = {}
    for (name, level, server), several in runs.items():
        if name == scenario:
            rates = [run.requests_per_second for run in several]
            bars[level, server] = Bar(statistics.median(rates), min(rates), max(rates))
    return bars


def _latencies(runs: Runs, scenario: str) -> dict[tuple[int, str], Bar]:
    bars: dict[tuple[int, str], Bar] = {}
    servers = dict.fromkeys(server for _, _, server in runs)
    for (name, level, server), several in runs.items():
        if name != scenario:
            continue
        prefix = f"{server}, " if len(servers) > 1 else ""
        for what, half, most in (
            ("first token", _median(several, "ttft_p50"), _median(several, "ttft_p99")),
            ("whole answer", _median(several, "latency_p50"), _median(several, "latency_p99")),
        ):
            if half is not None and most is not None:
                bars[level, prefix + what] = Bar(half, half, most)
    return bars


def _tables(runs: Runs) -> list[str]:
    lines: list[str] = []
    for scenario in dict.fromkeys(scenario for scenario, _, _ in runs):
        rows = {key: several for key, several in runs.items() if key[0] == scenario}
        servers = list(dict.fromkeys(server for _, _, server in rows))
        columns = _columns(scenario, servers, rows)
        lines.append(_line(columns))
        lines.append(_line(["---"] * len(columns)))
        lines += [
            _line([cell(key, several) for cell in columns.values()])
            for key, several in rows.items()
        ]
        lines.append("")
    return lines


Cell: TypeAlias = Callable[[Key, list[Figures]], str]


def _columns(scenario: str, servers: Sequence[str], rows: Runs) -> dict[str, Cell]:
    """Give the table's columns by their heads; those on several servers only for several."""
    columns: dict[str, Cell] = {
        f"{scenario}, clients": lambda key, _: str(key[1] or "random times"),
    }
    if len(servers) > 1:
        columns["server"] = lambda key, _: key[2]
    columns["requests/s"] = lambda _, runs: _shown(runs, "requests_per_second", ".2f")
    if len(servers) > 1:
        columns[f"{servers[0]} is quicker by"] = lambda key, runs: _ratio(
            rows[scenario, key[1], servers[0]], runs
        )
    always: dict[str, Cell] = {
        "tokens/s": lambda _, runs: _shown(runs, "output_tokens_per_second", ".0f"),
        "first token p50 / p99, s": _first_token,
        "between tokens p50 / p99, ms": lambda _, runs: _pair(runs, "itl", ".1f", 1000),
        "whole answer p50 / p99, s": lambda _, runs: _pair(runs, "latency", ".2f"),
        "requests": lambda _, runs: str(sum(run.requests for run in runs)),
        "failures": lambda _, runs: str(sum(run.failures for run in runs)),
        "generator, cores": lambda _, runs: _shown(runs, "generator_cores", ".2f"),
    }
    return columns | always


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _first_token(_: Key, runs: list[Figures]) -> str:
    huge = _shown(runs, "huge_ttft", ".2f")
    return _pair(runs, "ttft", ".3f") + ("" if huge == "–" else f" (huge: {huge})")


def _ratio(first: list[Figures], other: list[Figures]) -> str:
    """Take the median over rounds: what was measured side by side is compared."""
    ratios = [
        one.requests_per_second / another.requests_per_second
        for one, another in zip(first, other, strict=False)
        if another.requests_per_second
    ]
    return "–" if first is other or not ratios else f"{statistics.median(ratios):.2f} ×"


def _pair(runs: list[Figures], name: str, form: str, scale: float = 1) -> str:
    return " / ".join(_shown(runs, f"{name}_{share}", form, scale) for share in ("p50", "p99"))


def _shown(runs: list[Figures], name: str, form: str, scale: float = 1) -> str:
    median = _median(runs, name)
    return "–" if median is None else format(median * scale, form)


def _median(runs: list[Figures], name: str) -> float | None:
    values = [value for run in runs if (value := getattr(run, name)) is not None]
    return statistics.median(values) if values else None


def _caption(facts: Mapping[str, str]) -> str:
    """Tell where and when, without what is too long for a line."""
    untold = ("command", "load at start")
    return "; ".join(value for name, value in facts.items() if name not in untold)
