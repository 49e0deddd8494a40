"""How tracing is switched on, and what the engine is told of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.tracing.settings import TracingSettings, tracing_is_installed, tracing_is_wanted

ROOT = Path(__file__).parents[3]
QUESTION = {"input_type": "text_only", "text": "What is this?"}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
COLLECTOR = "http://127.0.0.1:4318"
# Nothing listens there; spans that cannot be sent are dropped.
NOWHERE = TracingSettings(otel_endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("endpoint", "environ", "wanted"),
    [
        pytest.param(None, {}, False, id="default"),
        pytest.param(COLLECTOR, {}, True, id="setting"),
        pytest.param(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, True, id="variable"),
        pytest.param(
            None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": COLLECTOR}, True, id="variable of traces"
        ),
        pytest.param(COLLECTOR, {"OTEL_SDK_DISABLED": "true"}, False, id="disabled"),
    ],
)
def test_traces_are_sent_where_a_setting_or_variable_says(endpoint, environ, wanted):
    assert tracing_is_wanted(TracingSettings(otel_endpoint=endpoint), environ) is wanted


def test_a_missing_extra_is_noticed_before_it_is_needed(monkeypatch):
    assert tracing_is_installed()
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert not tracing_is_installed()


def test_a_service_without_traces_imports_nothing_for_them():
    code = "import sys, service.processes.worker; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {"opentelemetry", "google", "requests", "prometheus_client"} == set()


async def test_the_engine_is_told_the_span_below_the_callers(new_engine, serve, log):
    engine = new_engine()
    async with serve(engine, tracing=NOWHERE) as (client, _):
        headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
        await client.post("/v1/chat", json=QUESTION, headers=headers)

    (line,) = [event for event in log if event["event"] == "HTTP request processed"]
    version, trace_id, span_id, flags = engine.requests[0].traceparent.split("-")
    assert (version, trace_id, flags) == ("00", TRACE_ID, "01")
    assert (line["trace_id"], line["span_id"]) == (trace_id, span_id)
    assert span_id != "b7ad6b7169203331"


async def test_a_malformed_traceparent_begins_a_trace_of_its_own(new_engine, serve):
    engine = new_engine()
    async with serve(engine, tracing=NOWHERE) as (client, _):
        for traceparent in (f"00-{TRACE_ID}-xyz-01", "nonsense\u00ff".encode("latin-1")):
            headers = {"traceparent": traceparent}
            await client.post("/v1/chat", json=QUESTION, headers=headers)

    trace_ids = [request.traceparent.split("-")[1] for request in engine.requests]
    assert len(set(trace_ids)) == 2
    assert TRACE_ID not in trace_ids


async def test_without_tracing_the_engine_is_told_nothing(service):
    await service.client.post("/v1/chat", json=QUESTION)

    assert [request.traceparent for request in service.engine.requests] == [""]
