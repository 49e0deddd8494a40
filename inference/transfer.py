"""Brings host arrays to the device without waiting for what the device is doing."""

import torch
from numpy.typing import NDArray
from torch import Tensor


def staged(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor's copy in memory that a GPU reads by itself; on a CPU the tensor.

    A copy from other memory waits for all the kernels already queued. torch keeps the memory until
    the transfers from it are done.
    """
    return tensor.pin_memory() if device.type == "cuda" else tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Hand a host tensor over to the device; on a CPU it is the same tensor."""
    return staged(tensor, device).to(device, non_blocking=True)


def to_device(array: NDArray, device: torch.device) -> Tensor:
    """Hand an array over to the device; on a CPU the tensor shares its memory."""
    return upload(torch.from_numpy(array), device)
