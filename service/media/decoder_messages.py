"""Every message between a web worker and a decoder process; a frame each, bytes behind it.

A frame is a length of four bytes and msgpack; nothing is unpickled. The encoded file follows its
request raw, and the pixels their reply, so that neither is copied into a frame. A request has one
reply, but for Render: after Opened come as many Decoded as it names pages, or the refusal that
ends them.
"""

import struct
from typing import BinaryIO, NamedTuple, TypeAlias

import msgspec

from service.media.decoded_image import DecodedImage
from service.media.refusal import Refusal
from service.media.resize import ResizeBounds
from service.media.sampled_video import SampledVideo
from service.media.sampling import VideoBounds

_LENGTH = struct.Struct(">I")
# The longest has the times of a video's frames, or the numbers of a document's pages.
_MAX_FRAME_BYTES = 64 * 1024


class DecoderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder process is told at its start; units as in MediaLimits."""

    formats: tuple[str, ...]
    max_source_pixels: int
    max_memory_bytes: int
    max_cpu_seconds: int
    document_dpi: int
    max_document_pages: int
    max_video_seconds: int
    max_video_frames: int
    max_video_cpu_seconds: int


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Are you there? Answered by the same."""


class Decode(msgspec.Struct, frozen=True, kw_only=True, tag="decode"):
    """Decode the file of this many bytes that follows."""

    num_bytes: int
    bounds: ResizeBounds


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag="measure"):
    """Read the header of the file of this many bytes that follows."""

    num_bytes: int


class Render(msgspec.Struct, frozen=True, kw_only=True, tag="render"):
    """Draw pages of the document of this many bytes that follows; None is all of them."""

    num_bytes: int
    pages: tuple[int, ...] | None
    bounds: ResizeBounds


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag="sample"):
    """Sample the video of this many bytes that follows."""

    num_bytes: int
    bounds: VideoBounds


class Decoded(msgspec.Struct, frozen=True, kw_only=True, tag="decoded"):
    """The fields of DecodedImage; height x width x 3 bytes of pixels follow."""

    height: int
    width: int
    content_hash: bytes
    source_height: int
    source_width: int
    source_format: str
    source_mode: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, image: DecodedImage) -> "Decoded":
        """Describe a picture whose pixels go beside it."""
        return cls(**{name: getattr(image, name) for name in cls.__struct_fields__})

    def with_pixels(self, pixels: bytes) -> DecodedImage:
        """Put a picture together again."""
        return DecodedImage(pixels=pixels, **msgspec.structs.asdict(self))


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """A document of num_pages pages; a Decoded follows for each of these numbers."""

    num_pages: int
    numbers: tuple[int, ...]


class Sampled(msgspec.Struct, frozen=True, kw_only=True, tag="sampled"):
    """The fields of SampledVideo; num_frames x height x width x 3 bytes of pixels follow."""

    num_frames: int
    height: int
    width: int
    content_hash: bytes
    timestamps: tuple[float, ...]
    source_height: int
    source_width: int
    source_frames: int
    source_seconds: float
    source_format: str

    @classmethod
    def of(cls, video: SampledVideo) -> "Sampled":
        """Describe a video whose pixels go beside it."""
        return cls(**{name: getattr(video, name) for name in cls.__struct_fields__})

    def with_pixels(self, pixels: bytes) -> SampledVideo:
        """Put a video together again."""
        return SampledVideo(pixels=pixels, **msgspec.structs.asdict(self))


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """Width times height, from the header."""

    num_pixels: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The file cannot be used. num_pages: as in MediumRefused."""

    refusal: Refusal
    num_pages: int = 0


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A fault of ours, for the log: the exception's type, never its text."""

    error: str


DecoderRequest: TypeAlias = Hello | Decode | Measure | Render | Sample
DecoderReply: TypeAlias = Hello | Decoded | Measured | Opened | Sampled | Refused | Failed


class Answer(NamedTuple):
    """A reply and the pixels behind it, if any."""

    reply: DecoderReply
    pixels: bytes = b""


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
