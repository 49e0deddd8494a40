"""Videos, sampled: the right frames at the right times, and nothing on the word of a header."""

import struct
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.media.refusal import MediumRefused, Refusal
from service.media.sampled_video import SampledVideo
from service.media.sampling import VideoBounds, sample_indices
from service.media.video import VideoSource, sample

SOURCE = VideoSource(max_seconds=60, max_frames=2000, max_pixels=1_000_000)
BOUNDS = VideoBounds(factor=32, temporal_factor=2, min_pixels=4096, max_pixels=1_000_000)


def finding(encoded: bytes, source: VideoSource = SOURCE) -> Refusal:
    with pytest.raises(MediumRefused) as caught:
        sample(encoded, source, BOUNDS)
    return caught.value.refusal


def frames(video: SampledVideo) -> list[Image.Image]:
    size = video.height * video.width * 3
    return [
        Image.frombytes("RGB", (video.width, video.height), video.pixels[i : i + size])
        for i in range(0, len(video.pixels), size)
    ]


def level(frame: Image.Image, x: int = 8, y: int = 8) -> int:
    return frame.convert("L").crop((x, y, x + 1, y + 1)).tobytes()[0]


def shows(video: SampledVideo, indices: list[int]) -> bool:
    """Whether these frames of a video whose frame i is grey 4 i are what the model gets."""
    seen = [level(frame) for frame in frames(video)]
    return len(seen) == len(indices) and all(
        abs(each - 4 * index) <= 3 for each, index in zip(seen, indices, strict=True)
    )


@pytest.mark.parametrize(
    ("file_format", "codec", "name", "options"),
    [
        pytest.param("mp4", "libx264", "mp4", {}, id="H.264 in MP4"),
        pytest.param("mp4", "libx265", "mp4", {"x265-params": "log-level=none"}, id="H.265"),
        pytest.param("mov", "libx264", "mov", {}, id="QuickTime"),
        pytest.param("webm", "libvpx", "webm", {}, id="VP8 in WebM"),
        pytest.param("webm", "libvpx-vp9", "webm", {}, id="VP9 in WebM"),
        pytest.param("matroska", "libx264", "mkv", {}, id="Matroska"),
        pytest.param("mp4", "libsvtav1", "mp4", {"preset": "12"}, id="AV1"),
    ],
)
def test_every_container_and_codec_gives_the_frames_asked_for(
    file_format, codec, name, options, make_video
):
    video = sample(make_video(60, file_format=file_format, codec=codec, **options), SOURCE, BOUNDS)

    assert shows(video, [0, 20, 39, 59])
    assert (video.height, video.width, video.num_frames) == (64, 96, 4)
    assert [f"{seconds:.1f}" for seconds in video.timestamps] == ["0.3", "1.6"]
    assert (video.source_frames, video.source_format) == (60, name)
    assert video.source_seconds == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"g": "250", "bf": "0"}, id="one key frame"),
        pytest.param({"g": "12", "bf": "3"}, id="many key frames"),
        pytest.param({"g": "12", "bf": "3", "x264-params": "open-gop=1"}, id="open groups"),
        pytest.param({"g": "1"}, id="only key frames"),
        pytest.param({"g": "30", "bf": "3", "b-pyramid": "normal"}, id="pyramids"),
    ],
)
@pytest.mark.parametrize("rate", [2, 7, 30])
def test_skipping_what_no_frame_needs_changes_no_pixel(options, rate, make_video):
    """Every frame is asked for once; then some, which must be the same."""
    encoded = make_video(60, rate=rate, **options)
    every = VideoBounds(32, 2, 4096, 10_000_000, frames_per_second=1000, max_frames=60)
    some = VideoBounds(32, 2, 4096, 10_000_000, frames_per_second=0.01, min_frames=6)
    all_frames = frames(sample(encoded, SOURCE, every))

    assert len(all_frames) == 60
    chosen = sample_indices(60, rate, some)
    assert [all_frames[index] for index in chosen] == frames(sample(encoded, SOURCE, some))


def test_an_odd_number_of_frames_ends_with_the_last_one_twice(make_video):
    video = sample(make_video(3), SOURCE, BOUNDS)

    assert shows(video, [0, 1, 2, 2])
    assert video.timestamps == pytest.approx((0.5 / 30, 2 / 30))


def test_a_single_frame_is_a_video_too(make_video):
    video = sample(make_video(1), SOURCE, BOUNDS)

    assert shows(video, [0, 0])
    assert video.timestamps == (0.0,)


def test_equal_videos_hash_equally_and_others_do_not(make_video):
    videos = [sample(make_video(n), SOURCE, BOUNDS) for n in (8, 8, 9)]

    assert len({video.content_hash for video in videos}) == 2
    assert len(videos[0].content_hash) == 32


def test_all_frames_together_stay_within_the_bound(make_video):
    bounds = VideoBounds(32, 2, 4096, 50_000)
    video = sample(make_video(30, size=(640, 360)), SOURCE, bounds)

    assert video.num_frames * video.height * video.width <= 50_000
    assert (video.source_height, video.source_width) == (360, 640)


def quarter(_: int) -> Image.Image:
    image = Image.new("RGB", (96, 64))
    image.paste((255, 255, 255), (0, 0, 48, 32))  # upper left
    return image


@pytest.mark.parametrize(
    ("rotation", "size", "place"),
    [
        pytest.param(0, (96, 64), (8, 8), id="upright"),
        pytest.param(90, (64, 96), (8, 88), id="to the left"),
        pytest.param(-90, (64, 96), (56, 8), id="to the right"),
        pytest.param(180, (96, 64), (88, 56), id="on its head"),
    ],
)
def test_a_turned_recording_comes_out_upright(rotation, size, place, make_video):
    video = sample(make_video(4, draw=quarter, rotation=rotation), SOURCE, BOUNDS)
    picture = frames(video)[0]

    assert picture.size == size
    assert level(picture, *place) > 200
    assert sum(level(picture, *at) > 128 for at in corners(*size)) == 1


def corners(width: int, height: int) -> list[tuple[int, int]]:
    return [(x, y) for x in (8, width - 8) for y in (8, height - 8)]


def test_uneven_frames_are_spread_over_the_whole_time(make_video):
    """Ten frames in ten seconds, one more after forty: a frame in four seconds, on average."""
    times = [*range(0, 300, 30), 1200]
    video = sample(make_video(11, times=times), SOURCE, BOUNDS)

    assert video.source_frames == 11
    assert video.timestamps[0] < 10
    assert 30 < video.timestamps[-1] <= video.source_seconds


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(VideoSource(1, 2000, 10**6), Refusal.VIDEO_TOO_LONG, id="seconds"),
        pytest.param(VideoSource(60, 59, 10**6), Refusal.VIDEO_TOO_LONG, id="frames"),
        pytest.param(VideoSource(60, 60, 96 * 64 - 1), Refusal.VIDEO_TOO_MANY_PIXELS, id="pixels"),
    ],
)
@pytest.mark.parametrize("file_format", ["mp4", "webm"])
def test_what_goes_over_a_bound_is_refused(source, expected, file_format, make_video):
    codec = "libx264" if file_format == "mp4" else "libvpx"

    assert finding(make_video(60, file_format=file_format, codec=codec), source) == expected


def test_the_bounds_themselves_are_allowed(make_video):
    assert sample(make_video(60), VideoSource(2, 60, 96 * 64), BOUNDS).source_frames == 60


def test_a_header_that_hides_the_frames_is_not_believed(make_video):
    """A WebM without its length: what a recorder leaves that was cut off."""
    encoded = make_video(60, file_format="webm", codec="libvpx")
    duration = encoded.index(b"\x44\x89\x88") + 3
    lying = encoded[:duration] + struct.pack(">d", 1.0) + encoded[duration + 8 :]

    assert sample(lying, SOURCE, BOUNDS).source_frames == 60
    assert finding(lying, VideoSource(1, 2000, 10**6)) == Refusal.VIDEO_TOO_LONG


def test_an_announced_length_beyond_the_bound_is_refused_unread(make_video):
    encoded = make_video(4, file_format="webm", codec="libvpx")
    duration = encoded.index(b"\x44\x89\x88") + 3
    lying = encoded[:duration] + struct.pack(">d", 36_000_000.0) + encoded[duration + 8 :]

    assert finding(lying) == Refusal.VIDEO_TOO_LONG


def test_a_slim_video_is_refused(make_video):
    assert finding(make_video(4, size=(2048, 2))) == Refusal.ASPECT_RATIO


@pytest.mark.parametrize(
    ("file_format", "codec"),
    [
        pytest.param("avi", "mpeg4", id="another container"),
        pytest.param("mp4", "mpeg4", id="another codec"),
    ],
)
def test_other_formats_are_refused_by_name(file_format, codec, make_video):
    encoded = make_video(4, file_format=file_format, codec=codec)

    assert finding(encoded) == Refusal.VIDEO_FORMAT_UNSUPPORTED


def test_a_film_without_its_end_is_broken(make_video):
    encoded = make_video(60, movflags="faststart")

    assert finding(encoded[: len(encoded) // 2]) == Refusal.VIDEO_INVALID
    assert finding(b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + bytes(100)) == Refusal.VIDEO_INVALID


def test_without_its_library_a_server_says_so(make_video, monkeypatch):
    encoded = make_video(2)
    monkeypatch.setitem(sys.modules, "av", None)

    assert finding(encoded) == Refusal.VIDEO_UNSUPPORTED


@pytest.fixture(scope="module")
def short_video(make_video) -> bytes:
    return make_video(6)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_video_is_decoded_or_a_finding(data, short_video):
    encoded = bytearray(short_video)
    places = st.integers(0, len(encoded) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        encoded[place] = data.draw(st.integers(0, 255))
    with suppress(MediumRefused):
        sample(bytes(encoded), SOURCE, BOUNDS)
