"""The CUDA side where it can run: on a GPU, or by Triton's interpreter.

TRITON_INTERPRET=1 pytest tests/inference/cuda    # where Triton is installed and no GPU is
"""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where kernels run in these tests."""
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA build; none here")
    if torch.cuda.is_available():
        return torch.device("cuda")
    # Triton reads it when it is imported, which torch does long before this.
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU here, and TRITON_INTERPRET=1 is not set")
    return torch.device("cpu")


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """A GPU: captures, waiting and memory are only there what they are."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device("cuda")
