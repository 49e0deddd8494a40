"""Traces as a collector gets them from the running service."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLERS_SPAN_ID = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP. spans: all that came. resources: the attributes that came with them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[Span] = []
        self.resources: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        pass


def attributes(owner) -> dict[str, object]:
    return {each.key: plain(each.value) for each in owner.attributes}


def plain(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    return getattr(value, kind or "string_value")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.05,))
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_request_is_one_trace_below_its_callers_span(
    start_service, collector, picture, ask, monkeypatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    service = start_service("--workers", "1", "--otel-endpoint", collector.url)
    question = ask("What is in this image?", picture("red", "circle"))
    headers = {"traceparent": f"00-{TRACE_ID}-{CALLERS_SPAN_ID}-01", "x-request-id": "traced"}

    reply = httpx.post(f"{service.url}/v1/chat", json=question, headers=headers, timeout=60)
    assert service.stop() == 0  # what was not sent yet is sent before the end

    spans = {span.name: span for span in collector.spans if span.trace_id.hex() == TRACE_ID}
    server = spans.pop("POST /v1/chat")
    usage = reply.json()["usage"]
    assert list(spans) == ["media decode", "prompt", "queue", "vision", "prefill", "decode"]
    assert server.parent_span_id.hex() == CALLERS_SPAN_ID
    assert server.kind == Span.SpanKind.SPAN_KIND_SERVER
    assert {span.parent_span_id for span in spans.values()} == {server.span_id}
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/chat",
        "url.path": "/v1/chat",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "loupe",
        "gen_ai.request.model": "demo",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.model": "demo",
        "gen_ai.usage.cache_read.input_tokens": usage["cached_tokens"],
        "gen_ai.usage.input_tokens": usage["input_tokens"],
        "gen_ai.usage.output_tokens": usage["output_tokens"],
        "loupe.num_images": 1,
        "loupe.request_id": "traced",
    }
    starts = [span.start_time_unix_nano for span in spans.values()]
    assert starts == sorted(starts)
    assert server.start_time_unix_nano <= starts[0]
    assert collector.resources[0]["service.name"] == "loupe"
    (line,) = [
        event
        for event in map(json.loads, service.log().splitlines())
        if event.get("request_id") == "traced"
    ]
    assert line["trace_id"] == TRACE_ID
    assert line["span_id"] == server.span_id.hex()
