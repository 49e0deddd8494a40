"""The element-wise work between matrix products, each step one Triton kernel.

Decode steps are many small kernels, each of which costs a launch or at least its start: fewer is
what counts. Everything is computed in float32 and rounded once.
"""

# Triton's parameters are pointers and constants of its own kind, in their own spelling.
# ruff: noqa: ANN001, ANN202, N803, PLR0913
# pyright: reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference.ops import TorchOps

# Columns of one program where a row is cut up, and heads of one program.
_COLUMNS = 1024
_HEADS = 8


class CudaOps(TorchOps):
    """`Ops` on a GPU; softmax stays torch's, since attention there has kernels of its own."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        num_rows, width = x.shape
        normed = torch.empty_like(x, memory_format=torch.contiguous_format)
        padded = triton.next_power_of_2(width)
        _rms_norm_kernel[(num_rows,)](
            x,
            weight,
            normed,
            x.stride(0),
            eps,
            WIDTH=width,
            PADDED=padded,
            num_warps=min(max(padded // 512, 1), 8),
        )
        return normed

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops`."""
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        product = gate_up.new_empty(num_rows, width)
        _silu_mul_kernel[(num_rows, triton.cdiv(width, _COLUMNS))](
            gate_up, product, gate_up.stride(0), WIDTH=width, COLUMNS=_COLUMNS
        )
        return product

    def norm_rotate(
        self, heads: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
    ) -> Tensor:
        """See `Ops`."""
        num_rows, num_heads, head_dim = heads.shape
        rotated = heads.new_empty(heads.shape)
        _norm_rotate_kernel[(num_rows, triton.cdiv(num_heads, _HEADS))](
            heads,
            heads if weight is None else weight,
            cos,
            sin,
            rotated,
            heads.stride(0),
            eps,
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            HEADS=_HEADS,
            PADDED=triton.next_power_of_2(head_dim),
            HAS_NORM=weight is not None,
        )
        return rotated


@triton.jit
def _rms_norm_kernel(
    x_ptr, weight_ptr, normed_ptr, stride, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    mask = columns < WIDTH
    x = tl.load(x_ptr + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps)
    tl.store(normed_ptr + row * WIDTH + columns, x * scale * weight, mask=mask)


@triton.jit
def _silu_mul_kernel(gate_up_ptr, product_ptr, stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < WIDTH
    gate = tl.load(gate_up_ptr + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(product_ptr + row * WIDTH + columns, product, mask=mask)


@triton.jit
def _norm_rotate_kernel(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    rotated_ptr,
    stride,
    eps,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, PADDED)
    partners = (dims + HEAD_DIM // 2) % HEAD_DIM  # half a head away
    mask = (heads < NUM_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    own = heads[:, None] * HEAD_DIM + dims[None, :]
    other = heads[:, None] * HEAD_DIM + partners[None, :]
    x = tl.load(x_ptr + row * stride + own, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(x_ptr + row * stride + other, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)  # [HEADS]
        x = x * scale[:, None] * tl.load(weight_ptr + own, mask=mask, other=0.0).to(tl.float32)
        y = y * scale[:, None] * tl.load(weight_ptr + other, mask=mask, other=0.0).to(tl.float32)
    is_dim = dims < HEAD_DIM
    cos = tl.load(cos_ptr + row * HEAD_DIM + dims, mask=is_dim, other=0.0)
    sin = tl.load(sin_ptr + row * HEAD_DIM + dims, mask=is_dim, other=0.0)
    rotated = x * cos[None, :] + y * sin[None, :]
    tl.store(rotated_ptr + row * (NUM_HEADS * HEAD_DIM) + own, rotated, mask=mask)
