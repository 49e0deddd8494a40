"""How long a web worker's event loop stands still while large pictures arrive, and what they cost.

    python tests/load/stall.py [--pictures 20] [--rounds 3]

Twenty JPEGs of 12 megapixels, each a request of its own, are sent at once to one web worker with
no model behind it; a probe within its event loop tells how late it wakes. Where the clock says more
than the thread's own CPU time, other processes had the cores. Then: one such picture read and
resized here, beside what Pillow alone takes for it, and fetched over loopback.
"""

import argparse
import base64
import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import anyio
import structlog
from checkout import HERE, commit, program_line
from checkpoint_folder import DEMO
from PIL import Image

from service.load import machine
from service.load.pictures import PHOTO_SIZE, photo
from service.media.budget import MediaLimits
from service.media.decode import SourceBounds, decode
from service.media.fetch import Fetcher, RemoteFile
from service.media.fetch_settings import FetchSettings
from service.media.resize import ResizeBounds, smart_resize

_PATIENCE_SECONDS = 120
_QUIET_SECONDS = 2.0
_MEGAPIXELS = PHOTO_SIZE[0] * PHOTO_SIZE[1] / 1e6
_BOUNDS = ResizeBounds(factor=32, min_pixels=65_536, max_pixels=2**22)


class Stall(NamedTuple):
    """Milliseconds, by the clock and by the loop's own CPU time."""

    at: float
    wall: float
    cpu: float


@contextlib.contextmanager
def probed_service(samples: Path, log: Path) -> Iterator[str]:
    """Run one web worker with its probe; give its address."""
    command = [sys.executable, str(HERE / "probed_service.py"), "0", str(DEMO), str(samples)]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"http://\S+", line) for line in process.stdout)))
            yield found[0]
        finally:
            process.terminate()
            process.wait(_PATIENCE_SECONDS)


def json_body(picture: bytes) -> tuple[str, bytes]:
    """Write the request with the picture in base64."""
    text = base64.b64encode(picture).decode()
    fields = {"text": "What is this?", "image_base64": text, "max_new_tokens": 10}
    return "application/json", json.dumps(fields).encode()


def form_body(picture: bytes) -> tuple[str, bytes]:
    """Write the request as a form with a file."""
    text = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nWhat is this?\r\n'
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return "multipart/form-data; boundary=b", text + head + picture + b"\r\n--b--\r\n"


def ask(url: str, media_type: str, body: bytes) -> None:
    """Post one request; any answer but 200 raises."""
    request = urllib.request.Request(
        f"{url}/v1/chat", data=body, headers={"Content-Type": media_type}
    )
    with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as response:
        assert json.load(response)["success"]


def ask_at_once(url: str, bodies: Sequence[tuple[str, bytes]]) -> tuple[float, float]:
    """Send all at once; tell when that began and ended."""
    started = time.time()
    with ThreadPoolExecutor(len(bodies)) as clients:
        list(clients.map(lambda body: ask(url, *body), bodies))
    return started, time.time()


def share(values: Sequence[float], part: float) -> float:
    """Give the value that this part of all stays within."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def print_stalls(name: str, stalls: Sequence[Stall], seconds: float) -> None:
    wall, cpu = [stall.wall for stall in stalls], [stall.cpu for stall in stalls]
    figures = [
        f"{seconds:.2f}", f"{share(wall, 0.5):.2f}", f"{share(wall, 0.99):.2f}",
        f"{max(wall):.1f}", f"{share(cpu, 0.99):.2f}", f"{max(cpu):.1f}",
    ]  # fmt: skip
    print(f"| {name} | {' | '.join(figures)} |", flush=True)


def measure_stalls(num_pictures: int, num_rounds: int) -> None:
    """Load the worker in both ways and print what its probe saw."""
    pictures = [photo(number) for number in range(num_pictures)]
    ways = {"JSON, base64": json_body, "forms": form_body}
    windows: dict[str, list[tuple[float, float]]] = {name: [] for name in ("idle", *ways)}
    with tempfile.TemporaryDirectory(prefix="loupe-stall-") as folder:
        samples = Path(folder) / "samples"
        with probed_service(samples, Path(folder) / "log") as url:
            ask(url, *form_body(pictures[0]))
            started = time.time()
            time.sleep(_QUIET_SECONDS)
            windows["idle"].append((started, time.time()))
            for _ in range(num_rounds):
                for name, body_of in ways.items():
                    bodies = [body_of(picture) for picture in pictures]
                    windows[name].append(ask_at_once(url, bodies))
        lines = samples.read_text().splitlines()
    stalls = [Stall(*map(float, line.split())) for line in lines]
    for name, spans in windows.items():
        seen = [each for each in stalls if any(start <= each.at <= end for start, end in spans)]
        print_stalls(name, seen, statistics.median(end - start for start, end in spans))


def with_pillow(encoded: bytes) -> None:
    """Do what a few lines of Pillow do."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    height, width = smart_resize(
        image.height,
        image.width,
        factor=_BOUNDS.factor,
        min_pixels=_BOUNDS.min_pixels,
        max_pixels=_BOUNDS.max_pixels,
    )
    image.resize((width, height), Image.Resampling.BICUBIC).tobytes()


def with_loupe(encoded: bytes) -> None:
    """Do what a decoder process does: checks, colours, resizing, the hash."""
    decode(encoded, SourceBounds(("jpeg",), 36_000_000), _BOUNDS)


async def measure_fetch(picture: bytes, num_rounds: int) -> list[float]:
    """Fetch the picture over loopback; give the seconds of each time."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(picture)

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(head + picture)

    seconds: list[float] = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    settings = FetchSettings(fetch_private_hosts=("127.0.0.1",), fetch_ports=(port,))
    with contextlib.closing(Fetcher(settings, MediaLimits())) as fetcher:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            for _ in range(num_rounds + 1):
                started = time.perf_counter()
                await fetcher.fetch_all([RemoteFile(f"http://127.0.0.1:{port}/", "image_url")])
                seconds.append(time.perf_counter() - started)
            tasks.cancel_scope.cancel()
        await listener.aclose()
    return seconds[1:]


def timed(work: Callable[[bytes], None], picture: bytes) -> float:
    started = time.perf_counter()
    work(picture)
    return time.perf_counter() - started


def print_costs(num_rounds: int) -> None:
    """Measure Pillow and the decoder in turns, then fetching."""
    picture = photo(0)
    seconds: dict[str, list[float]] = {"Pillow alone": [], "the decoder": []}
    for _ in range(num_rounds + 1):
        seconds["Pillow alone"].append(timed(with_pillow, picture))
        seconds["the decoder"].append(timed(with_loupe, picture))
    seconds["the fetch"] = anyio.run(measure_fetch, picture, num_rounds)
    for name, several in seconds.items():
        milliseconds = 1000 * statistics.median(several[-num_rounds:])
        print(f"| {name} | {milliseconds:.1f} | {milliseconds / _MEGAPIXELS:.2f} |")


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    for name, value in machine.facts({"commit": commit()}, program_line()).items():
        print(f"* {name}: {value}")
    print(f"\n| {options.pictures} at once | s | stall p50, ms | p99 | max | own CPU p99 | max |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    measure_stalls(options.pictures, options.rounds)
    print("\n| a picture of 12 megapixels | ms | ms a megapixel |")
    print("| --- | --- | --- |")
    print_costs(options.rounds)


if __name__ == "__main__":
    main()
