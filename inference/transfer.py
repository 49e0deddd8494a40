"""Brings small host arrays to the device without waiting for what the device is doing."""

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray, device: torch.device) -> Tensor:
    """Hand an array over to the device; on a CPU the tensor shares its memory.

    To a GPU it goes by pinned memory: a plain copy waits for all the kernels already queued.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
