import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from inference.patches import patchify

SIZES = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}


def pixels(num_frames, height, width):
    generator = torch.Generator().manual_seed(height * width)
    shape = (num_frames, height, width, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (96, 64), (32, 320)])
def test_patches_are_those_of_transformers_processor(height, width):
    processor = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 1024, "longest_edge": 1 << 20},
    )
    frame = pixels(1, height, width)
    expected = processor(images=Image.fromarray(frame[0].numpy()), return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, height // 16, width // 16]]

    patches = patchify(frame, **SIZES)

    torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-6, rtol=0)


def test_a_videos_patches_hold_its_frames_in_pairs():
    """Frame by frame in the order of time; within a patch: channel, time, row, column."""
    frames = pixels(6, 32, 64)

    patches = patchify(frames, **SIZES).view(3, 1, 2, 2, 2, 3, 2, 16, 16)

    scaled = (frames.float() - 127.5) / 127.5
    for pair, column, merge_row, merge_column, time in np.ndindex(3, 2, 2, 2, 2):
        top, left = merge_row * 16, column * 32 + merge_column * 16
        expected = scaled[pair * 2 + time, top : top + 16, left : left + 16].permute(2, 0, 1)
        found = patches[pair, 0, column, merge_row, merge_column, :, time]
        assert torch.equal(found, expected)


def test_a_pictures_patches_repeat_it_in_time():
    patches = patchify(pixels(1, 32, 32), **SIZES).view(4, 3, 2, 16, 16)

    assert torch.equal(patches[:, :, 0], patches[:, :, 1])
