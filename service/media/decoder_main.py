"""A decoder process: reads files from its standard input, writes pixels to its output.

Started as `python -m service.media.decoder_main SETTINGS`, one per place in the pool. Imports
little, so that it starts quickly; ends when its input does.
"""

import os
import signal
import sys
from collections.abc import Iterator
from typing import BinaryIO, assert_never

import msgspec

from service.media import pdf
from service.media.confine import cpu_limited, limit_memory
from service.media.decode import SourceBounds, decode, measure
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
    read_exactly,
    read_request,
    write_frame,
)
from service.media.refusal import MediumRefused, Refusal
from service.media.video import VideoSource, sample


def main() -> None:
    """Answer one request after the other until the worker is gone."""
    settings = msgspec.json.decode(sys.argv[1], type=DecoderSettings)
    # Ctrl-C reaches the whole terminal group; the worker decides when its decoders end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_memory(settings.max_memory_bytes)
    with sys.stdin.buffer as requests, _claim_stdout() as replies:
        while True:
            try:
                request = read_request(requests)
            except EOFError:
                return
            num_bytes = 0 if isinstance(request, Hello) else request.num_bytes
            encoded = read_exactly(requests, num_bytes)
            for reply, pixels in _in_time(answers(request, encoded, settings), request, settings):
                write_frame(replies, reply)
                replies.write(pixels)
                replies.flush()


def answers(request: DecoderRequest, encoded: bytes, settings: DecoderSettings) -> Iterator[Answer]:
    """Do what was asked, one answer at a time; whatever goes wrong is an answer too."""
    try:
        yield from _answers(request, encoded, settings)
    except MediumRefused as refused:
        yield Answer(Refused(refusal=refused.refusal, num_pages=refused.num_pages))
    except MemoryError:
        yield Answer(Refused(refusal=Refusal.MEMORY_EXCEEDED))
    except Exception as error:  # noqa: BLE001 - ours; the worker logs it and answers 500
        yield Answer(Failed(error=type(error).__name__))


def _answers(
    request: DecoderRequest, encoded: bytes, settings: DecoderSettings
) -> Iterator[Answer]:
    source = SourceBounds(formats=settings.formats, max_pixels=settings.max_source_pixels)
    match request:
        case Hello():
            yield Answer(Hello())
        case Measure():
            yield Answer(Measured(num_pixels=measure(encoded, source)))
        case Decode():
            image = decode(encoded, source, request.bounds)
            yield Answer(Decoded.of(image), image.pixels)
        case Render():
            yield from _render(request, encoded, settings)
        case Sample():
            video_source = VideoSource(
                max_seconds=settings.max_video_seconds,
                max_frames=settings.max_video_frames,
                max_pixels=settings.max_source_pixels,
            )
            video = sample(encoded, video_source, request.bounds)
            yield Answer(Sampled.of(video), video.pixels)
        case _:
            assert_never(request)


def _render(request: Render, encoded: bytes, settings: DecoderSettings) -> Iterator[Answer]:
    page_bounds = pdf.PageBounds(settings.document_dpi, settings.max_source_pixels)
    with pdf.opened(encoded) as document:
        numbers = pdf.choose_pages(document, request.pages, settings.max_document_pages)
        yield Answer(Opened(num_pages=len(document), numbers=numbers))
        for number in numbers:
            image = pdf.render(document, number, page_bounds, request.bounds)
            yield Answer(Decoded.of(image), image.pixels)


def _in_time(
    coming: Iterator[Answer], request: DecoderRequest, settings: DecoderSettings
) -> Iterator[Answer]:
    """Bound the CPU time of each answer: of every page, and of a video as a whole."""
    is_video = isinstance(request, Sample)
    max_seconds = settings.max_video_cpu_seconds if is_video else settings.max_cpu_seconds
    while True:
        with cpu_limited(max_seconds):
            answer = next(coming, None)
        if answer is None:
            return
        yield answer


def _claim_stdout() -> BinaryIO:
    """Keep standard output for replies; what a C library prints goes where errors go."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


if __name__ == "__main__":
    main()
