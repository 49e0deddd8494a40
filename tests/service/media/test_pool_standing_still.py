"""Decoder processes that neither answer nor use CPU time, with real processes and signals."""

import sys
from collections.abc import Callable, Iterator
from io import BytesIO

import anyio
import psutil
import pytest
from PIL import Image

from service.errors import ImageRefused
from service.media import decoder_process
from service.media.budget import MediaLimits
from service.media.encoded import EncodedFile
from service.media.pool import ImagePool
from service.media.resize import ResizeBounds

BOUNDS = ResizeBounds(factor=32, min_pixels=1024, max_pixels=65_536)
PAGE = b"1 0 0 rg 0 0 400 400 re f"

# A decoder that waits before each answer, as for a lock that nobody gives back.
WAITING_DECODER = f"""#!{sys.executable}
import os, sys, time
sys.path.insert(0, os.getcwd())
from service.media import decoder_main
answers = decoder_main.answers

def late(request, *others):
    for answer in answers(request, *others):
        time.sleep(0 if isinstance(request, decoder_main.Hello) else SECONDS)
        yield answer

decoder_main.answers = late
sys.argv = sys.argv[2:]
decoder_main.main()
"""


@pytest.fixture
def pool(monkeypatch) -> Iterator[ImagePool]:
    """Two processes, of which none may take more than four seconds."""
    monkeypatch.setattr(decoder_process, "START_SECONDS", 1.0)
    pool = ImagePool(MediaLimits(max_decode_cpu_seconds=1), num_processes=2)
    yield pool
    pool.close()


@pytest.fixture
def wait(monkeypatch, tmp_path) -> Callable[[float], None]:
    """Start decoder processes that wait so many seconds before each answer."""

    def run(seconds: float) -> None:
        script = tmp_path / "python"
        script.write_text(WAITING_DECODER.replace("SECONDS", str(seconds)))
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return run


def decoders() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "service.media.decoder_main" in child.cmdline()]


def picture(level: int, side: int) -> EncodedFile:
    file = BytesIO()
    Image.new("RGB", (side, side), (level, 0, 0)).save(file, "BMP")
    return EncodedFile(file.getvalue(), "image")


@pytest.mark.slow
@pytest.mark.parametrize("side", [pytest.param(64, id="small"), pytest.param(1024, id="large")])
async def test_a_stopped_process_is_replaced_and_costs_nobody_an_answer(side, pool):
    """A large file fills the pipe, so that it is written to no end."""
    await pool.start()
    stopped = decoders()[0]
    stopped.suspend()
    levels: list[int] = []

    async def decode(level: int) -> None:
        levels.append((await pool.decode(picture(level, side), BOUNDS)).pixels[0])

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(decode, 10)
            group.start_soon(decode, 20)

    assert sorted(levels) == [10, 20]
    assert not stopped.is_running()


@pytest.mark.slow
async def test_a_file_that_two_processes_stand_still_at_is_refused(pool, wait):
    wait(1000.0)

    with anyio.fail_after(60), pytest.raises(ImageRefused) as caught:
        await pool.decode(picture(10, 64), BOUNDS)

    assert caught.value.code == "image_invalid"
    assert len(decoders()) == 1  # the one that was asked whether any can work


@pytest.mark.slow
async def test_every_page_has_its_own_time(pool, wait, make_pdf):
    wait(0.7)

    document = await pool.render_document(EncodedFile(make_pdf(*[PAGE] * 7), "file"), None, BOUNDS)

    assert len(document.pages) == 7
