import pytest
import torch
from torch.nn import functional

from inference.linear import Linear

ACTIVATIONS = {
    "none": lambda y: y,
    "gelu": functional.gelu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
}
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


def tensors(rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    shapes = (rows, 48), (80, 48), (80,), (rows, 80)
    x, weight, bias, residual = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
    return x, weight / 7, bias, residual


@pytest.fixture(params=["packed", "plain"])
def layout(request, monkeypatch):
    """What a CPU gets, and what every other device and type does."""
    if request.param == "plain":
        monkeypatch.setattr("inference.linear._can_pack", lambda dtype: False)
    return request.param


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer_is_torchs(layout, rows, activation, has_bias):
    x, weight, bias, _ = tensors(rows)
    bias = bias if has_bias else None
    linear = Linear(weight, bias, activation)

    y = linear(x)

    assert linear.is_packed == (layout == "packed")
    expected = ACTIVATIONS[activation](functional.linear(x, weight, bias))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_adding_to_a_residual_is_a_sum(layout, dtype, has_bias):
    x, weight, bias, residual = tensors(9, dtype)
    bias = bias if has_bias else None
    before = residual.clone()

    y = Linear(weight, bias).add_to(residual, x)

    exact = before.float() + functional.linear(
        x.float(), weight.float(), None if bias is None else bias.float()
    )
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), exact, atol=DTYPES[dtype] * 4, rtol=DTYPES[dtype])


def test_a_layer_knows_its_sizes_once_packed():
    linear = Linear(torch.zeros(80, 48))

    assert (linear.in_features, linear.out_features) == (48, 80)
