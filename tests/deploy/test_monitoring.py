"""Dashboards, alerts and log shippers, held against what the service really says."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.ledger import Ledger, Slab
from inference.metrics import EngineMetrics
from service.metrics.exposition import Exposer
from service.metrics.worker_metrics import WorkerMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
TEXTS = [path for path in DEPLOY.rglob("*") if path.suffix in (".json", ".yaml", ".yml")]

# A service's outermost layer around applications that answer, or fail, as the real one may.
SAY_LINES = """
import anyio
from inference.log import LogConfig, configure_logging
from service.errors import InternalError
from service.metrics.worker_metrics import WorkerMetrics
from service.request_log import RequestLog, record_of
from service.tracing.opentelemetry_tracer import OpenTelemetryTracer
from service.tracing.settings import TracingSettings

async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
    if scope["path"] == "/fails":
        raise ValueError("a fault of ours")

async def say():
    tracer = OpenTelemetryTracer(TracingSettings(otel_endpoint="http://127.0.0.1:9"))
    log = RequestLog(answer, WorkerMetrics(), {"/v1/chat"}, tracer)
    for path in ("/v1/chat", "/fails"):
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "state": {}}
        async def send(message): pass
        await log({**scope, "client": ("127.0.0.1", 1)}, None, send)

configure_logging(LogConfig(format="json", process="worker 0"))
anyio.run(say)
"""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, object]]:
    """Lines of the log as the service writes them: of an answer, of a fault, and why."""
    done = subprocess.run(
        [sys.executable, "-c", SAY_LINES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stderr.splitlines() if '"request_id"' in line]


@pytest.fixture(scope="module")
def sample_names() -> set[str]:
    """Every name that a scrape may hold, vLLM's included."""
    ledger = Ledger(2)
    WorkerMetrics(Slab(ledger.lease()))
    EngineMetrics(Slab(ledger.lease()))
    text = Exposer(ledger, vllm_names=True, model_name=lambda: "m").expose("").text.decode()
    families = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    names = {name for name, _ in families}
    histograms = {name for name, kind in families if kind == "histogram"}
    return names | {name + end for name in histograms for end in ("_bucket", "_sum", "_count")}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_metrics_that_deployment_files_name_exist(path: Path, sample_names: set[str]):
    named = set(re.findall(r"\b(?:loupe_|vllm:)[a-z0-9_]+\b", path.read_text()))

    assert named - sample_names == set()


def test_dashboard_and_alerts_look_at_many_metrics():
    """Or the test above would pass on nothing."""
    for path in (DEPLOY / "grafana/loupe.json", PROMETHEUS / "alerts.yml"):
        assert len(set(re.findall(r"\bloupe_[a-z0-9_]+", path.read_text()))) > 8


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in board["panels"] if panel["type"] != "row")


def test_the_dashboards_panels_lie_beside_each_other():
    board = json.loads((DEPLOY / "grafana/loupe.json").read_text())
    taken: set[tuple[int, int]] = set()

    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert taken & cells == set(), panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["targets"] and panel["description"] for panel in panels(board))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["check", "config", "prometheus.yml"], id="config"),
        pytest.param(["check", "rules", "alerts.yml"], id="alerts"),
        pytest.param(["test", "rules", "alerts_test.yml"], id="when alerts fire"),
    ],
)
def test_prometheus_accepts(arguments: list[str]):
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_understands_the_dashboards_queries(tmp_path: Path):
    board = json.loads((DEPLOY / "grafana/loupe.json").read_text())
    queries = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    rules = [
        {"record": f"q{n}", "expr": query.replace("$__rate_interval", "1m")}
        for n, query in enumerate(queries)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    done = subprocess.run(
        ["promtool", "check", "rules", path], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


def test_every_alert_is_tested():
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())
    fired = {
        check["alertname"]
        for test in tests["tests"]
        for check in test["alert_rule_test"]
        if check["exp_alerts"]
    }

    assert {rule["alert"] for group in rules["groups"] for rule in group["rules"]} == fired


def all_keys(lines: list[dict[str, object]]) -> set[str]:
    return {key for line in lines for key in line}


def test_alloy_reads_fields_that_lines_have(lines: list[dict[str, object]]):
    config = (DEPLOY / "logs/loupe.alloy").read_text()
    blocks = re.findall(r"(?:expressions|values) = \{(.*?)\}", config, re.DOTALL)
    read, *used = [dict(re.findall(r'(\w+)\s*= "(\w*)"', block)) for block in blocks]

    assert config.count("{") == config.count("}")
    assert set(read.values()) <= all_keys(lines)
    assert [set(block) - set(read) for block in used] == [set(), set()]
    assert set(used[0]) == {
        "level",
        "service",
        "process",
    }  # each label value is an index of its own


def test_filebeat_reads_fields_that_lines_have(lines: list[dict[str, object]]):
    config = yaml.safe_load((DEPLOY / "logs/filebeat.yml").read_text())
    time, drop, rename = [next(iter(each.items())) for each in config["processors"]]
    assert [name for name, _ in (time, drop, rename)] == ["timestamp", "drop_fields", "rename"]
    moves = {field["from"]: field["to"] for field in rename[1]["fields"]}

    assert {time[1]["field"], *drop[1]["fields"], *moves} <= all_keys(lines)
    assert len(set(moves.values())) == len(moves)
    # A name that stays must not be the parent of one that others are moved to.
    parents = {to.split(".")[0] for to in moves.values()}
    assert (all_keys(lines) - set(moves)) & parents == set()


def test_lines_have_the_times_that_both_read(lines: list[dict[str, object]]):
    config = yaml.safe_load((DEPLOY / "logs/filebeat.yml").read_text())
    [layout] = config["processors"][0]["timestamp"]["layouts"]
    shape = re.sub("[0-9]", "9", layout)

    for line in lines:
        text = str(line["timestamp"])
        assert re.sub("[0-9]", "9", text) == shape
        assert datetime.now(UTC) - datetime.fromisoformat(text) < timedelta(minutes=5)
