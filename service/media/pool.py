"""Decodes pictures in processes of their own, so that hostile bytes never meet a web worker.

The pool is anyio's. A pool process runs the file of this process's `__main__` once more under the
name `__mp_main__`, so `service/__main__.py` must import little and guard what it runs. anyio
pickles what crosses; only bytes, numbers and names do, both ways.
"""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_process
import anyio.to_thread

from service.conversation import ImagePart
from service.errors import ClientError, ImageRefused, InternalError, ServiceError, TooLarge
from service.media.budget import MediaLimits, check_images, check_total_pixels
from service.media.confine import run_confined
from service.media.decode import DecodedImage, SourceBounds, decode, measure, preload
from service.media.refusal import PictureRefused, Refusal
from service.media.resize import MAX_ASPECT_RATIO, ResizeBounds

Found = TypeVar("Found")
Arguments = TypeVarTuple("Arguments")


class ImagePool:
    """A bounded number of processes that decode pictures, one each at a time.

    A process that dies costs the picture it was busy with, nothing else: the next picture gets a
    new one. A cancelled caller's process is killed. Processes idle for five minutes end; all end
    with the event loop, or when this process is gone.
    """

    def __init__(self, limits: MediaLimits, *, num_processes: int) -> None:
        self._limits = limits
        self._source = SourceBounds(formats=limits.formats, max_pixels=limits.max_image_pixels)
        self._num_processes = num_processes
        self._processes = anyio.CapacityLimiter(num_processes)
        # anyio copies the arguments before it waits for a process; this keeps waiting pictures
        # from being held twice.
        self._turns = anyio.Semaphore(num_processes)

    async def start(self) -> None:
        """Start every process and import the decoders, so that no request waits for that.

        Raises:
            ExceptionGroup: of anyio.BrokenWorkerProcess; the processes cannot start here.
        """
        async with anyio.create_task_group() as group:
            for _ in range(self._num_processes):
                group.start_soon(self._call, preload)

    async def decode(self, image: ImagePart, bounds: ResizeBounds) -> DecodedImage:
        """Decode one picture.

        Raises:
            ImageRefused: the picture cannot be used; `param` is the picture's.
            TooLarge: too many pixels.
            InternalError: pool processes cannot start.
        """
        return await self._judge(image, decode, image.encoded, self._source, bounds)

    async def decode_all(
        self, images: Sequence[ImagePart], bounds: ResizeBounds
    ) -> list[DecodedImage]:
        """Decode a request's pictures side by side, in their order; equal files only once.

        Of several faults, the first picture's is the one told.

        Raises:
            RequestInvalid: too many pictures.
            ImageRefused, TooLarge, InternalError: as in decode, and over all pictures.
        """
        check_images(images, self._limits)
        distinct, places = await _distinct(images)
        await self._check_total_pixels(distinct, places)
        decoded = await _side_by_side(distinct, lambda image: self.decode(image, bounds))
        return [decoded[place] for place in places]

    async def _check_total_pixels(self, distinct: Sequence[ImagePart], places: list[int]) -> None:
        # Only a request of many pictures can go over; it pays for a look at every header first.
        if len(places) * self._limits.max_image_pixels <= self._limits.max_total_pixels:
            return
        num_pixels = await _side_by_side(
            distinct, lambda image: self._judge(image, measure, image.encoded, self._source)
        )
        check_total_pixels([num_pixels[place] for place in places], self._limits)

    async def _judge(
        self,
        image: ImagePart,
        function: Callable[[Unpack[Arguments]], Found],
        *arguments: *Arguments,
    ) -> Found:
        """Run a pool function on a picture and turn its finding into the client's error."""
        try:
            return await self._call(function, *arguments)
        except PictureRefused as refused:
            raise self._to_error(refused.refusal, image.param) from refused
        except anyio.BrokenWorkerProcess as death:
            await self._check_health()
            raise self._to_error(Refusal.INVALID, image.param) from death

    async def _check_health(self) -> None:
        """Tell a picture that kills its process from a pool that cannot work at all."""
        try:
            await self._call(preload)
        except anyio.BrokenWorkerProcess as broken:
            raise InternalError from broken

    async def _call(
        self,
        function: Callable[[Unpack[Arguments]], Found],
        *arguments: *Arguments,
    ) -> Found:
        async with self._turns:
            return await anyio.to_process.run_sync(
                run_confined,
                self._limits.max_decode_memory_bytes,
                self._limits.max_decode_cpu_seconds,
                function,
                *arguments,
                cancellable=True,
                limiter=self._processes,
            )

    def _to_error(self, refusal: Refusal, param: str) -> ClientError:
        match refusal:
            case Refusal.TOO_MANY_PIXELS:
                message = f"An image may have {self._limits.max_image_pixels} pixels."
                return TooLarge(refusal, message, param=param)
            case Refusal.EMPTY:
                message = "The image has no bytes."
            case Refusal.FORMAT_UNSUPPORTED:
                names = ", ".join(name.upper() for name in self._limits.formats)
                message = f"The image's format is not supported; supported are {names}."
            case Refusal.ASPECT_RATIO:
                message = f"An image's sides may differ by a factor of {MAX_ASPECT_RATIO}."
            case Refusal.TRUNCATED:
                message = "The image ends before its end."
            case Refusal.INVALID:
                message = "The image is broken and cannot be decoded."
        return ImageRefused(refusal, message, param=param)


async def _side_by_side(
    images: Sequence[ImagePart], work: Callable[[ImagePart], Awaitable[Found]]
) -> list[Found]:
    """Await work on every picture at once; raise the first picture's error when all have ended.

    None is cancelled for another's fault: that would kill the processes of good pictures.
    """
    outcomes: dict[int, Found | ServiceError] = {}

    async def run(index: int, image: ImagePart) -> None:
        try:
            outcomes[index] = await work(image)
        except ServiceError as error:
            outcomes[index] = error

    async with anyio.create_task_group() as group:
        for index, image in enumerate(images):
            group.start_soon(run, index, image)
    found: list[Found] = []
    for index in range(len(images)):
        outcome = outcomes[index]
        if isinstance(outcome, ServiceError):
            raise outcome
        found.append(outcome)
    return found


async def _distinct(images: Sequence[ImagePart]) -> tuple[list[ImagePart], list[int]]:
    """Find the different files among a request's, and each picture's place among them."""
    if len(images) < 2:
        return list(images), list(range(len(images)))
    # In a thread, because hashing 64 MiB would hold up the event loop.
    return await anyio.to_thread.run_sync(_group_equal, images)


def _group_equal(images: Sequence[ImagePart]) -> tuple[list[ImagePart], list[int]]:
    num_of_length = Counter(len(image.encoded) for image in images)
    place_of: dict[tuple[int, bytes], int] = {}
    distinct: list[ImagePart] = []
    places: list[int] = []
    for image in images:
        length = len(image.encoded)
        unsure = num_of_length[length] > 1
        key = (length, hashlib.blake2b(image.encoded).digest() if unsure else b"")
        place = place_of.setdefault(key, len(distinct))
        if place == len(distinct):
            distinct.append(image)
        places.append(place)
    return distinct, places
