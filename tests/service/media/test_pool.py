"""The pool with real processes."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from PIL import Image

from service.errors import ClientError, ImageRefused, InternalError, RequestInvalid, TooLarge
from service.media.budget import MediaLimits
from service.media.encoded import EncodedFile
from service.media.pool import ImagePool
from service.media.resize import ResizeBounds

FRAGILE_DECODER = f"""#!{sys.executable}
import os, signal, sys
sys.path.insert(0, os.getcwd())
from service.media import decoder_main
decode = decoder_main.decode

def fragile(encoded, *bounds):
    if encoded == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if encoded == b"lie":
        os.write(1, b"x" * 100)
        os.write(3, b"x" * 100)
    if encoded == b"fault":
        raise RuntimeError("secret")
    if encoded == b"spin":
        sum(range(10**12))
    return decode(encoded, *bounds)

decoder_main.decode = fragile
sys.argv = sys.argv[2:]
decoder_main.main()
"""

BOUNDS = ResizeBounds(factor=32, min_pixels=1024, max_pixels=65_536)


def in_bounds(images: list[EncodedFile]) -> tuple[list[EncodedFile], list[ResizeBounds]]:
    return images, [BOUNDS] * len(images)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., ImagePool]]:
    pools: list[ImagePool] = []

    def make(num_processes: int, limits: MediaLimits) -> ImagePool:
        pools.append(ImagePool(limits, num_processes=num_processes))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(make_pool) -> ImagePool:
    return make_pool(2, MediaLimits(max_images=6))


@pytest.fixture
def fragile_pool(pool, monkeypatch, tmp_path) -> ImagePool:
    """A pool whose decoder gives way to some files, as a flaw in a library would."""
    script = tmp_path / "python"
    script.write_text(FRAGILE_DECODER)
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    return pool


@pytest.fixture
def picture(encode):
    def make(level: int, param: str = "image", **options: object) -> EncodedFile:
        return EncodedFile(encode(Image.new("RGB", (64, 64), (level, 0, 0)), **options), param)

    return make


def pool_processes() -> set[int]:
    """Ids of this process's live decoder processes, whichever thread started them."""
    lists = Path("/proc/self/task").glob("*/children")
    children = {int(child) for path in lists for child in path.read_text().split()}
    return {child for child in children if b"decoder_main" in command_of(child)}


def command_of(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:  # it has been reaped meanwhile
        return b""


def environment_of(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


async def until_gone(processes: set[int]) -> None:
    with anyio.fail_after(30):
        while processes & pool_processes():  # noqa: ASYNC110 - another process has no event to set
            await anyio.sleep(0.01)


def until_stopped(process: int) -> None:
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.005)


async def test_pictures_come_back_in_order(pool, picture):
    decoded = await pool.decode_all(*in_bounds([picture(level) for level in (10, 20, 30, 40)]))

    assert [image.pixels[0] for image in decoded] == [10, 20, 30, 40]


async def test_no_pictures_are_no_work(pool):
    assert await pool.decode_all(*in_bounds([])) == []


async def test_equal_files_are_decoded_once_and_told_apart_by_field(pool, picture):
    one, other = picture(10, "images[0]"), picture(20, "images[1]")
    again = picture(10, "images[2]")
    decoded = await pool.decode_all(*in_bounds([one, other, again]))

    assert decoded[0] is decoded[2]
    assert decoded[1].pixels[0] == 20


@pytest.mark.parametrize(
    ("encoded", "error", "code"),
    [
        pytest.param(b"", ImageRefused, "image_empty", id="empty"),
        pytest.param(b"<svg/>", ImageRefused, "image_format_unsupported", id="svg"),
        pytest.param(b"II*\0" + bytes(20), ImageRefused, "image_format_unsupported", id="tiff"),
        pytest.param(b"\xff\xd8\xff\xe0", ImageRefused, "image_truncated", id="truncated"),
        pytest.param(b"GIF89a" + bytes(90) + b";", ImageRefused, "image_invalid", id="broken"),
        pytest.param(
            b"BM" + bytes(12) + b"\x28\0\0\0" + b"\xff\xff\0\0" * 2 + b"\1\0\x18\0" + bytes(24),
            TooLarge,
            "image_too_many_pixels",
            id="bomb",
        ),
    ],
)
async def test_findings_become_errors_that_name_the_field(encoded, error, code, pool):
    with pytest.raises(ClientError) as caught:
        await pool.decode(EncodedFile(encoded, "images[3]"), BOUNDS)

    assert (error, code, "images[3]") == (type(caught.value), caught.value.code, caught.value.param)
    assert "0x" not in caught.value.message


async def test_an_unsupported_format_is_told_what_is_supported(pool):
    with pytest.raises(ImageRefused) as caught:
        await pool.decode(EncodedFile(b"%PDF-1.7", "image"), BOUNDS)

    assert "JPEG, PNG, WEBP, GIF, BMP" in caught.value.message


async def test_the_first_of_several_faults_is_told(pool, picture):
    images = [picture(1), EncodedFile(b"GIF89a", "images[1]"), EncodedFile(b"", "images[2]")]

    with pytest.raises(ImageRefused) as caught:
        await pool.decode_all(*in_bounds(images))
    assert caught.value.param == "images[1]"


async def test_too_many_pictures_are_refused_before_any_is_decoded(pool):
    with pytest.raises(RequestInvalid):
        await pool.decode_all(*in_bounds([EncodedFile(b"", "image")] * 7))


async def test_pixels_of_all_pictures_are_bounded(make_pool, picture):
    pool = make_pool(1, MediaLimits(max_total_pixels=2 * 64 * 64))
    await pool.decode_all(*in_bounds([picture(1), picture(2)]))

    with pytest.raises(TooLarge) as caught:
        await pool.decode_all(*in_bounds([picture(1), picture(2), picture(1)]))
    assert caught.value.code == "media_budget_exceeded"


async def stop_all(pool: ImagePool) -> set[int]:
    """Halt every process of a started pool, so that pictures given to it stay unfinished."""
    await pool.start()
    processes = pool_processes()
    for process in processes:
        os.kill(process, signal.SIGSTOP)
        until_stopped(process)
    return processes


async def test_a_picture_that_kills_its_process_is_refused_alone(fragile_pool, picture):
    images = [picture(10), EncodedFile(b"kill", "images[1]"), picture(20)]
    with pytest.raises(ImageRefused) as caught:
        await fragile_pool.decode_all(*in_bounds(images))

    assert (caught.value.code, caught.value.param) == ("image_invalid", "images[1]")
    assert (await fragile_pool.decode(picture(30), BOUNDS)).pixels[0] == 30


async def test_good_pictures_beside_a_killer_are_decoded(fragile_pool, picture):
    levels: list[int] = []

    async def decode(level: int) -> None:
        levels.append((await fragile_pool.decode(picture(level), BOUNDS)).pixels[0])

    async with anyio.create_task_group() as group:
        for level in (10, 20, 30):
            group.start_soon(decode, level)
        with pytest.raises(ImageRefused):
            await fragile_pool.decode(EncodedFile(b"kill", "image"), BOUNDS)

    assert sorted(levels) == [10, 20, 30]


async def test_a_decoder_that_answers_nonsense_is_replaced(fragile_pool, picture):
    with pytest.raises(ImageRefused) as caught:
        await fragile_pool.decode(EncodedFile(b"lie", "image"), BOUNDS)

    assert caught.value.code == "image_invalid"
    assert (await fragile_pool.decode(picture(30), BOUNDS)).pixels[0] == 30


async def test_a_fault_of_ours_is_not_the_pictures(fragile_pool, picture):
    with pytest.raises(InternalError):
        await fragile_pool.decode(EncodedFile(b"fault", "image"), BOUNDS)

    assert (await fragile_pool.decode(picture(30), BOUNDS)).pixels[0] == 30


@pytest.mark.usefixtures("fragile_pool")
async def test_a_decoder_that_never_ends_is_ended(make_pool):
    pool = make_pool(1, MediaLimits(max_decode_cpu_seconds=1))
    with anyio.fail_after(60), pytest.raises(ImageRefused) as caught:
        await pool.decode(EncodedFile(b"spin", "image"), BOUNDS)

    assert caught.value.code == "image_invalid"


@pytest.mark.parametrize(
    ("size", "bounds"),
    [
        pytest.param((4000, 4000), BOUNDS, id="decoding"),
        pytest.param(
            (64, 64), ResizeBounds(factor=32, min_pixels=2**25, max_pixels=2**26), id="resizing"
        ),
    ],
)
async def test_a_picture_that_wants_too_much_memory_is_refused_by_name(
    size, bounds, make_pool, encode, picture
):
    pool = make_pool(1, MediaLimits(max_decode_memory_bytes=40 * 1024 * 1024))
    await pool.start()
    processes = pool_processes()
    with pytest.raises(TooLarge) as caught:
        await pool.decode(EncodedFile(encode(Image.new("RGB", size)), "images[1]"), bounds)

    assert (caught.value.code, caught.value.param) == ("media_memory_exceeded", "images[1]")
    assert (await pool.decode(picture(30), BOUNDS)).pixels[0] == 30
    assert pool_processes() == processes


async def test_a_process_killed_from_outside_costs_nobody_an_answer(pool, picture):
    processes = await stop_all(pool)
    levels: list[int] = []

    async def decode(level: int) -> None:
        levels.append((await pool.decode(picture(level), BOUNDS)).pixels[0])

    async with anyio.create_task_group() as group:
        group.start_soon(decode, 10)
        group.start_soon(decode, 20)
        await anyio.wait_all_tasks_blocked()
        for process in processes:
            os.kill(process, signal.SIGKILL)

    assert sorted(levels) == [10, 20]
    assert not processes & pool_processes()


async def test_processes_that_cannot_start_are_our_fault(pool, picture, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    with pytest.raises(InternalError):
        await pool.decode(picture(10), BOUNDS)


async def test_decoders_do_not_know_the_services_settings(pool, monkeypatch):
    monkeypatch.setenv("LOUPE_API_KEYS", "7f3a")
    await pool.start()
    environments = [environment_of(process) for process in pool_processes()]

    assert len(environments) == 2
    assert not any(b"LOUPE_" in environment for environment in environments)


async def test_callers_cancelled_while_processes_start_leave_none_behind(pool, picture):
    for _ in range(8):
        with anyio.move_on_after(0.01):
            await pool.decode(picture(10), BOUNDS)

    await until_gone(pool_processes())


async def test_a_cancelled_caller_frees_its_processes(pool, picture):
    processes = await stop_all(pool)
    with anyio.move_on_after(0.1) as scope:
        await pool.decode_all(*in_bounds([picture(10), picture(20)]))

    assert scope.cancelled_caught
    await until_gone(processes)
    with anyio.fail_after(30):
        assert len(await pool.decode_all(*in_bounds([picture(10), picture(20)]))) == 2


async def test_no_more_processes_run_than_allowed(pool, picture):
    async with anyio.create_task_group() as group:
        for level in range(12):
            group.start_soon(pool.decode, picture(level), BOUNDS)

    assert len(pool_processes()) == 2
