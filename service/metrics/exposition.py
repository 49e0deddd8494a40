"""From the ledger to the text that Prometheus reads: every slab's series, added up.

Adding is right for all of them: counters and histograms count apart in every process, and a gauge
that tells processes apart has a label for it.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from inference.ledger import Family, Ledger, Series
from inference.metrics import FAMILIES as ENGINE_FAMILIES
from service.metrics.families import PROCESS_FAMILIES, REQUEST_FAMILIES
from service.metrics.vllm_names import VLLM_NAMES
from service.version import version

Sums = Mapping[str, Mapping[tuple[str, ...], tuple[float, ...]]]

_DECLARED = {
    declared.name: declared for declared in (*REQUEST_FAMILIES, *ENGINE_FAMILIES, *PROCESS_FAMILIES)
}


class Exposition(NamedTuple):
    """What a scrape gets."""

    content_type: str
    text: bytes


class Exposer:
    """Reads one ledger for scrapes."""

    def __init__(
        self, ledger: Ledger, *, vllm_names: bool, model_name: Callable[[], str | None]
    ) -> None:
        """model_name: None while nothing is loaded."""
        self._ledger = ledger
        self._vllm_names = vllm_names
        self._model_name = model_name

    def expose(self, accept: str) -> Exposition:
        """Write all figures of now. accept: what the scraper says it reads."""
        encode, content_type = choose_encoder(accept)
        return Exposition(content_type, encode(self))

    def collect(self) -> Iterator[Metric]:
        """Give the metrics to the library's encoders, which take this for a registry."""
        sums = _add_up(self._ledger.read())
        model_name = self._model_name() or ""
        yield _build_info(model_name)
        for name, declared in _DECLARED.items():
            yield _metric(declared, declared.labels, sums.get(name, {}))
        if self._vllm_names:
            yield from _in_vllm_names(sums, model_name)


def _add_up(series: Iterable[Series]) -> Sums:
    sums: dict[str, dict[tuple[str, ...], tuple[float, ...]]] = {}
    for one in series:
        declared = _DECLARED.get(one.name)
        if declared is None or len(one.cells) != declared.num_cells:
            continue  # written by a process of another version
        of_name = sums.setdefault(one.name, {})
        before = of_name.get(one.label_values)
        of_name[one.label_values] = (
            one.cells if before is None else tuple(map(sum, zip(before, one.cells, strict=True)))
        )
    return sums


def _metric(
    declared: Family,
    labels: Sequence[str],
    sums: Mapping[tuple[str, ...], tuple[float, ...]],
    name: str | None = None,
) -> Metric:
    name = name or declared.name
    if declared.kind == "histogram":
        histogram = HistogramMetricFamily(name, declared.help, labels=labels)
        bounds = [*map(repr, declared.bounds), "+Inf"]
        for values, (*counts, total) in sorted(sums.items()):
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            histogram.add_metric(values, buckets, total)
        return histogram
    kind = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    metric = kind(name, declared.help, labels=labels)
    for values, (value,) in sorted(sums.items()):
        metric.add_metric(values, value)
    return metric


def _build_info(model_name: str) -> Metric:
    labels = {"version": version(), "python": platform.python_version(), "model_name": model_name}
    info = GaugeMetricFamily("loupe_build_info", "What runs here; always 1.", labels=list(labels))
    info.add_metric(list(labels.values()), 1.0)
    return info


def _in_vllm_names(sums: Sums, model_name: str) -> Iterator[Metric]:
    for name, declared in VLLM_NAMES.items():
        labels = ("model_name", "engine", *_renamed(declared.labels))
        ours = sums.get(declared.name, {})
        theirs = {(model_name, "0", *values): cells for values, cells in ours.items()}
        yield _metric(declared, labels, theirs, name)


def _renamed(labels: Iterable[str]) -> Iterator[str]:
    for label in labels:
        yield "finished_reason" if label == "finish_reason" else label
