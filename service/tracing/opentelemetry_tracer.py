"""Requests as OpenTelemetry spans, sent over OTLP by a thread of the library's.

The stages become spans when the request has ended, with the times that the log has. Names are those
of the semantic conventions for HTTP and for generative AI; no span holds content.
"""

import time
from collections.abc import Iterator
from threading import Thread
from typing import NamedTuple

from litestar.types import HTTPScope
from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from service.metrics.worker_metrics import Stage
from service.request_log import RequestRecord
from service.tracing.settings import TracingSettings
from service.version import version

_SPAN_NAMES = {
    "image_fetch": "media fetch",
    "image_decode": "media decode",
    "prompt": "prompt",
    "queue": "queue",
    "vision": "vision",
    "prefill": "prefill",
    "decode": "decode",
}
# What a stage is entered as, and the stages that follow it without a mark of their own.
_BEGINNINGS: dict[str, Stage] = {
    "image_fetch": "fetching",
    "image_decode": "decoding",
    "prompt": "prompt",
    "queue": "queued",
    "decode": "decode",
}
_PARTS = {"queue": ("queue", "vision", "prefill")}
_GEN_AI_FACTS = {
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_tokens",
    "gen_ai.response.finish_reasons": "finish_reason",
    "loupe.num_images": "num_images",
}
_SERVER_FAULT = 500
_CLOSE_SECONDS = 1.5


class OpenTelemetryTracer:
    """A worker's tracer."""

    def __init__(self, settings: TracingSettings) -> None:
        """Send to the endpoint set here, else to the one of OpenTelemetry's own variables."""
        endpoint = settings.otel_endpoint
        exporter = OTLPSpanExporter(endpoint and f"{endpoint.rstrip('/')}/v1/traces")
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before what is said here.
        named = Resource({"service.name": "loupe", "service.version": version()})
        self._provider = TracerProvider(
            resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("loupe", version())
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: HTTPScope, started_at: float) -> "OpenTelemetryTrace":
        """Begin a request's span, below the caller's where the request names one."""
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        epoch = time.time_ns() - round(time.perf_counter() * 1e9)
        span = self._tracer.start_span(
            scope["method"],
            context=self._propagator.extract(carrier),
            kind=otel.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
            start_time=epoch + round(started_at * 1e9),
        )
        return OpenTelemetryTrace(self._tracer, span, scope["method"], epoch)

    def close(self) -> None:
        """Send what is not sent yet, for a second or so: a stop does not wait for a collector."""
        closing = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


class OpenTelemetryTrace:
    """One request's span; epoch: nanoseconds of the wall clock when `perf_counter` was 0."""

    def __init__(self, tracer: otel.Tracer, span: otel.Span, method: str, epoch: int) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method
        self._epoch = epoch
        context = span.get_span_context()
        self.trace_id = otel.format_trace_id(context.trace_id)
        self.span_id = otel.format_span_id(context.span_id)
        self.traceparent = f"00-{self.trace_id}-{self.span_id}-{context.trace_flags:02x}"

    def end(self, record: RequestRecord, route: str, status_code: int) -> None:
        """End the request's span, with one below it for every stage that took place."""
        span = self._span
        if span.is_recording():
            span.update_name(self._method if route == "other" else f"{self._method} {route}")
            span.set_attributes(_attributes(record, route, status_code))
            if record.failed or status_code >= _SERVER_FAULT:
                span.set_status(otel.StatusCode.ERROR)
            inside = otel.set_span_in_context(span)
            for stage in _stages(record):
                below = self._tracer.start_span(
                    stage.name, context=inside, start_time=self._nanoseconds(stage.started_at)
                )
                below.end(self._nanoseconds(stage.started_at + stage.seconds))
        span.end()

    def _nanoseconds(self, counter: float) -> int:
        return self._epoch + round(counter * 1e9)


class _Stage(NamedTuple):
    """A span to make; started_at: on the clock of `time.perf_counter`."""

    name: str
    started_at: float
    seconds: float


def _stages(record: RequestRecord) -> Iterator[_Stage]:
    """List the stages that took place; those before the first token follow each other."""
    times = record.stages
    for name, began_as in _BEGINNINGS.items():
        started_at = record.entered.get(began_as)
        for part in _PARTS.get(name, (name,)):
            milliseconds = getattr(times, part)
            if started_at is None or milliseconds is None:
                continue
            yield _Stage(_SPAN_NAMES[part], started_at, milliseconds / 1e3)
            started_at += milliseconds / 1e3


def _attributes(record: RequestRecord, route: str, status_code: int) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.route": route,
        "http.response.status_code": status_code,
        "loupe.request_id": record.request_id,
    }
    if record.error_code is not None:
        attributes["error.type"] = record.error_code
    if record.engine_id is not None:
        attributes["gen_ai.operation.name"] = "chat"
        attributes["gen_ai.provider.name"] = "loupe"
        attributes["gen_ai.request.model"] = record.model_name or ""
        attributes["gen_ai.response.model"] = record.model_name or ""
    for name, fact in _GEN_AI_FACTS.items():
        value = record.facts.get(fact)
        if value is not None:
            attributes[name] = [value] if isinstance(value, str) else value
    text_tokens, image_tokens = map(record.facts.get, ("text_tokens", "image_tokens"))
    if isinstance(text_tokens, int) and isinstance(image_tokens, int):
        attributes["gen_ai.usage.input_tokens"] = text_tokens + image_tokens
    return attributes
