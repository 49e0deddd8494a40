"""The model's input, made from our bytes as the device makes it, against transformers' own."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from service.media.decode import decode
from service.media.resize import ResizeBounds


@pytest.fixture(scope="module")
def bounds() -> ResizeBounds:
    return ResizeBounds(factor=32, min_pixels=65_536, max_pixels=524_288)


@pytest.fixture(scope="module")
def processor(bounds: ResizeBounds) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"shortest_edge": bounds.min_pixels, "longest_edge": bounds.max_pixels},
    )


def patchify(pixels: bytes, height: int, width: int) -> np.ndarray:
    grid_height, grid_width = height // 16, width // 16
    image = np.frombuffer(pixels, np.uint8).reshape(height, width, 3).transpose(2, 0, 1)
    image = (image.astype(np.float32) - 127.5) / 127.5  # [3, height, width]
    patches = image.reshape(3, grid_height // 2, 2, 16, grid_width // 2, 2, 16)
    patches = patches.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    return np.repeat(patches, 2, axis=5).reshape(grid_height * grid_width, 1536)


def noise(width: int, height: int, mode: str) -> Image.Image:
    levels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(levels)
    return image.quantize(64) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("width", "height", "mode", "file_format"),
    [
        pytest.param(256, 256, "RGB", "PNG", id="no resize"),
        pytest.param(420, 300, "RGB", "PNG", id="rounded"),
        pytest.param(31, 33, "RGB", "PNG", id="scaled up"),
        pytest.param(1, 1, "RGB", "PNG", id="one pixel"),
        pytest.param(2000, 11, "RGB", "PNG", id="slim"),
        pytest.param(1500, 1100, "RGB", "PNG", id="scaled down"),
        pytest.param(301, 517, "RGB", "JPEG", id="jpeg"),
        pytest.param(301, 517, "L", "PNG", id="grey"),
        pytest.param(301, 517, "1", "PNG", id="one bit"),
        pytest.param(301, 517, "P", "PNG", id="palette"),
        pytest.param(301, 517, "CMYK", "JPEG", id="cmyk"),
    ],
)
def test_pixel_values_equal_those_of_transformers(
    width, height, mode, file_format, processor, encode, source, bounds
):
    encoded = encode(noise(width, height, mode), file_format)
    decoded = decode(encoded, source, bounds)
    # The reference sees the same RGB pixels: Pillow's own where the colour needs no judgement.
    expected = processor(Image.open(BytesIO(encoded)).convert("RGB"), return_tensors="np")

    actual = patchify(decoded.pixels, decoded.height, decoded.width)
    grid = [[1, decoded.height // 16, decoded.width // 16]]
    assert expected["image_grid_thw"].tolist() == grid
    np.testing.assert_allclose(actual, expected["pixel_values"], rtol=0, atol=1e-6)
