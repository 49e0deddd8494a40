import pytest

from inference.protocol import Vision
from inference.spans import PromptInvalid, VisualLayout, check_vision, locate_spans, num_patches

IMAGE, VIDEO = 150, 151
LAYOUT = VisualLayout(IMAGE, VIDEO, patch_size=16, merge_size=2, temporal_patch_size=2)


def vision(rows=1, columns=1, num_frames=1, **changes):
    height, width = rows * 32, columns * 32
    values = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "pixels": memoryview(bytes(num_frames * height * width * 3)),
        "content_hash": bytes(32),
        **changes,
    }
    return Vision(**values)


def test_the_layout_comes_from_the_models_facts(kit):
    assert VisualLayout.of(kit.facts) == LAYOUT


def test_a_prompt_without_pictures_has_no_spans():
    assert locate_spans([1, 2, 3], [], LAYOUT) == ()


def test_pictures_are_found_in_order():
    prompt = [1, *[IMAGE] * 6, 2, *[IMAGE] * 2]

    first, second = locate_spans(prompt, [vision(2, 3), vision(1, 2)], LAYOUT)

    assert (first.start, first.end, first.rows, first.columns, first.vision) == (1, 7, 2, 3, 0)
    assert (second.start, second.end, second.rows, second.columns, second.vision) == (
        8,
        10,
        1,
        2,
        1,
    )


def test_two_pictures_without_a_token_between_them_are_two():
    spans = locate_spans([IMAGE] * 5, [vision(2, 2), vision(1, 1)], LAYOUT)

    assert [(span.start, span.num_tokens) for span in spans] == [(0, 4), (4, 1)]


def test_a_video_has_one_span_for_every_pair_of_frames():
    prompt = [VIDEO, VIDEO, 7, VIDEO, VIDEO]

    spans = locate_spans(prompt, [vision(1, 2, 4, video=True)], LAYOUT)

    assert [(span.start, span.vision, span.first_row) for span in spans] == [(0, 0, 0), (3, 0, 2)]


def test_patches_count_every_temporal_patch():
    assert num_patches(vision(2, 3), LAYOUT) == 24
    assert num_patches(vision(2, 3, 4, video=True), LAYOUT) == 48


@pytest.mark.parametrize(
    ("prompt", "visions"),
    [
        pytest.param([IMAGE], [], id="a-placeholder-without-a-picture"),
        pytest.param([1], [vision()], id="a-picture-without-a-placeholder"),
        pytest.param([IMAGE, 1], [vision(1, 2)], id="a-run-too-short"),
        pytest.param([1, IMAGE], [vision(1, 2)], id="a-run-cut-by-the-end"),
        pytest.param([IMAGE, IMAGE], [vision()], id="a-run-too-long"),
        pytest.param([VIDEO], [vision()], id="a-picture-at-a-videos-placeholder"),
        pytest.param([IMAGE], [vision(num_frames=2, video=True)], id="a-video-at-a-pictures"),
        pytest.param([VIDEO, 1], [vision(num_frames=4, video=True)], id="a-frame-missing"),
    ],
)
def test_a_prompt_that_contradicts_its_pictures_is_refused(prompt, visions):
    with pytest.raises(PromptInvalid):
        locate_spans(prompt, visions, LAYOUT)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"height": 0, "pixels": memoryview(b"")}, id="no-height"),
        pytest.param({"width": -32}, id="negative-width"),
        pytest.param({"num_frames": 0, "pixels": memoryview(b"")}, id="no-frames"),
        pytest.param({"height": 48, "pixels": memoryview(bytes(48 * 32 * 3))}, id="odd-height"),
        pytest.param({"width": 33, "pixels": memoryview(bytes(33 * 32 * 3))}, id="odd-width"),
        pytest.param(
            {"num_frames": 3, "video": True, "pixels": memoryview(bytes(3 * 32 * 32 * 3))},
            id="odd-video",
        ),
        pytest.param(
            {"num_frames": 2, "pixels": memoryview(bytes(2 * 32 * 32 * 3))},
            id="a-picture-of-two-frames",
        ),
        pytest.param({"pixels": memoryview(bytes(32 * 32 * 3 - 1))}, id="a-byte-missing"),
        pytest.param({"pixels": memoryview(bytes(32 * 32 * 3 + 1))}, id="a-byte-too-many"),
        pytest.param({"content_hash": bytes(31)}, id="short-hash"),
    ],
)
def test_sizes_that_contradict_the_pixels_are_refused(changes):
    with pytest.raises(PromptInvalid):
        check_vision(vision(**changes), LAYOUT)
