import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from service.media.resize import smart_resize

sides = st.integers(1, 20_000)


@given(
    sides,
    sides,
    st.sampled_from([28, 32]),
    st.integers(1, 1 << 20),
    st.integers(1 << 12, 1 << 24),
)
def test_sizes_equal_those_of_transformers(height, width, factor, min_pixels, max_pixels):
    limits = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels}
    try:
        expected = reference.smart_resize(height, width, **limits)
    except ValueError:
        with pytest.raises(ValueError, match="aspect ratio"):
            smart_resize(height, width, **limits)
    else:
        assert expected == smart_resize(height, width, **limits)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_sizes_are_whole_multiples_within_the_published_bounds(height, width):
    limits = {"factor": 32, "min_pixels": 65_536, "max_pixels": 16_777_216}
    if max(height, width) > 200 * min(height, width):
        return
    new_height, new_width = smart_resize(height, width, **limits)

    assert new_height % 32 == 0
    assert new_width % 32 == 0
    assert 65_536 <= new_height * new_width <= 16_777_216


def test_a_ratio_of_exactly_200_is_taken():
    assert smart_resize(32, 6400, factor=32, min_pixels=65_536, max_pixels=4_194_304) == (32, 6400)
