"""A decoder process: reads pictures from its standard input, writes pixels to its output.

Started as `python -m service.media.decoder_main SETTINGS`, one per place in the pool. Imports
little, so that it starts quickly; ends when its input does.
"""

import os
import signal
import sys
from typing import BinaryIO

import msgspec

from service.media.confine import cpu_limited, limit_memory
from service.media.decode import SourceBounds, decode, measure
from service.media.decoder_messages import (
    Decode,
    Decoded,
    DecoderReply,
    DecoderRequest,
    DecoderSettings,
    Failed,
    Hello,
    Measure,
    Measured,
    Refused,
    read_exactly,
    read_request,
    write_frame,
)
from service.media.refusal import PictureRefused


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
            with cpu_limited(settings.max_cpu_seconds):
                reply, pixels = answer(request, encoded, settings)
            write_frame(replies, reply)
            replies.write(pixels)
            replies.flush()


def answer(
    request: DecoderRequest, encoded: bytes, settings: DecoderSettings
) -> tuple[DecoderReply, bytes]:
    """Do what was asked; whatever goes wrong is a reply too."""
    source = SourceBounds(formats=settings.formats, max_pixels=settings.max_source_pixels)
    try:
        match request:
            case Hello():
                return Hello(), b""
            case Measure():
                return Measured(num_pixels=measure(encoded, source)), b""
            case Decode():
                image = decode(encoded, source, request.bounds)
    except PictureRefused as refused:
        return Refused(refusal=refused.refusal), b""
    except Exception as error:  # noqa: BLE001 - ours; the worker logs it and answers 500
        return Failed(error=type(error).__name__), b""
    reply = Decoded(
        height=image.height,
        width=image.width,
        content_hash=image.content_hash,
        source_height=image.source_height,
        source_width=image.source_width,
        source_format=image.source_format,
    )
    return reply, image.pixels


def _claim_stdout() -> BinaryIO:
    """Keep standard output for replies; what a C library prints goes where errors go."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


if __name__ == "__main__":
    main()
