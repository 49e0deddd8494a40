"""What one request may bring in as pictures, checked before any work is done for them."""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec

from service.conversation import MediaKind
from service.errors import RequestInvalid, TooLarge
from service.media.encoded import EncodedFile

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Format: TypeAlias = Literal["jpeg", "png", "webp", "gif", "bmp", "avif", "tiff", "heic"]

_MIB = 1024 * 1024


class MediaLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on media. Every one is told to the client that goes over it.

    max_images: pictures in a request; 16: more seldom fit the context.
    max_image_bytes: encoded bytes of one; 20 MiB: any camera's JPEG, and what hosted APIs take.
    max_total_bytes: encoded bytes of all of a request's; 64 MiB: legal pictures must not add up
        without end.
    max_image_pixels: width times height of one, from its header; 36 megapixels: up to 0.7 GB while
        decoding.
    max_total_pixels: the same over all of a request's; 200 megapixels: sixteen 12-megapixel photos.
    formats: of `jpeg`, `png`, `webp`, `gif`, `bmp`, `avif`, `tiff`, `heic`; the last three are off
        by default: their decoders are the largest and the pictures are rare. `heic` needs the
        extra of that name.
    max_decode_cpu_seconds: CPU time one picture or page may take; 10 s: five times what the largest
        honest one needs. Over it its process ends, as it does when it has not answered after 10 s
        and three times as long by the clock.
    max_decode_memory_bytes: memory of a decoder process; 2 GiB: three times what the largest honest
        picture needs.
    max_document_bytes: of one PDF; 32 MiB, what hosted APIs take.
    max_document_pages: pages shown of all of a request's documents; 16: each costs what a picture
        does.
    document_dpi: dots per inch that a page is drawn with, before the model's own bounds; 150 keeps
        footnotes legible.
    max_video_bytes: of one video; 64 MiB, as much as a body may have.
    max_video_seconds: how long a video may last; 600 s.
    max_video_frames: frames of the whole file, counted; 36000: 600 s of 60 frames a second.
    max_video_pixels: frames x height x width as the model sees them; 8 megapixels, 4096 tokens of
        the published checkpoints: a video should not fill the context.
    max_video_cpu_seconds: CPU time a video may take; 60 s. Over it its process ends; by the clock
        as with a picture.
    """

    max_images: Count = 16
    max_image_bytes: Count = 20 * _MIB
    max_total_bytes: Count = 64 * _MIB
    max_image_pixels: Count = 36_000_000
    max_total_pixels: Count = 200_000_000
    formats: tuple[Format, ...] = ("jpeg", "png", "webp", "gif", "bmp")
    max_decode_cpu_seconds: Count = 10
    max_decode_memory_bytes: Count = 2048 * _MIB
    max_document_bytes: Count = 32 * _MIB
    max_document_pages: Count = 16
    document_dpi: Annotated[int, msgspec.Meta(ge=36, le=600)] = 150
    max_video_bytes: Count = 64 * _MIB
    max_video_seconds: Count = 600
    max_video_frames: Count = 36_000
    max_video_pixels: Count = 8 * 1024 * 1024
    max_video_cpu_seconds: Count = 60


class MediaBudget:
    """What is left of one request's limits; drawn on as its pictures arrive."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self._num_images = 0
        self._num_bytes = 0

    def take_image(self, param: str) -> None:
        """Count one picture, before it is fetched or decoded.

        Raises:
            RequestInvalid: `too_many_images`.
        """
        self._num_images += 1
        if self._num_images > self._limits.max_images:
            raise RequestInvalid(
                "too_many_images",
                f"A request may have {self._limits.max_images} images.",
                param=param,
            )

    def take_bytes(self, num_bytes: int, param: str, kinds: Sequence[MediaKind]) -> None:
        """Count one file's encoded bytes; kinds: what it may be.

        Raises:
            TooLarge: as check_file_bytes or, over all files, `media_budget_exceeded`.
        """
        check_file_bytes(num_bytes, param, kinds, self._limits)
        self._num_bytes += num_bytes
        if self._num_bytes > self._limits.max_total_bytes:
            raise TooLarge(
                "media_budget_exceeded",
                f"A request's images may have {self._limits.max_total_bytes} bytes together.",
                param=param,
            )


def check_image_bytes(num_bytes: int, param: str, limits: MediaLimits) -> None:
    """Refuse one picture's encoded bytes by their number.

    Raises:
        TooLarge: `image_too_large`.
    """
    if num_bytes > limits.max_image_bytes:
        raise TooLarge(
            "image_too_large", f"An image may have {limits.max_image_bytes} bytes.", param=param
        )


def check_file_bytes(
    num_bytes: int, param: str, kinds: Sequence[MediaKind], limits: MediaLimits
) -> None:
    """Refuse a file by its number of bytes, where it is too large for all that it may be.

    Raises:
        TooLarge: `image_too_large` for what can only be a picture, `file_too_large`.
    """
    if tuple(kinds) == ("image",):
        check_image_bytes(num_bytes, param, limits)
        return
    allowed: dict[MediaKind, int] = {
        "image": limits.max_image_bytes,
        "document": limits.max_document_bytes,
        "video": limits.max_video_bytes,
    }
    max_bytes = max(allowed[kind] for kind in kinds)
    if num_bytes > max_bytes:
        raise TooLarge(
            "file_too_large", f"A file of this kind may have {max_bytes} bytes.", param=param
        )


def check_images(images: Sequence[EncodedFile], limits: MediaLimits) -> None:
    """Refuse a request's pictures by their number and size, the number first.

    Raises:
        RequestInvalid: `too_many_images`.
        TooLarge: `image_too_large` or `media_budget_exceeded`.
    """
    budget = MediaBudget(limits)
    for image in images:
        budget.take_image(image.param)
    for image in images:
        budget.take_bytes(len(image.encoded), image.param, ("image",))


def check_total_pixels(num_pixels: Sequence[int], limits: MediaLimits) -> None:
    """Refuse a request's pictures by the sum of their source pixels.

    Raises:
        TooLarge: `media_budget_exceeded`.
    """
    if sum(num_pixels) > limits.max_total_pixels:
        raise TooLarge(
            "media_budget_exceeded",
            f"A request's images may have {limits.max_total_pixels} pixels together.",
        )
