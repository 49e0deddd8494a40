"""Triton kernels over the paged KV pool: storing new keys and values, and decoding.

Knows pointers and block tables, nothing of models or steps. Shapes are static and nothing is read
back, so that launches can be captured. Triton comes with torch's CUDA build; only code that runs on
a GPU imports this file (tests also run it on a CPU, by Triton's interpreter).
"""

# Triton's parameters are pointers and constants of its own kind, in their own spelling; a kernel
# takes everything it reads as an argument; where Triton is not installed there is nothing to check.
# ruff: noqa: ANN001, ANN202, N803, PLR0913
# pyright: reportMissingImports=false, reportIndexIssue=false

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634
# Tensor cores multiply tiles of at least sixteen rows.
_MIN_DOT = 16
_MIN_SPLITS, _MAX_SPLITS = 4, 64
# Numbers of 32 bits in 16 bytes.
_ALIGNMENT = 4


class DecodeRows(NamedTuple):
    """Where each decoding row's keys lie.

    tables: int32 [any], the rows' block numbers one after the other. starts: int32 [num_rows],
    where a row's blocks begin there. lengths: int32 [num_rows], tokens to attend to, at least 1.
    """

    tables: Tensor
    starts: Tensor
    lengths: Tensor


def aligned(length: int) -> int:
    """The length that an array takes among others: kernels are compiled for aligned pointers."""
    return triton.cdiv(length, _ALIGNMENT) * _ALIGNMENT


def store(keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Write each token's keys and values to its slot, given as int32 [num_tokens].

    The shapes are keys, values [num_slots, num_kv_heads, head_dim], one layer's pool, contiguous;
    and k, v [num_tokens, num_kv_heads, head_dim], whose rows may be apart.
    """
    row_size = k.shape[1] * k.shape[2]
    _check_rows(k, v)
    _store_kernel[(len(slots),)](
        k,
        v,
        keys,
        values,
        slots,
        k.stride(0),
        v.stride(0),
        ROW_SIZE=row_size,
        ROW_PADDED=triton.next_power_of_2(row_size),
    )


def decode(
    q: Tensor, keys: Tensor, values: Tensor, rows: DecodeRows, *, block_size: int, scaling: float
) -> Tensor:
    """Attend with one query token a row over that row's blocks.

    A row's tokens are split among programs, whose results a second kernel joins; the query heads
    that share keys are one tile. Source: Flash-Decoding (Dao and others, 2023).

    The shapes are q [num_rows, num_heads, head_dim], whose rows may be apart, and keys, values
    [num_slots, num_kv_heads, head_dim], one layer's pool, contiguous, the new tokens included.

    Returns:
        [num_rows, num_heads * head_dim].
    """
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    _check_rows(q, keys, values)
    group_size = num_heads // num_kv_heads
    num_splits = splits(num_rows * num_kv_heads, _num_multiprocessors(q.device))
    head_padded = max(triton.next_power_of_2(head_dim), _MIN_DOT)
    partial = q.new_empty(num_rows, num_heads, num_splits, head_dim, dtype=torch.float32)
    weight = q.new_empty(num_rows, num_heads, num_splits, dtype=torch.float32)
    _split_kernel[(num_rows, num_kv_heads, num_splits)](
        q,
        keys,
        values,
        *rows,
        partial,
        weight,
        q.stride(0),
        scaling * _LOG2_E,
        NUM_KV_HEADS=num_kv_heads,
        GROUP_SIZE=group_size,
        GROUP_PADDED=max(triton.next_power_of_2(group_size), _MIN_DOT),
        HEAD_DIM=head_dim,
        HEAD_PADDED=head_padded,
        BLOCK_SIZE=block_size,
        TILE=_tile(head_padded, q.element_size()),
        NUM_SPLITS=num_splits,
        num_warps=4,
        num_stages=2,
    )
    attended = q.new_empty(num_rows, num_heads * head_dim)
    _join_kernel[(num_rows * num_heads,)](
        partial,
        weight,
        attended,
        HEAD_DIM=head_dim,
        HEAD_PADDED=head_padded,
        NUM_SPLITS=num_splits,
        num_warps=4,
    )
    return attended


def splits(num_tiles: int, num_multiprocessors: int) -> int:
    """Programs a row's tokens are split among, a power of two: enough to fill the device.

    At least a few also for large batches, of which one row may be much longer than the others.
    """
    wanted = triton.next_power_of_2(triton.cdiv(4 * num_multiprocessors, num_tiles))
    return min(max(wanted, _MIN_SPLITS), _MAX_SPLITS)


def _check_rows(*tensors: Tensor) -> None:
    """A row's heads must lie one behind the other: the kernels count on it."""
    if any(tensor.stride()[1:] != (tensor.shape[2], 1) for tensor in tensors):
        raise ValueError("rows must be contiguous")


def _tile(head_padded: int, element_size: int) -> int:
    """Tokens a program takes at a time.

    Two stages of keys and values take 64 KiB of shared memory, which every GPU from SM80 on has.
    """
    return max(min(16384 // (head_padded * element_size), 128), _MIN_DOT)


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _store_kernel(
    k_ptr,
    v_ptr,
    keys_ptr,
    values_ptr,
    slots_ptr,
    k_stride,
    v_stride,
    ROW_SIZE: tl.constexpr,
    ROW_PADDED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    offsets = tl.arange(0, ROW_PADDED)
    mask = offsets < ROW_SIZE
    k = tl.load(k_ptr + token * k_stride + offsets, mask=mask)
    v = tl.load(v_ptr + token * v_stride + offsets, mask=mask)
    tl.store(keys_ptr + slot * ROW_SIZE + offsets, k, mask=mask)
    tl.store(values_ptr + slot * ROW_SIZE + offsets, v, mask=mask)


@triton.jit
def _take_in(scores, v, highest, total, attended):
    """Attend to one more tile: what came before is weighed against its highest score.

    Source: online softmax (Milakov and Gimelshein, 2018); scores are in powers of two.
    """
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - new_highest[:, None])  # [GROUP, TILE]
    correction = tl.exp2(highest - new_highest)
    product = tl.dot(weights.to(v.dtype), v, input_precision="ieee")  # [GROUP, HEAD]
    attended = attended * correction[:, None] + product
    total = total * correction + tl.sum(weights, 1)
    return new_highest, total, attended


@triton.jit
def _split_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    tables_ptr,
    starts_ptr,
    lengths_ptr,
    partial_ptr,
    weight_ptr,
    q_stride,
    scaling_log2,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + row)
    table_ptr = tables_ptr + tl.load(starts_ptr + row)
    split_size = tl.cdiv(tl.cdiv(length, NUM_SPLITS), TILE) * TILE
    first = split * split_size
    last = tl.minimum(first + split_size, length)

    member = tl.arange(0, GROUP_PADDED)
    heads = kv_head * GROUP_SIZE + member
    dims = tl.arange(0, HEAD_PADDED)
    q_mask = (member < GROUP_SIZE)[:, None] & (dims < HEAD_DIM)[None, :]
    q_offsets = heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + row * q_stride + q_offsets, mask=q_mask, other=0.0)  # [GROUP, HEAD]

    highest = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    attended = tl.zeros([GROUP_PADDED, HEAD_PADDED], tl.float32)
    for start in range(first, last, TILE):
        tokens = start + tl.arange(0, TILE)
        is_token = tokens < last
        blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64)
        slots = blocks * BLOCK_SIZE + tokens % BLOCK_SIZE
        offsets = (slots * NUM_KV_HEADS + kv_head) * HEAD_DIM
        kv_offsets = offsets[:, None] + dims[None, :]
        kv_mask = is_token[:, None] & (dims < HEAD_DIM)[None, :]
        k = tl.load(keys_ptr + kv_offsets, mask=kv_mask, other=0.0)  # [TILE, HEAD]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling_log2
        scores = tl.where(is_token[None, :], scores, float("-inf"))  # [GROUP, TILE]
        v = tl.load(values_ptr + kv_offsets, mask=kv_mask, other=0.0)  # [TILE, HEAD]
        highest, total, attended = _take_in(scores, v, highest, total, attended)

    # A split without tokens says so by its weight; what it would add is never read.
    is_used = first < last
    total = tl.where(is_used, total, 1.0)
    part = (row * NUM_KV_HEADS * GROUP_SIZE + heads) * NUM_SPLITS + split
    log_weight = tl.where(is_used, highest + tl.log2(total), float("-inf"))
    tl.store(weight_ptr + part, log_weight, mask=member < GROUP_SIZE)
    part_offsets = part[:, None] * HEAD_DIM + dims[None, :]
    tl.store(partial_ptr + part_offsets, attended / total[:, None], mask=q_mask & is_used)


@triton.jit
def _join_kernel(
    partial_ptr,
    weight_ptr,
    attended_ptr,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    head = tl.program_id(0)
    parts = head * NUM_SPLITS + tl.arange(0, NUM_SPLITS)
    dims = tl.arange(0, HEAD_PADDED)
    log_weights = tl.load(weight_ptr + parts)
    weights = tl.exp2(log_weights - tl.max(log_weights, 0))  # [NUM_SPLITS], 0 where unused
    mask = (weights > 0)[:, None] & (dims < HEAD_DIM)[None, :]
    partial = tl.load(partial_ptr + parts[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
    attended = tl.sum(partial * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(attended_ptr + head * HEAD_DIM + dims, attended, mask=dims < HEAD_DIM)
