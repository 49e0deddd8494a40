"""From a load's answers to the figures that are compared."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from service.load.client import Load


class Figures(msgspec.Struct, kw_only=True):
    """One run of one scenario against one server; times in seconds, None where there is none.

    Only right answers count in anything but `failures` and `faults`. ttft: to the first text. itl:
    between two events with text. latency: to the end. huge_ttft: of the huge prompts, which count
    in nothing else. generator_*: what the load generator itself took.
    """

    requests: int
    failures: int
    faults: dict[str, int]
    seconds: float
    requests_per_second: float
    output_tokens_per_second: float
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    itl_p50: float | None = None
    itl_p99: float | None = None
    latency_p50: float | None = None
    latency_p99: float | None = None
    huge_ttft: float | None = None
    generator_cores: float = 0.0
    generator_ms_per_request: float = 0.0


def summarise(load: Load) -> Figures:
    """Condense a load."""
    right = [answer for answer in load.answers if not answer.fault]
    plain = [answer for answer in right if answer.kind == "plain"]
    huge = [answer.event_times[0] for answer in right if answer.kind == "huge"]
    firsts = [answer.event_times[0] for answer in plain]
    latencies = [answer.seconds for answer in plain]
    gaps = [
        after - before
        for answer in plain
        for before, after in zip(answer.event_times, answer.event_times[1:], strict=False)
    ]
    return Figures(
        requests=len(load.answers),
        failures=len(load.answers) - len(right),
        faults=dict(Counter(answer.fault for answer in load.answers if answer.fault)),
        seconds=load.seconds,
        requests_per_second=len(right) / load.seconds,
        output_tokens_per_second=sum(answer.num_tokens or 0 for answer in right) / load.seconds,
        ttft_p50=percentile(firsts, 0.5),
        ttft_p99=percentile(firsts, 0.99),
        itl_p50=percentile(gaps, 0.5),
        itl_p99=percentile(gaps, 0.99),
        latency_p50=percentile(latencies, 0.5),
        latency_p99=percentile(latencies, 0.99),
        huge_ttft=percentile(huge, 0.5),
        generator_cores=load.cpu_seconds / load.seconds,
        generator_ms_per_request=load.cpu_seconds * 1e3 / max(len(load.answers), 1),
    )


def percentile(samples: Sequence[float], share: float) -> float | None:
    """Find the smallest sample that so many of them do not exceed; None of none."""
    if not samples:
        return None
    return sorted(samples)[min(int(share * len(samples)), len(samples) - 1)]
