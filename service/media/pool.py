"""Decodes files in processes of their own, so that hostile bytes never meet a web worker.

Knows which process is free and whom a death is to be blamed on; not how files are decoded.
"""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import anyio
import anyio.to_thread
import structlog

from service.errors import InternalError, ServiceError
from service.media.budget import MediaLimits, check_images, check_total_pixels
from service.media.decoded_image import DecodedImage
from service.media.decoder_messages import (
    Answer,
    Decode,
    Decoded,
    DecoderRequest,
    DecoderSettings,
    Failed,
    Hello,
    Measure,
    Measured,
    Opened,
    Refused,
    Render,
    Sample,
    Sampled,
)
from service.media.decoder_process import DecoderDied, DecoderProcess
from service.media.encoded import EncodedFile
from service.media.findings import blame, to_error
from service.media.medium import Document, Page
from service.media.pages import read_pages
from service.media.resize import ResizeBounds
from service.media.sampled_video import SampledVideo
from service.media.sampling import VideoBounds

Found = TypeVar("Found")
Wanted = TypeVar("Wanted")
_Wanted: TypeAlias = tuple[EncodedFile, ResizeBounds]

_log = structlog.get_logger()


class ImagePool:
    """A bounded number of processes that decode pictures, documents and videos, one each at a time.

    A file is blamed for the second process that dies of it or stands still at it, or for one
    that ran out of CPU time; no other file suffers, and new processes take the dead ones'
    places. A cancelled caller's process is killed. All end with `close`, or when this process
    is gone.
    """

    def __init__(self, limits: MediaLimits, *, num_processes: int) -> None:
        self._limits = limits
        self._settings = DecoderSettings(
            formats=limits.formats,
            max_source_pixels=limits.max_image_pixels,
            max_memory_bytes=limits.max_decode_memory_bytes,
            max_cpu_seconds=limits.max_decode_cpu_seconds,
            document_dpi=limits.document_dpi,
            max_document_pages=limits.max_document_pages,
            max_video_seconds=limits.max_video_seconds,
            max_video_frames=limits.max_video_frames,
            max_video_cpu_seconds=limits.max_video_cpu_seconds,
        )
        self._num_processes = num_processes
        self._turns = anyio.Semaphore(num_processes)
        self._threads = anyio.CapacityLimiter(num_processes)
        self._idle: list[DecoderProcess] = []
        self._closed = False

    async def start(self) -> None:
        """Start every process, so that no request waits for that.

        Raises:
            ExceptionGroup: of InternalError; processes cannot start here.
        """
        async with anyio.create_task_group() as group:
            for _ in range(self._num_processes):
                group.start_soon(self._check_health)

    def close(self) -> None:
        """End the idle processes; those at work when they have answered. Idempotent."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def decode(self, image: EncodedFile, bounds: ResizeBounds) -> DecodedImage:
        """Decode one picture.

        Raises:
            ImageRefused: the picture cannot be used; `param` is the picture's.
            TooLarge: too many pixels.
            InternalError: the fault is ours.
        """
        request = Decode(num_bytes=len(image.encoded), bounds=bounds)
        match await self._judge(request, image):
            case [Answer(Decoded() as reply, pixels)]:
                return reply.with_pixels(pixels)
            case _:
                raise InternalError

    async def render_document(
        self, document: EncodedFile, pages: str | None, bounds: ResizeBounds
    ) -> Document:
        """Draw pages of a document: those named, as in `1-3,7`, or all.

        Raises:
            RequestInvalid: `pages` is malformed or names one that is not there.
            TooLarge: too many pages, or one beyond all measure.
            ImageRefused: the document cannot be used; `param` is the document's.
            InternalError: the fault is ours.
        """
        limit = self._limits.max_document_pages
        wanted = None
        if pages is not None:
            wanted = read_pages(pages, max_pages=limit, param=document.param)
        request = Render(num_bytes=len(document.encoded), pages=wanted, bounds=bounds)
        opened, *drawn = await self._judge(request, document)
        if not isinstance(opened.reply, Opened):
            raise InternalError
        numbered = zip(opened.reply.numbers, drawn, strict=True)
        return Document(
            opened.reply.num_pages,
            tuple(
                Page(number, reply.with_pixels(pixels))
                for number, (reply, pixels) in numbered
                if isinstance(reply, Decoded)
            ),
        )

    async def sample_video(self, video: EncodedFile, bounds: VideoBounds) -> SampledVideo:
        """Decode the frames of a video that the model is to see.

        bounds: the checkpoint's; the server's own cut them, or a video might fill the context.

        Raises:
            ImageRefused: the video cannot be used, or no video can here; `param` is the video's.
            TooLarge: too long, or its frames too large.
            InternalError: the fault is ours.
        """
        max_pixels = min(bounds.max_pixels, self._limits.max_video_pixels)
        min_pixels = min(bounds.min_pixels, max_pixels)
        own_bounds = replace(bounds, min_pixels=min_pixels, max_pixels=max_pixels)
        request = Sample(num_bytes=len(video.encoded), bounds=own_bounds)
        match await self._judge(request, video):
            case [Answer(Sampled() as reply, pixels)]:
                return reply.with_pixels(pixels)
            case _:
                raise InternalError

    async def decode_all(
        self, images: Sequence[EncodedFile], bounds: Sequence[ResizeBounds]
    ) -> list[DecodedImage]:
        """Decode a request's pictures side by side, in their order; equal files only once.

        bounds: each picture's. Of several faults, the first picture's is the one told.

        Raises:
            RequestInvalid: too many pictures.
            ImageRefused, TooLarge, InternalError: as in decode, and over all pictures.
        """
        check_images(images, self._limits)
        distinct, places = await _distinct(list(zip(images, bounds, strict=True)))
        await self._check_total_pixels(distinct, places)
        decoded = await _side_by_side(distinct, lambda wanted: self.decode(*wanted))
        return [decoded[place] for place in places]

    async def _check_total_pixels(self, distinct: Sequence[_Wanted], places: list[int]) -> None:
        # Only a request of many pictures can go over; it pays for a look at every header first.
        if len(places) * self._limits.max_image_pixels <= self._limits.max_total_pixels:
            return
        num_pixels = await _side_by_side(distinct, lambda wanted: self._measure(wanted[0]))
        check_total_pixels([num_pixels[place] for place in places], self._limits)

    async def _measure(self, image: EncodedFile) -> int:
        match await self._judge(Measure(num_bytes=len(image.encoded)), image):
            case [Answer(Measured(num_pixels=num_pixels))]:
                return num_pixels
            case _:
                raise InternalError

    async def _judge(self, request: DecoderRequest, file: EncodedFile) -> list[Answer]:
        """Ask about a file and turn a finding into the client's error."""
        try:
            answers = await self._try_twice(request, file.encoded)
        except DecoderDied as death:
            await self._check_health()
            finding = blame(request, out_of_time=death.out_of_time)
            raise to_error(finding, self._limits, file.param) from death
        match answers[-1].reply:  # only the last one can be bad: it ends the rest
            case Refused() as finding:
                raise to_error(finding, self._limits, file.param)
            case Failed(error=error):
                _log.error("decoder failed", error=error)
                raise InternalError
            case _:
                return answers

    async def _check_health(self) -> None:
        """Tell a file that kills its process from a pool that cannot work at all."""
        try:
            await self._ask(Hello(), b"")
        except DecoderDied as broken:
            raise InternalError from broken

    async def _try_twice(self, request: DecoderRequest, encoded: bytes) -> list[Answer]:
        """Ask again if the process died: that may have been another's doing."""
        try:
            return await self._ask(request, encoded)
        except DecoderDied as death:
            if death.out_of_time:
                raise
            return await self._ask(request, encoded)

    async def _ask(self, request: DecoderRequest, encoded: bytes) -> list[Answer]:
        async with self._turns:
            process = self._idle.pop() if self._idle else DecoderProcess(self._settings)
            answered = False
            try:
                answers = await anyio.to_thread.run_sync(
                    process.ask,
                    request,
                    encoded,
                    abandon_on_cancel=True,
                    limiter=self._threads,
                )
                answered = True
            finally:
                # Synchronous: nothing here can be cancelled.
                if answered and not self._closed:
                    self._idle.append(process)
                else:
                    process.discard()
            return answers


async def _side_by_side(
    wanted: Sequence[Wanted], work: Callable[[Wanted], Awaitable[Found]]
) -> list[Found]:
    """Await work on every picture at once; raise the first picture's error when all have ended.

    None is cancelled for another's fault: that would kill the processes of good pictures.
    """
    outcomes: dict[int, Found | ServiceError | MemoryError] = {}

    async def run(index: int, each: Wanted) -> None:
        try:
            outcomes[index] = await work(each)
        except (ServiceError, MemoryError) as error:
            outcomes[index] = error

    async with anyio.create_task_group() as group:
        for index, each in enumerate(wanted):
            group.start_soon(run, index, each)
    found: list[Found] = []
    for index in range(len(wanted)):
        outcome = outcomes[index]
        if isinstance(outcome, (ServiceError, MemoryError)):
            try:
                raise outcome
            finally:
                del outcome  # its traceback leads here: a cycle would keep the files
                outcomes.clear()
        found.append(outcome)
    return found


async def _distinct(wanted: Sequence[_Wanted]) -> tuple[list[_Wanted], list[int]]:
    """Find the different orders among a request's, and each picture's place among them."""
    if len(wanted) < 2:
        return list(wanted), list(range(len(wanted)))
    # In a thread, because hashing 64 MiB would hold up the event loop.
    return await anyio.to_thread.run_sync(_group_equal, wanted)


def _group_equal(wanted: Sequence[_Wanted]) -> tuple[list[_Wanted], list[int]]:
    num_of_length = Counter(len(image.encoded) for image, _ in wanted)
    place_of: dict[tuple[int, bytes, ResizeBounds], int] = {}
    distinct: list[_Wanted] = []
    places: list[int] = []
    for image, bounds in wanted:
        length = len(image.encoded)
        unsure = num_of_length[length] > 1
        key = (length, hashlib.blake2b(image.encoded).digest() if unsure else b"", bounds)
        place = place_of.setdefault(key, len(distinct))
        if place == len(distinct):
            distinct.append((image, bounds))
        places.append(place)
    return distinct, places
