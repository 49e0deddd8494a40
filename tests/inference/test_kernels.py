"""Our CPU kernels against torch's operators, on sizes that fill no vector."""

import pytest
import torch

from inference import kernels as kernels_module
from inference.attention import CpuAttention, KVShape, Rows
from inference.kernels import load_kernels
from inference.ops import TorchOps
from inference.rope import signed_angles

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=TOLERANCE, ids=["fp32", "bf16"])
def dtype(request):
    return request.param


@pytest.fixture
def kernels(dtype):
    loaded = load_kernels(dtype)
    if loaded is None:
        pytest.skip("no C compiler here")
    return loaded


def values(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(found, expected, dtype):
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (7, 72), (3, 5), (130, 64)])
def test_norms_are_torchs(kernels, dtype, rows, width):
    x, weight = values(rows, width, dtype=dtype), values(width, dtype=dtype, seed=1)
    expected = TorchOps().rms_norm(x, weight, 1e-6)

    check(kernels.rms_norm(x, weight, 1e-6), expected, dtype)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (7, 72), (3, 5)])
def test_the_gated_unit_is_torchs(kernels, dtype, rows, width):
    gate_up = values(rows, 2 * width, dtype=dtype) * 10

    check(kernels.silu_mul(gate_up), TorchOps().silu_mul(gate_up), dtype)


@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 6, 16), (5, 3, 32), (70, 2, 128)])
def test_normed_and_rotated_heads_are_torchs(kernels, dtype, has_weight, rows, heads, dim):
    """The heads lie among others in a wider row, as queries and keys among values do."""
    fused = values(rows, heads + 2, dim, dtype=dtype)
    weight = values(heads, dim, dtype=dtype, seed=1) if has_weight else None
    cos, sin = signed_angles(values(rows, dim // 2, dtype=torch.float32, seed=2))
    expected = TorchOps().norm_rotate(fused[:, :heads].clone(), weight, cos, sin, 1e-6)
    others = fused[:, heads:].clone()

    rotated = kernels.norm_rotate(fused[:, :heads], weight, cos, sin, 1e-6)

    check(rotated, expected, dtype)
    assert torch.equal(fused[:, heads:], others)


@pytest.mark.parametrize("first", [None, 0, 3, 40])
@pytest.mark.parametrize(("rows", "columns"), [(1, 44), (5, 44), (3, 64), (4, 45)])
def test_softmax_is_torchs(kernels, dtype, rows, columns, first):
    scores = values(2, 3, rows, columns, dtype=dtype) * 20
    expected = TorchOps().softmax(scores.clone(), 0.3, first)

    found = kernels.softmax(scores, 0.3, first)

    check(found, expected, dtype)
    if first is not None and first + 1 < columns:
        assert (found[:, :, 0, first + 1 :] == 0).all()


@pytest.mark.parametrize("group", [1, 2, 4])
def test_attention_over_the_pool_is_torchs(kernels, dtype, group):
    """Three steps over one pool: prompts, a continued chunk beside decodes, decodes alone."""
    shape = KVShape(num_layers=2, num_blocks=12, block_size=16, num_kv_heads=2, head_dim=32)
    scale = 32**-0.5
    ours = CpuAttention(shape, 2 * group, scale, dtype, kernels)
    torchs = CpuAttention(shape, 2 * group, scale, dtype, None)
    first, second, third = [7, 3, 9], [1, 8], [2, 4, 10]
    steps = [
        [Rows(0, 17, first), Rows(0, 1, second), Rows(0, 20, third)],
        [Rows(1, 2, second), Rows(17, 18, first), Rows(20, 41, third)],
        [Rows(2, 3, second), Rows(18, 19, first), Rows(41, 42, third)],
    ]
    for number, rows in enumerate(steps):
        rows.sort(key=lambda row: (row.num_tokens > 1, row.end))
        count = sum(row.num_tokens for row in rows)
        q = values(count, 2 * group, 32, dtype=dtype, seed=number)
        k, v = values(2, count, 2, 32, dtype=dtype, seed=number + 10)
        for layer in (0, 1):
            found, expected = (
                a.attend(layer, q.clone(), k.clone(), v.clone(), a.plan(rows))
                for a in (ours, torchs)
            )
            check(found, expected, dtype)


@pytest.mark.parametrize("sizes", [{"block_size": 4}, {"head_dim": 24}, {"num_kv_heads": 1}])
def test_sizes_the_kernels_do_not_take_are_torchs_work(sizes):
    numbers = {"num_layers": 1, "num_blocks": 4, "block_size": 16, "num_kv_heads": 2}
    shape = KVShape(**{**numbers, "head_dim": 32, **sizes})
    refuses = CpuAttention(shape, 16, 1.0, torch.float32, load_kernels(torch.float32))

    num_heads, dim = 16, shape.head_dim
    q = values(3, num_heads, dim, dtype=torch.float32)
    k = values(3, shape.num_kv_heads, dim, dtype=torch.float32)
    attended = refuses.attend(0, q, k, k, refuses.plan([Rows(0, 3, [1, 2, 3])]))

    assert attended.shape == (3, num_heads * dim)
    torch.testing.assert_close(
        attended[0].view(num_heads, dim),
        k[0].repeat_interleave(num_heads // shape.num_kv_heads, 0),
    )


def test_a_type_without_kernels_has_none():
    assert load_kernels(torch.float16) is None


def test_without_a_compiler_torch_does_the_work(monkeypatch):
    monkeypatch.setenv("CC", "/nonexistent/cc")

    assert load_kernels(torch.float32) is None


def test_a_cache_folder_of_another_user_is_not_used(monkeypatch, tmp_path):
    """What is loaded from it runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels_module.os, "getuid", lambda: tmp_path.stat().st_uid + 1)

    assert load_kernels(torch.float32) is None
