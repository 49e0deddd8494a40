"""Our CPU kernels and torch's operators give the same numbers; without a compiler torch's serve."""

import pytest
import torch

from inference import kernels
from inference.attention import CpuAttention, KVShape, Rows
from inference.dense_attention import attend
from inference.kernels import load_kernels
from inference.ops import TorchOps
from inference.rope import signed_angles

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(params=DTYPES, ids=["f32", "bf16"])
def dtype(request):
    return request.param


@pytest.fixture
def compiled(dtype):
    loaded = load_kernels(dtype)
    if loaded is None:
        pytest.skip("no C compiler here")
    return loaded


def assert_close(actual, expected):
    bound = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_rms_norm_equals_torchs(compiled, dtype, rows):
    x, weight = torch.randn(rows, 96).to(dtype), torch.randn(96).to(dtype)

    assert_close(compiled.rms_norm(x, weight, 1e-6), TorchOps().rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_silu_mul_equals_torchs_also_far_from_zero(compiled, dtype, scale):
    x = (torch.randn(9, 2 * 112) * scale).to(dtype)

    assert_close(compiled.silu_mul(x) / scale, TorchOps().silu_mul(x) / scale)


@pytest.mark.parametrize("with_norm", [True, False])
def test_norm_rotate_equals_torchs_on_strided_heads(compiled, dtype, with_norm):
    qkv = torch.randn(11, 9, 32).to(dtype)
    weight = torch.randn(6, 32).to(dtype) if with_norm else None
    cos, sin = signed_angles(torch.rand(11, 16) * 6)

    expected = TorchOps().norm_rotate(qkv[:, :6], weight, cos, sin, 1e-6)
    untouched = qkv[:, 6:].clone()
    actual = compiled.norm_rotate(qkv[:, :6], weight, cos, sin, 1e-6)

    assert_close(actual, expected)
    assert torch.equal(qkv[:, 6:], untouched)


@pytest.mark.parametrize("first", [None, 0, 5])
def test_softmax_equals_torchs_with_and_without_a_causal_mask(compiled, dtype, first):
    scores = (torch.randn(3, 2, 6, 13) * 8).to(dtype)
    expected = TorchOps().softmax(scores.clone(), 0.4, first)

    actual = compiled.softmax(scores, 0.4, first)

    assert_close(actual, expected)
    assert torch.isfinite(actual).all()


@pytest.mark.parametrize("first", [None, 0, 37])
def test_dense_attention_in_slices_equals_torchs_attention(compiled, dtype, first, monkeypatch):
    monkeypatch.setattr("inference.dense_attention._MAX_SCORES", 2 * 3 * 300 * 7)
    rows, columns = 140, 140 + (first or 0)
    q, k, v = (torch.randn(2, n, 32).to(dtype) for n in (3 * rows, columns, columns))
    q = q.view(2, 3, rows, 32)
    mask = None
    if first is not None:
        mask = torch.arange(columns) <= torch.arange(first, first + rows)[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k[:, None].expand(-1, 3, -1, -1), v[:, None].expand(-1, 3, -1, -1), mask
    )

    actual = attend(q, k, v, compiled, scale=32**-0.5, first=first)

    assert_close(actual, expected)


@pytest.mark.parametrize("groups", [1, 3, 8])
@pytest.mark.parametrize("lengths", [[1], [16, 17, 31, 90], [5, 5, 200]])
def test_paged_attention_with_kernels_equals_paged_attention_without(
    compiled, dtype, groups, lengths
):
    shape = KVShape(num_layers=2, num_blocks=60, block_size=16, num_kv_heads=2, head_dim=32)
    both = [CpuAttention(shape, 2 * groups, 0.2, dtype, chosen) for chosen in (compiled, None)]
    blocks = iter(torch.randperm(59).add(1).tolist())
    tables = [[next(blocks) for _ in range(-(-length // 16))] for length in lengths]

    outputs = []
    for attention in both:
        torch.manual_seed(1)
        for start, end in ((0, None), (None, 0)):  # the prompts, then one token each
            rows = [
                Rows(0 if start == 0 else n - 1, n - 1 if start == 0 else n, table)
                for n, table in zip(lengths, tables, strict=True)
                if not (start == 0 and n == 1)
            ]
            if not rows:
                continue
            total = sum(row.end - row.start for row in rows)
            q, k, v = (torch.randn(total, h, 32).to(dtype) for h in (2 * groups, 2, 2))
            plan = attention.plan(sorted(rows, key=lambda row: (row.end - row.start > 1, row.end)))
            out = attention.attend(1, q, k, v, plan)
        outputs.append(out)

    assert_close(outputs[0], outputs[1])


def test_sizes_the_kernels_cannot_take_run_on_torch(compiled, dtype):
    shape = KVShape(num_layers=1, num_blocks=4, block_size=8, num_kv_heads=1, head_dim=32)
    attention = CpuAttention(shape, 2, 0.2, dtype, compiled)

    out = attention.attend(
        0,
        torch.randn(1, 2, 32).to(dtype),
        torch.randn(1, 1, 32).to(dtype),
        value := torch.randn(1, 1, 32).to(dtype),
        attention.plan([Rows(0, 1, [2])]),
    )

    assert_close(out, value.view(1, 32).repeat(1, 2))


def test_without_a_compiler_torchs_operators_serve(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert kernels.load_kernels(torch.float32) is None


def test_a_cache_folder_that_cannot_be_made_costs_the_kernels_only(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    assert kernels.load_kernels(torch.float32) is None
