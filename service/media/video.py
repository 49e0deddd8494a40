"""A video's bytes to the few frames the model sees; runs in a decoder process.

Reads the whole file's packets first, which decodes nothing, and believes those rather than the
header. Then only what the chosen frames need is decoded. PyAV is an optional dependency, loaded
with the first video. The picture alone is read: other streams meet no decoder.
"""

import hashlib
import io
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from PIL import Image

from service.media.container import sniff
from service.media.refusal import MediumRefused, Refusal
from service.media.sampled_video import SampledVideo
from service.media.sampling import VideoBounds, patch_times, sample_indices, smart_resize_frames

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from av.packet import Packet

_Decode: TypeAlias = "Callable[[Packet[VideoStream] | None], list[VideoFrame]]"

# No model takes as much as this; a slim video may go over its checkpoint's bound.
MAX_SAMPLED_PIXELS = 64 * 1024 * 1024

# Named, so that no other of the library's many parsers and decoders ever sees a client's bytes.
_DEMUXERS = {"mp4": "mov", "mov": "mov", "webm": "matroska", "mkv": "matroska"}
_DECODERS = "h264,hevc,vp8,vp9,libdav1d"
_MICROSECONDS = 1_000_000
# A file of which more is missing or broken shows something else than it did.
_MOST_FRAMES_LOST = 0.1
_TRANSPOSITIONS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class VideoSource:
    """Which videos are taken.

    max_seconds, max_frames: of the whole file. max_pixels: width times height of a frame.
    """

    max_seconds: int
    max_frames: int
    max_pixels: int


class _Timeline(NamedTuple):
    """A file's frames in the order they are shown, as counted.

    times: presentation times in units of the stream's time base. frame_rate: frames a second.
    """

    times: list[int]
    seconds: float
    frame_rate: float


def sample(encoded: bytes, source: VideoSource, bounds: VideoBounds) -> SampledVideo:
    """Decode the frames that the model sees, turned upright and resized, bicubic.

    Raises:
        MediumRefused: with the finding.
    """
    try:
        import av
    except ImportError as error:
        raise MediumRefused(Refusal.VIDEO_UNSUPPORTED) from error
    file_format = sniff(encoded)
    if file_format not in _DEMUXERS:
        raise MediumRefused(Refusal.VIDEO_FORMAT_UNSUPPORTED)
    options = {"codec_whitelist": _DECODERS}
    try:
        with av.open(
            io.BytesIO(encoded), mode="r", format=_DEMUXERS[file_format], options=options
        ) as container:
            stream = _video_stream(container)
            _check_header(container, stream, source)
            packets = _read_packets(container, stream, source)
            timeline = _timeline(packets, stream, source)
            indices = sample_indices(len(timeline.times), timeline.frame_rate, bounds)
            frames = _Frames(bounds, len(indices), source.max_pixels)
            shown = _decode(packets, stream, [timeline.times[index] for index in indices], frames)
    except (MediumRefused, MemoryError):
        raise
    except Exception as error:  # hostile bytes make the library raise nearly anything
        raise MediumRefused(Refusal.VIDEO_INVALID) from error
    shown += shown[-1:] * (-len(shown) % bounds.temporal_factor)
    pixels = b"".join(shown)
    height, width = frames.size
    return SampledVideo(
        num_frames=len(shown),
        height=height,
        width=width,
        pixels=pixels,
        content_hash=_content_hash(len(shown), height, width, pixels),
        timestamps=tuple(patch_times(indices, timeline.frame_rate, bounds.temporal_factor)),
        source_height=frames.source_size[0],
        source_width=frames.source_size[1],
        source_frames=len(timeline.times),
        source_seconds=timeline.seconds,
        source_format=file_format,
    )


def _content_hash(num_frames: int, height: int, width: int, pixels: bytes) -> bytes:
    digest = hashlib.blake2b(struct.pack("<III", num_frames, height, width), digest_size=32)
    digest.update(pixels)
    return digest.digest()


def _video_stream(container: "InputContainer") -> "VideoStream":
    """Choose the first stream that moves; a cover picture is a video stream too."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context.name not in _DECODERS.split(","):
                raise MediumRefused(Refusal.VIDEO_FORMAT_UNSUPPORTED)
            return stream
    raise MediumRefused(Refusal.VIDEO_INVALID)


def _check_header(container: "InputContainer", stream: "VideoStream", source: VideoSource) -> None:
    """Refuse by what the file says of itself; what it does not say is counted later."""
    if (container.duration or 0) > source.max_seconds * _MICROSECONDS:
        raise MediumRefused(Refusal.VIDEO_TOO_LONG)
    if stream.frames > source.max_frames:
        raise MediumRefused(Refusal.VIDEO_TOO_LONG)
    if stream.codec_context.width * stream.codec_context.height > source.max_pixels:
        raise MediumRefused(Refusal.VIDEO_TOO_MANY_PIXELS)


def _read_packets(
    container: "InputContainer", stream: "VideoStream", source: VideoSource
) -> list["Packet[VideoStream]"]:
    """Read every packet of the stream, in the file's order; they refer to no more than its bytes.

    Raises:
        MediumRefused: VIDEO_TOO_LONG as soon as there are too many, VIDEO_INVALID if a good part
            of those announced is missing.
    """
    packets: list[Packet[VideoStream]] = []
    for packet in container.demux(stream):
        if packet.pts is None or packet.is_discard:  # the end; or outside what is to be shown
            continue
        packets.append(packet)
        if len(packets) > source.max_frames:
            raise MediumRefused(Refusal.VIDEO_TOO_LONG)
    if len(packets) < max(1, stream.frames * (1 - _MOST_FRAMES_LOST)):
        raise MediumRefused(Refusal.VIDEO_INVALID)
    return packets


def _timeline(
    packets: Sequence["Packet[VideoStream]"], stream: "VideoStream", source: VideoSource
) -> _Timeline:
    times = sorted(packet.pts or 0 for packet in packets)
    span = float((times[-1] - times[0]) * (stream.time_base or 1))
    if span > source.max_seconds:
        raise MediumRefused(Refusal.VIDEO_TOO_LONG)
    announced = float(stream.average_rate or 0)
    counted = (len(times) - 1) / span if span > 0 else announced
    # The header's rate is the exact one, where it is not a wrong one.
    rate = announced if abs(announced - counted) <= counted * 0.1 else counted
    if rate <= 0:
        rate = 1.0
    return _Timeline(times, span + 1 / rate, rate)


class _Frames:
    """Turns decoded frames into the model's pixels; the first one settles the size of all."""

    def __init__(self, bounds: VideoBounds, num_frames: int, max_pixels: int) -> None:
        self._bounds = bounds
        # One alone is shown twice, to fill its patch.
        self._num_frames = max(num_frames, bounds.temporal_factor)
        self._max_pixels = max_pixels
        self.size = (0, 0)
        self.source_size = (0, 0)

    def pixels(self, frame: "VideoFrame") -> bytes:
        """Give uint8 RGB [height, width, 3].

        Raises:
            MediumRefused: VIDEO_TOO_MANY_PIXELS, or ASPECT_RATIO.
        """
        if frame.width * frame.height > self._max_pixels:
            raise MediumRefused(Refusal.VIDEO_TOO_MANY_PIXELS)
        image = cast("Image.Image", frame.to_image())  # pyright: ignore[reportUnknownMemberType]
        turn = _TRANSPOSITIONS.get(frame.rotation % 360)
        if turn is not None:
            image = image.transpose(turn)
        if self.size == (0, 0):
            self._settle(image.height, image.width)
        height, width = self.size
        return image.resize((width, height), Image.Resampling.BICUBIC).tobytes()

    def _settle(self, height: int, width: int) -> None:
        self.source_size = (height, width)
        try:
            self.size = smart_resize_frames(self._num_frames, height, width, self._bounds)
        except ValueError as error:
            raise MediumRefused(Refusal.ASPECT_RATIO) from error
        if (self._num_frames + 1) * self.size[0] * self.size[1] > MAX_SAMPLED_PIXELS:
            raise MediumRefused(Refusal.VIDEO_TOO_MANY_PIXELS)


def _decode(
    packets: Sequence["Packet[VideoStream]"],
    stream: "VideoStream",
    wanted: Sequence[int],
    frames: _Frames,
) -> list[bytes]:
    """Decode the frames of the wanted times; one that is broken is replaced by its neighbour.

    Raises:
        MediumRefused: VIDEO_INVALID if too many are broken.
    """
    times = frozenset(wanted)
    found: dict[int, bytes] = {}
    for frame in _decoded(packets, stream, times):
        if frame.pts is not None and frame.pts in times and frame.pts not in found:
            found[frame.pts] = frames.pixels(frame)
    if not found or len(times - found.keys()) > _MOST_FRAMES_LOST * len(times):
        raise MediumRefused(Refusal.VIDEO_INVALID)
    return [found[min(found, key=lambda time, at=at: abs(time - at))] for at in wanted]


def _decoded(
    packets: Sequence["Packet[VideoStream]"], stream: "VideoStream", wanted: frozenset[int]
) -> Iterator["VideoFrame"]:
    """Decode every stretch of packets that wanted frames depend on, and nothing else."""
    from av.error import InvalidDataError

    context = stream.codec_context
    context.thread_count = 1
    # PyAV's stub leaves the packet's type open.
    decode = cast("_Decode", context.decode)  # pyright: ignore[reportUnknownMemberType]
    needed = _needed(packets, wanted)
    for is_needed, stretch in itertools.groupby(range(len(packets)), key=needed.__getitem__):
        if not is_needed:
            continue
        for place in stretch:
            packet = packets[place]
            # What no other frame refers to need not be decoded either.
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            try:
                yield from decode(packet)
            except InvalidDataError:
                continue
        context.skip_frame = "DEFAULT"
        yield from decode(None)
        context.flush_buffers()


def _needed(packets: Sequence["Packet[VideoStream]"], wanted: frozenset[int]) -> list[bool]:
    """Mark what to decode for the wanted frames: from a key frame on, up to each of them.

    A frame that is shown before the key frame it follows depends on the one before that as well.
    """
    needed = [False] * len(packets)
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe] or [0]
    for place, packet in enumerate(packets):
        if packet.pts not in wanted:
            continue
        behind = [key for key in keys if key <= place] or [0]
        start = behind[-1]
        if (packet.pts or 0) < (packets[start].pts or 0) and len(behind) > 1:
            start = behind[-2]
        needed[start : place + 1] = [True] * (place + 1 - start)
    return needed
