"""`loupe check`: says what would be served and whether anything needed is missing.

What the model side knows comes from a child process, so that torch is never loaded here.
"""

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple

import msgspec

from inference.config import EngineConfig
from service.config import Settings
from service.options import Resolved, options, shown, value_of
from service.processes.threads import plan_threads, variables_set

_MAX_VERDICT_BYTES = 1024 * 1024
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The model side's findings as they cross the pipe; every fact is a plain value."""

    summary: str = ""
    facts: dict[str, object] | None = None
    plan: dict[str, object] | None = None
    problems: list[str] = []
    notes: list[str] = []


class Findings(NamedTuple):
    """A report for a person, and what keeps the service from starting."""

    report: str
    problems: list[str]


def check(resolved: Resolved) -> Findings:
    """Look at everything `loupe serve` would need, loading no weights."""
    settings = resolved.settings
    threads = plan_threads(settings, os.environ)
    with variables_set(threads.variables):
        verdict = _verdict_of_a_child(settings.engine)
    problems = [*verdict.problems, *_address_problems(settings)]
    processes = {
        "web workers": settings.num_workers,
        "image processes": f"{settings.num_image_processes} per web worker",
        "engine threads": threads.reason,
    }
    sections = [
        _section("settings", _settings_rows(resolved)),
        _section("model", _rows({"architecture": verdict.summary} | (verdict.facts or {}))),
        _section("memory", _rows(verdict.plan or {})),
        _section("processes", _rows(processes)),
        _section("notes", [("", note) for note in verdict.notes]),
        _section("problems", [("", problem) for problem in problems or ["none"]]),
    ]
    return Findings("\n".join(filter(None, sections)), problems)


def _verdict_of_a_child(config: EngineConfig) -> Verdict:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_check_model, args=(config, theirs), name="check")
    child.start()
    theirs.close()
    try:
        return msgspec.msgpack.decode(ours.recv_bytes(_MAX_VERDICT_BYTES), type=Verdict)
    except EOFError:
        child.join()
        return Verdict(problems=[f"the check of the model ended with status {child.exitcode}"])
    finally:
        child.join()


def _check_model(config: EngineConfig, verdict: Connection) -> None:
    """Run inside the child."""
    from inference.main import check_model

    verdict.send_bytes(msgspec.msgpack.encode(check_model(config)))


def _address_problems(settings: Settings) -> list[str]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with contextlib.closing(
            socket.create_server((settings.host, settings.port), family=family)
        ):
            return []
    except OSError as error:
        return [f"cannot listen on {settings.host} port {settings.port}: {error.strerror}"]


def _settings_rows(resolved: Resolved) -> list[tuple[str, str]]:
    return [
        (name, f"{shown(value_of(resolved.settings, option)) or '-'}  ({resolved.sources[name]})")
        for name, option in options().items()
    ]


def _rows(facts: Mapping[str, object]) -> list[tuple[str, str]]:
    return [
        (name.removesuffix("_bytes").replace("_", " "), _readable(name, value))
        for name, value in facts.items()
    ]


def _readable(name: str, value: object) -> str:
    if isinstance(value, int) and name.endswith("_bytes"):
        unit, divisor = next((u for u in _UNITS if value >= u[1]), _UNITS[-1])
        return f"{value / divisor:.1f} {unit}"
    if isinstance(value, int) and not name.endswith("_id"):
        return f"{value:,}"
    return str(value)


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:{width}}  {value}" if width else f"  {value}" for name, value in rows]
    return "\n".join([f"{title}:", *lines, ""])
