"""What one web worker carries with no model behind it, beside the bare framework.

    python tests/load/web_tier.py [--rounds 3] [--seconds 5]

Small JSON requests and events of many streams, each a second of wall time and a second of the
serving process's CPU time: with few cores the load generator and the scripted engine take some of
the first, none of the second. Every reply is checked for its status and its count of tokens.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, cast

import httptools
import psutil
import uvloop
from checkout import HERE, commit, program_line
from checkpoint_folder import DEMO
from servers import Running, Server, versions

from service.load import machine
from service.load.client import post

_WARM_UP_SECONDS = 0.5


class Kind(NamedTuple):
    """A kind of load. unit: what is counted. mark: what the end of every reply holds."""

    name: str
    unit: str
    path: str
    max_tokens: int | None
    tokens_per_delta: int
    mark: bytes


KINDS = (
    Kind("small JSON without the engine", "requests", "/v1/health", None, 0, b'"uptime_seconds":'),
    Kind("small JSON", "requests", "/v1/chat", 10, 0, b'"output_tokens":10'),
    Kind("server-sent events", "events", "/v1/chat/stream", 1000, 1, b'"output_tokens":1000'),
)
_NUM_CLIENTS = 32


class Tally:
    """What came so far."""

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.replies = 0
        self.events = 0
        self.failures = 0


class Client(asyncio.Protocol):
    """One connection that sends the same request again and again; httptools reads the replies."""

    def __init__(self, message: bytes, mark: bytes, tally: Tally) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._message = message
        self._mark = mark
        self._tally = tally
        self._tail = b""
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._tally.events += body.count(b"data: ")
        self._tail = (self._tail + body)[-512:]

    def on_message_complete(self) -> None:
        is_right = self._parser.get_status_code() == 200 and self._mark in self._tail
        self._tally.replies += is_right
        self._tally.failures += not is_right
        self._tail = b""
        if time.perf_counter() < self._tally.ends_at:
            self._transport.write(self._message)
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.failures += time.perf_counter() < self._tally.ends_at
        if not self.done.done():
            self.done.set_result(None)


class Rates(NamedTuple):
    """Counts a second of wall time and of the serving process's CPU time."""

    wall: float
    cpu: float
    failures: int


def measure(server: Server, kind: Kind, seconds: float, log: Path) -> Rates:
    """Start a server, load it, and stop it."""
    running = Running(server, DEMO, log)
    try:
        serving = _serving_process(running)
        uvloop.run(_load(running.url, kind, _WARM_UP_SECONDS))
        cpu_before = sum(serving.cpu_times()[:2])
        started = time.perf_counter()
        tally = uvloop.run(_load(running.url, kind, seconds))
        wall = time.perf_counter() - started
        cpu = sum(serving.cpu_times()[:2]) - cpu_before
    finally:
        running.stop()
    count = tally.replies if kind.unit == "requests" else tally.events
    return Rates(count / wall, count / cpu, tally.failures)


async def _load(url: str, kind: Kind, seconds: float) -> Tally:
    message = _message(url, kind)
    tally = Tally(time.perf_counter() + seconds)
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(message, kind.mark, tally), host, int(port)))
        for _ in range(_NUM_CLIENTS)
    ]
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*(client.done for _, client in clients))
    return tally


def _message(url: str, kind: Kind) -> bytes:
    if kind.max_tokens is None:
        return f"GET {kind.path} HTTP/1.1\r\nhost: {url.removeprefix('http://')}\r\n\r\n".encode()
    fields = {
        "input_type": "text_only",
        "text": "How many red shapes are here?",
        "max_new_tokens": kind.max_tokens,
    }
    return post(url, kind.path, fields)


def _serving_process(running: Running) -> psutil.Process:
    for process in running.family():
        if "loupe worker" in " ".join(process.cmdline()):
            return process
    return running.family()[0]


def _servers(kind: Kind) -> list[Server]:
    loupe = (sys.executable, str(HERE / "null_service.py"), "{port}", "{model}",
             str(kind.tokens_per_delta))  # fmt: skip
    bare = (sys.executable, str(HERE / "bare_app.py"), "{port}")
    packages = ("litestar", "uvicorn", "uvloop", "msgspec")
    return [
        Server("loupe", loupe, "native", "/health/ready", packages),
        Server("litestar alone", bare, "native", "/health/ready", packages),
    ]


def main() -> None:
    """Measure in alternating rounds and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    log = Path(tempfile.mkstemp(prefix="loupe-web-tier-", suffix=".log")[1])
    for name, value in machine.facts({"commit": commit()}, program_line()).items():
        print(f"* {name}: {value}")
    print("* " + ", ".join(" ".join(pair) for pair in versions(_servers(KINDS[0])[0]).items()))
    print("\n| load | server | a second | a CPU second of the server | failures |")
    print("| --- | --- | --- | --- | --- |")
    for kind in KINDS:
        servers = _servers(kind)
        rates: dict[str, list[Rates]] = {server.name: [] for server in servers}
        for number in range(options.rounds):
            for server in servers[:: -1 if number % 2 else 1]:
                rates[server.name].append(measure(server, kind, options.seconds, log))
        for name, several in rates.items():
            wall, cpu = (
                statistics.median(getattr(each, field) for each in several)
                for field in ("wall", "cpu")
            )
            failures = sum(each.failures for each in several)
            print(f"| {kind.name}, {kind.unit} | {name} | {wall:,.0f} | {cpu:,.0f} | {failures} |")
    log.unlink()


if __name__ == "__main__":
    main()
