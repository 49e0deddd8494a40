import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from inference.log import request_names

ROOT = Path(__file__).parents[2]

PREPARE = """
import logging, sys, warnings
import structlog
from inference.log import LogConfig, configure_logging
configure_logging(LogConfig(process="worker 3", format=sys.argv[1], level="info"))
log = structlog.get_logger()
"""


def lines_of(program: str, form: str = "json") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + program, form],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_an_event_is_one_json_line_with_its_facts():
    (line,) = lines_of('log.info("ready", url="http://x", count=3)')

    event = json.loads(line)
    assert list(event)[:5] == ["timestamp", "level", "message", "service", "process"]
    assert event["message"] == "ready"
    assert (event["service"], event["process"]) == ("loupe", "worker 3")
    assert (event["url"], event["count"]) == ("http://x", 3)
    assert datetime.fromisoformat(event["timestamp"]).utcoffset() == timedelta(0)


def test_records_of_libraries_and_warnings_take_the_same_form():
    events = [
        json.loads(line)
        for line in lines_of(
            'logging.getLogger("some.library").warning("lost %s", "it"); warnings.warn("old")'
        )
    ]

    assert [event["logger"] for event in events] == ["some.library", "py.warnings"]
    assert events[0]["message"] == "lost it"
    assert "old" in events[1]["message"]


def test_server_chatter_and_debug_events_are_left_out():
    assert lines_of('logging.getLogger("uvicorn.access").info("GET /"); log.debug("detail")') == []


def test_an_exception_stays_one_line_without_local_variables():
    program = """
def fail(payload):
    raise ValueError("broken")
try:
    fail("the client's " + "words")
except ValueError:
    log.exception("failed")
"""
    (line,) = lines_of(program)

    event = json.loads(line)
    assert "ValueError: broken" in event["exception"]
    assert "the client's words" not in line


def test_console_tracebacks_show_no_local_variables_either():
    program = """
def fail(payload):
    raise ValueError("broken")
try:
    fail("the client's " + "words")
except ValueError:
    log.exception("failed")
"""
    text = "\n".join(lines_of(program, "console"))

    assert "ValueError: broken" in text
    assert "the client's words" not in text


@pytest.mark.parametrize("value", ["'\\ud800'", "object()", "2**80", "{(1, 2): 3}", "b'x'"])
def test_any_value_can_be_logged(value: str):
    (line,) = lines_of(f'log.info("odd", value={value})')

    assert json.loads(line)["message"] == "odd"


def test_a_librarys_exception_is_part_of_its_line():
    program = """
try:
    raise ValueError("broken")
except ValueError:
    logging.getLogger("some.library").exception("100%% lost %s", "it")
"""
    (line,) = lines_of(program)

    event = json.loads(line)
    assert (event["message"], event["level"]) == ("100% lost it", "error")
    assert "ValueError: broken" in event["exception"]


def test_a_level_between_two_counts_as_the_lower_one():
    lines = lines_of('[logging.getLogger("some").log(level, "x") for level in (15, 25, 60)]')

    assert [json.loads(line)["level"] for line in lines] == ["info", "critical"]


def test_what_is_bound_to_the_context_is_in_every_line():
    lines = lines_of("""
structlog.contextvars.bind_contextvars(request_id="r")
log.info("ours")
logging.getLogger("some.library").warning("theirs")
""")

    assert [json.loads(line)["request_id"] for line in lines] == ["r", "r"]


def test_a_log_that_nobody_reads_stops_nobody():
    program = """
import os
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, sys.stderr.fileno())
for _ in range(1000):
    log.error("lost", padding="x" * 1000)
    logging.getLogger("some.library").error("lost")
os.write(1, b"alive")
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + program, "json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )

    assert done.stdout == b"alive"


def test_format_is_json_when_nobody_looks_at_a_terminal():
    (line,) = lines_of('log.info("ready")', "auto")

    assert json.loads(line)["message"] == "ready"


@pytest.mark.parametrize(
    ("traceparent", "names"),
    [
        ("", {"request_id": "a"}),
        (
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            {"request_id": "a", "trace_id": "0af7651916cd43dd8448eb211c80319c"},
        ),
    ],
    ids=["without a trace", "with a trace"],
)
def test_the_engines_lines_name_a_request_as_the_web_sides_do(traceparent, names):
    assert request_names("a", traceparent) == names
