"""Our forward of the vision model against transformers'."""

from typing import Any

import pytest
import torch

from inference.patches import patchify

TOLERANCE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


def as_tensor(vision):
    flat = torch.frombuffer(bytearray(vision.pixels), dtype=torch.uint8)
    return flat.view(vision.num_frames, vision.height, vision.width, 3)


@torch.no_grad()
def theirs(source, vision):
    """transformers' merged features and those of its deepstack layers, side by side."""
    patches = patchify(as_tensor(vision), patch_size=16, merge_size=2, temporal_patch_size=2)
    frames = -(-vision.num_frames // 2)
    grid = torch.tensor([[frames, vision.height // 16, vision.width // 16]])
    output = source.model.visual(patches.to(source.dtype), grid_thw=grid)
    return torch.stack([output.pooler_output, *output.deepstack_features], dim=1)


@pytest.fixture(scope="module")
def visions(kit):
    """Sizes in no order, two of one size, one of a single token, and a video."""
    return [
        kit.picture(3, 4, 1),
        kit.picture(1, 1, 2),
        kit.picture(5, 2, 3, 4, video=True),
        kit.picture(9, 7, 4),
        kit.picture(3, 4, 5),
        kit.picture(1, 12, 6),
    ]


@pytest.mark.parametrize("index", range(6))
def test_features_are_those_of_transformers(sources, models, visions, index):
    (features,) = models["dense"].vision.encode([as_tensor(visions[index])])

    expected = theirs(sources["dense"], visions[index])
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, **TOLERANCE)


def test_pictures_encoded_together_are_what_they_are_alone(models, visions):
    encode = models["dense"].vision.encode
    alone = [encode([as_tensor(vision)])[0] for vision in visions]

    together = encode([as_tensor(vision) for vision in visions])

    for expected, features in zip(alone, together, strict=True):
        torch.testing.assert_close(features, expected, **TOLERANCE)


def test_features_do_not_share_memory_with_their_neighbours(models, visions):
    """A cache that keeps one must not keep all."""
    first, second = models["dense"].vision.encode([as_tensor(v) for v in visions[:2]])

    assert first.untyped_storage().nbytes() == first.numel() * first.element_size()
    assert second.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()


def test_frames_of_a_video_see_only_themselves(models, kit):
    """A temporal patch attends within itself, so that its features are a picture's of its own."""
    clip = as_tensor(kit.picture(3, 3, 1, 4, video=True))
    encode = models["dense"].vision.encode

    (features,) = encode([clip])

    first, second = encode([clip[:2]])[0], encode([clip[2:]])[0]
    torch.testing.assert_close(features, torch.cat((first, second)), **TOLERANCE)


def test_bf16_features_are_close(kit, visions):
    from inference.model import take_over

    source = kit.build_source("dense", torch.bfloat16)
    expected = theirs(source, visions[0]).float()

    (features,) = take_over(source).vision.encode([as_tensor(visions[0])])

    error = (features.float() - expected).norm() / expected.norm()
    assert error < 0.03
