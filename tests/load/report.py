"""The report: `results.json` with every run, `results.md` and one plot a scenario with medians."""

import statistics
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path

import msgspec
from figures import Figures
from plot import bar_chart
from rounds import Measurement, Result, ServerFacts

Key = tuple[str, int, str]  # scenario, level, server

_HEAD = """\
| {what} | at | server | requests/s | {first} is quicker by | tokens/s | TTFT p50 / p99, s |\
 ITL p50 / p99, ms | whole answer p50, s | requests | failures | generator, cores |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def write_report(folder: Path, facts: dict[str, str], measurement: Measurement) -> str:
    """Write the files; returns the text of `results.md`."""
    runs = _grouped(measurement.results)
    lines = [
        *(f"* {name}: {value}" for name, value in facts.items()),
        *_describe_servers(measurement.servers),
        *(f"* {name}: did not start" for name in measurement.absent),
        "",
        *_tables(runs),
        *_memory(measurement.servers),
    ]
    text = "\n".join(lines)
    (folder / "results.md").write_text(text + "\n")
    document = {
        "facts": facts, "servers": measurement.servers, "results": measurement.results
    }  # fmt: skip
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    for scenario in dict.fromkeys(scenario for scenario, _, _ in runs):
        rates = {
            (level, server): [run.requests_per_second for run in several]
            for (name, level, server), several in runs.items()
            if name == scenario
        }
        chart = bar_chart(f"{scenario}: right answers per second", rates, _caption(facts))
        (folder / f"{scenario}.svg").write_text(chart)
    return text


def _grouped(results: Iterable[Result]) -> dict[Key, list[Figures]]:
    runs: dict[Key, list[Figures]] = {}
    for result in results:
        runs.setdefault((result.scenario, result.level, result.server), []).append(result.figures)
    # Rounds alternate; in the report servers keep the order of the first.
    order = list(dict.fromkeys(result.server for result in results))
    scenarios = list(dict.fromkeys(result.scenario for result in results))
    return dict(
        sorted(
            runs.items(),
            key=lambda item: (scenarios.index(item[0][0]), item[0][1], order.index(item[0][2])),
        )
    )


def _tables(runs: dict[Key, list[Figures]]) -> list[str]:
    lines = []
    for scenario in dict.fromkeys(scenario for scenario, _, _ in runs):
        first = next(server for name, _, server in runs if name == scenario)
        lines.append(_HEAD.format(what=scenario, first=first).rstrip())
        lines += [
            _row(level, server, several, _ratio(runs[name, level, first], several))
            for (name, level, server), several in runs.items()
            if name == scenario
        ]
        lines.append("")
    return lines


def _ratio(first: list[Figures], other: list[Figures]) -> str:
    """The median over rounds: what was measured side by side is compared."""
    ratios = [
        one.requests_per_second / another.requests_per_second
        for one, another in zip(first, other, strict=False)
        if another.requests_per_second
    ]
    return "–" if first is other or not ratios else f"{statistics.median(ratios):.2f} ×"


def _row(level: int, server: str, runs: list[Figures], ratio: str) -> str:
    def median(get: Callable[[Figures], float | None], form: str, scale: float = 1) -> str:
        values = [value * scale for run in runs if (value := get(run)) is not None]
        return format(statistics.median(values), form) if values else "–"

    def pair(low: str, high: str, form: str, scale: float = 1) -> str:
        return " / ".join(median(attrgetter(name), form, scale) for name in (low, high))

    huge = median(lambda run: run.huge_ttft, ".2f")
    cells = [
        "",
        str(level) if level else "random times",
        server,
        median(lambda run: run.requests_per_second, ".2f"),
        ratio,
        median(lambda run: run.output_tokens_per_second, ".0f"),
        pair("ttft_p50", "ttft_p99", ".3f") + ("" if huge == "–" else f" (huge: {huge})"),
        pair("itl_p50", "itl_p99", ".1f", 1000),
        median(lambda run: run.latency_p50, ".2f"),
        str(sum(run.requests for run in runs)),
        str(sum(run.failures for run in runs)),
        median(lambda run: run.generator_cores, ".2f"),
    ]
    return f"| {' | '.join(cells).strip()} |"


def _describe_servers(servers: dict[str, ServerFacts]) -> list[str]:
    lines = []
    for name, facts in servers.items():
        versions = ", ".join(f"{package} {version}" for package, version in facts.versions.items())
        parts = [f"* {name}: {versions}"]
        if facts.ready_seconds:
            parts.append(
                f"ready after {statistics.median(facts.ready_seconds):.1f} s, first answer in"
                f" {statistics.median(facts.first_request_seconds):.2f} s, load before its starts"
                f" {', '.join(f'{load:.1f}' for load in facts.load_before)}"
            )
        lines.append("; ".join(parts))
    return lines


def _memory(servers: dict[str, ServerFacts]) -> list[str]:
    rows = [
        f"| {name} | {memory.process} | {memory.resident:.0f} | {memory.shared:.0f} |"
        for name, facts in servers.items()
        for memory in facts.memory
    ]
    if not rows:
        return []
    head = "| server | process | resident, MiB | less what others share, MiB |"
    return [head, "| --- | --- | --- | --- |", *rows]


def _caption(facts: dict[str, str]) -> str:
    return f"{facts['machine']}; commit {facts['commit']}; {facts['time']}"
