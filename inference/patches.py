"""uint8 pictures to the vision model's input rows, on the device."""

import torch
from torch import Tensor

# Every published Qwen3-VL checkpoint normalises with mean and deviation 0.5 of the unit range.
_CENTRE = 127.5


def patchify(
    pixels: Tensor, *, patch_size: int, merge_size: int, temporal_patch_size: int
) -> Tensor:
    """Cut frames into normalised patches, in the order of transformers' image processor.

    Args:
        pixels: uint8 [num_frames, height, width, 3]; a single picture fills its temporal patch
            by repetition.
        patch_size: side of a patch in pixels.
        merge_size: patches a side of a merged token; patches of one token are adjacent rows.
        temporal_patch_size: frames a patch.

    Returns:
        float32 [num_patches, 3 * temporal_patch_size * patch_size**2].

    Source: transformers 5.23 `Qwen2VLImageProcessorPil`; tests/inference/test_patches.py proves
    equality.
    """
    num_frames, height, width, _ = pixels.shape
    if num_frames == 1:
        pixels = pixels.expand(temporal_patch_size, -1, -1, -1)
        num_frames = temporal_patch_size
    rows, columns = height // (patch_size * merge_size), width // (patch_size * merge_size)
    cut = pixels.reshape(
        num_frames // temporal_patch_size,
        temporal_patch_size,
        rows,
        merge_size,
        patch_size,
        columns,
        merge_size,
        patch_size,
        3,
    )
    # [frame, row, column, merge_row, merge_column, channel, time, patch_row, patch_column]
    ordered = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    flat = ordered.reshape(-1, 3 * temporal_patch_size * patch_size**2)
    return (flat.to(torch.float32) - _CENTRE) / _CENTRE
