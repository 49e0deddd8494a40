"""Our Triton kernels against plain torch, over random shapes; on a GPU or by the interpreter."""

import random

import pytest
import torch

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16"),
]


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=tolerance)


def _reference_decode(q, keys, values, tables, lengths, block_size, scaling):
    """One row after the other, in float32."""
    rows = []
    for query, table, length in zip(q.float(), tables, lengths, strict=True):
        slots = [table[t // block_size] * block_size + t % block_size for t in range(length)]
        group = query.shape[0] // keys.shape[1]
        k = keys[slots].float().repeat_interleave(group, dim=1)  # [length, num_heads, head_dim]
        v = values[slots].float().repeat_interleave(group, dim=1)
        weights = (torch.einsum("hd,lhd->hl", query, k) * scaling).softmax(dim=-1)
        rows.append(torch.einsum("hl,lhd->hd", weights, v).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_decoding_equals_plain_attention_over_the_same_tokens(kernel_device, dtype, seed):
    if dtype is torch.bfloat16 and kernel_device.type == "cpu":
        pytest.skip("the interpreter multiplies bfloat16 as if it were integers")
    from inference.cuda.kernels import DecodeRows, decode

    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    num_kv_heads, group = rng.choice([1, 2, 4]), rng.choice([1, 2, 3, 8])
    head_dim, block_size = rng.choice([16, 24, 64, 128]), rng.choice([1, 3, 16, 32])
    lengths = [rng.choice([1, 2, 17, 63, 64, 65, 300]) for _ in range(rng.choice([1, 3, 5]))]
    num_blocks = [-(-length // block_size) for length in lengths]
    numbers = rng.sample(range(1, sum(num_blocks) + 4), sum(num_blocks))
    tables = [[numbers.pop() for _ in range(count)] for count in num_blocks]
    pool = torch.randn(
        2, (sum(num_blocks) + 4) * block_size, num_kv_heads, head_dim, generator=generator
    ).to(kernel_device, dtype)
    keys, values = pool
    # The step's queries and keys are one tensor: rows are further apart than a row is long.
    heads = num_kv_heads * group
    qk = torch.randn(len(lengths), heads + num_kv_heads, head_dim, generator=generator)
    q = qk.to(kernel_device, dtype)[:, :heads]
    starts = [sum(num_blocks[:i]) for i in range(len(lengths))]
    rows = DecodeRows(
        *(
            torch.tensor(part, dtype=torch.int32, device=kernel_device)
            for part in ([block for table in tables for block in table], starts, lengths)
        )
    )

    attended = decode(q, keys, values, rows, block_size=block_size, scaling=head_dim**-0.5)

    expected = _reference_decode(q, keys, values, tables, lengths, block_size, head_dim**-0.5)
    _close(attended, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_storing_writes_its_slots_and_no_others(kernel_device, dtype):
    from inference.cuda.kernels import store

    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(5, 10, 24, generator=generator).to(kernel_device, dtype)
    k, v = qkv[:, 4:7], qkv[:, 7:]
    keys, values = torch.zeros(2, 40, 3, 24, device=kernel_device, dtype=dtype)
    slots = torch.tensor([3, 39, 0, 17, 18], dtype=torch.int32, device=kernel_device)

    store(keys, values, slots, k, v)

    for pool, rows in ((keys, k), (values, v)):
        expected = torch.zeros_like(pool)
        expected[slots.long()] = rows
        assert torch.equal(pool, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 64, 1536])
def test_norms_and_gates_equal_torchs(kernel_device, dtype, width):
    from inference.cuda.ops import CudaOps
    from inference.ops import TorchOps

    generator = torch.Generator().manual_seed(width)
    x = torch.randn(3, 2 * width, generator=generator).to(kernel_device, dtype)
    weight = torch.rand(width, generator=generator).to(kernel_device, dtype)

    normed = CudaOps().rms_norm(x[:, :width], weight, 1e-6)
    gated = CudaOps().silu_mul(x)

    _close(normed, TorchOps().rms_norm(x[:, :width], weight, 1e-6))
    _close(gated, TorchOps().silu_mul(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(6, 16), (36, 128), (32, 72)])
def test_rotation_equals_torchs(kernel_device, dtype, has_norm, num_heads, head_dim):
    from inference.cuda.ops import CudaOps
    from inference.ops import TorchOps

    generator = torch.Generator().manual_seed(num_heads)
    heads = torch.randn(3, num_heads + 4, head_dim, generator=generator).to(kernel_device, dtype)
    heads = heads[:, :num_heads]
    weight = torch.rand(num_heads, head_dim, generator=generator).to(kernel_device, dtype)
    cos, sin = torch.randn(2, 3, head_dim, generator=generator).to(kernel_device)
    arguments = (weight if has_norm else None, cos, sin, 1e-6)

    rotated = CudaOps().norm_rotate(heads, *arguments)

    _close(rotated, TorchOps().norm_rotate(heads.clone(), *arguments))
