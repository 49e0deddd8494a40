import io
import re
import stat

import httpx
import pytest
from PIL import Image

MEGABYTE = 1e6


@pytest.fixture(scope="module", autouse=True)
def used(service, picture, ask):
    """Have every part of every worker loaded before it is looked at."""
    question = ask("What is in this image?", picture("red", "circle"))
    photo = ask("What is in this image?", noise_of_megabytes())
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for asked in [question] * 32 + [photo] * 8:
            assert client.post("/v1/chat", json=asked).status_code == 200


def noise_of_megabytes() -> bytes:
    encoded = io.BytesIO()
    Image.effect_noise((3000, 3000), 50).save(encoded, "JPEG")
    return encoded.getvalue()


def titles(processes):
    return sorted(" ".join(process.cmdline()).rstrip() for process in processes)


def test_four_workers_share_one_inference_process(service):
    assert titles([service.inference(), *service.workers()]) == [
        "loupe inference",
        "loupe worker 0",
        "loupe worker 1",
        "loupe worker 2",
        "loupe worker 3",
    ]
    assert titles(service.family()[:1]) == ["loupe supervisor"]


def test_only_the_inference_process_maps_torch(service):
    def maps_torch(process):
        return any(re.search(r"torch|transformers", part.path) for part in process.memory_maps())

    assert maps_torch(service.inference())
    assert [
        process.pid
        for process in service.family()
        if process.pid != service.inference().pid and maps_torch(process)
    ] == []


def test_a_web_worker_stays_under_90_megabytes(service):
    sizes = {" ".join(each.cmdline()): each.memory_info().rss for each in service.workers()}

    assert all(size <= 90 * MEGABYTE for size in sizes.values()), sizes


def test_the_runtime_folder_is_closed_to_others(service):
    assert stat.S_IMODE(service.runtime_folder().stat().st_mode) == 0o700
