"""Every message between a web worker and a decoder process; a frame each, bytes behind it.

A frame is a length of four bytes and msgpack; nothing is unpickled. The encoded file follows its
request raw, and the pixels their reply, so that neither is copied into a frame.
"""

import struct
from typing import BinaryIO, TypeAlias

import msgspec

from service.media.refusal import Refusal
from service.media.resize import ResizeBounds

_LENGTH = struct.Struct(">I")
_MAX_FRAME_BYTES = 4096


class DecoderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder process is told at its start; units as in MediaLimits."""

    formats: tuple[str, ...]
    max_source_pixels: int
    max_memory_bytes: int
    max_cpu_seconds: int


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Are you there? Answered by the same."""


class Decode(msgspec.Struct, frozen=True, kw_only=True, tag="decode"):
    """Decode the file of this many bytes that follows."""

    num_bytes: int
    bounds: ResizeBounds


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag="measure"):
    """Read the header of the file of this many bytes that follows."""

    num_bytes: int


class Decoded(msgspec.Struct, frozen=True, kw_only=True, tag="decoded"):
    """The fields of DecodedImage; height x width x 3 bytes of pixels follow."""

    height: int
    width: int
    content_hash: bytes
    source_height: int
    source_width: int
    source_format: str


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """Width times height, from the header."""

    num_pixels: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The picture cannot be used."""

    refusal: Refusal


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A fault of ours, for the log: the exception's type, never its text."""

    error: str


DecoderRequest: TypeAlias = Hello | Decode | Measure
DecoderReply: TypeAlias = Hello | Decoded | Measured | Refused | Failed

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(DecoderRequest)
_reply_decoder = msgspec.msgpack.Decoder(DecoderReply)


def write_frame(file: BinaryIO, message: DecoderRequest | DecoderReply) -> None:
    """Write one message; the caller flushes."""
    frame = _encoder.encode(message)
    file.write(_LENGTH.pack(len(frame)) + frame)


def read_request(file: BinaryIO) -> DecoderRequest:
    """Wait for a request.

    Raises:
        EOFError: the other side has gone.
    """
    return _request_decoder.decode(_read_frame(file))


def read_reply(file: BinaryIO) -> DecoderReply:
    """Wait for a reply, which a decoder taken over by a hostile picture may have written.

    Raises:
        EOFError: the other side has gone.
        ValueError: not a reply.
    """
    # DecodeError is a ValueError.
    return _reply_decoder.decode(_read_frame(file))


def read_exactly(file: BinaryIO, num_bytes: int) -> bytes:
    """Read raw bytes.

    Raises:
        EOFError: the other side has gone.
    """
    content = file.read(num_bytes)
    if len(content) != num_bytes:
        raise EOFError
    return content


def _read_frame(file: BinaryIO) -> bytes:
    (num_bytes,) = _LENGTH.unpack(read_exactly(file, _LENGTH.size))
    if num_bytes > _MAX_FRAME_BYTES:
        raise ValueError("frame too long")
    return read_exactly(file, num_bytes)
