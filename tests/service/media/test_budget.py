import msgspec
import pytest

from service.errors import RequestInvalid, ServiceError, TooLarge
from service.media.budget import (
    MediaBudget,
    MediaLimits,
    check_images,
    check_total_pixels,
)
from service.media.encoded import EncodedFile

LIMITS = MediaLimits(max_images=3, max_image_bytes=10, max_total_bytes=20, max_total_pixels=100)


def pictures(*sizes: int) -> list[EncodedFile]:
    return [EncodedFile(bytes(size), f"images[{i}]") for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    "sizes", [(), (10,), (10, 10), (0, 0, 0)], ids=["none", "one", "all bytes", "all images"]
)
def test_what_is_within_the_limits_passes(sizes):
    check_images(pictures(*sizes), LIMITS)


@pytest.mark.parametrize(
    ("sizes", "error", "code", "param"),
    [
        pytest.param((1, 1, 1, 1), RequestInvalid, "too_many_images", "images[3]", id="number"),
        pytest.param((1, 11), TooLarge, "image_too_large", "images[1]", id="one"),
        pytest.param((9, 9, 9), TooLarge, "media_budget_exceeded", "images[2]", id="sum"),
        pytest.param((11, 1, 1, 1), RequestInvalid, "too_many_images", "images[3]", id="first"),
    ],
)
def test_what_is_over_a_limit_names_limit_and_field(sizes, error, code, param):
    with pytest.raises(ServiceError) as caught:
        check_images(pictures(*sizes), LIMITS)

    assert (error, code, param) == (type(caught.value), caught.value.code, caught.value.param)


def test_pictures_are_counted_before_they_have_bytes():
    budget = MediaBudget(LIMITS)
    for i in range(3):
        budget.take_image(f"images[{i}]")

    with pytest.raises(RequestInvalid):
        budget.take_image("images[3]")


def test_pixels_add_up():
    check_total_pixels([50, 50], LIMITS)
    with pytest.raises(TooLarge) as caught:
        check_total_pixels([50, 51], LIMITS)

    assert caught.value.code == "media_budget_exceeded"


def test_every_limit_is_documented():
    assert all(f"{name}:" in str(MediaLimits.__doc__) for name in MediaLimits.__struct_fields__)


def test_a_misspelt_limit_is_refused():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"max_image": 3}, MediaLimits)
