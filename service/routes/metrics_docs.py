"""What the API document says of the metrics."""

from service.openapi import Content, Operation, Reply

_FORMATS = (
    Content("text/plain", {"type": "string"}),
    Content("application/openmetrics-text", {"type": "string"}),
)

METRICS_OPERATIONS = (
    Operation(
        method="GET",
        path="/metrics",
        summary="Figures for Prometheus",
        description="Counters, histograms and gauges of the whole service, from whichever worker "
        "is asked; in OpenMetrics where that is accepted. Where API keys are set it needs one, "
        "unless `open_metrics` is set.",
        replies={200: Reply("Every figure of now.", _FORMATS)},
        tag="health",
    ),
)
