"""torch's settings of how exactly float32 is multiplied, which reach the CPU's kernels as well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fastrnn

TARGET = fastrnn.build_info()["cpu_target"]
LAYERS = {
    "lstm": lambda: fastrnn.LSTM(48, 65),
    "lstm-proj": lambda: fastrnn.LSTM(33, 64, proj_size=20),
    "gru": lambda: fastrnn.GRU(48, 64, bidirectional=True),
    "rnn": lambda: fastrnn.RNN(17, 70),
}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, input gradient, parameter gradients."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x)[0]
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def worst(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest error of any, in units of the largest number there."""
    return max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("batch", [1, 5, 19], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("name", LAYERS)
def test_each_setting_is_as_exact_as_it_says(name: str, batch: int) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    x = torch.randn(23, batch, layer.input_size)
    exact = run(layer.double(), x.double())
    layer.float()
    errors, results = {}, {}
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        results[precision] = run(layer, x)
        errors[precision] = worst(results[precision], exact)
    torch.set_float32_matmul_precision("highest")
    again = run(layer, x)
    assert all(torch.equal(a, b) for a, b in zip(results["highest"], again, strict=True))
    assert errors["highest"] <= 2e-6
    assert errors["high"] <= 2**-15  # two bfloat16 hold 17 bits of each factor
    assert errors["medium"] <= 2**-6
    if batch == 19 and TARGET == "avx512_amx":
        # Were they the same, the setting would not have reached the products.
        assert errors["highest"] < errors["high"] < errors["medium"] / 8
    if TARGET in ("avx512_bf16", "avx512_amx", "neon_bf16"):
        assert errors["medium"] > 2**-12


@pytest.mark.parametrize(("rnn", "name"), [("tf32", "high"), ("bf16", "medium"), ("ieee", "highest")])
def test_the_layers_own_setting(rnn: str, name: str) -> None:
    torch.manual_seed(0)
    layer = fastrnn.LSTM(48, 64)
    x = torch.randn(23, 19, 48)
    torch.set_float32_matmul_precision(name)
    want = layer(x)[0]
    torch.set_float32_matmul_precision("highest")
    before = torch.backends.mkldnn.rnn.fp32_precision
    torch.backends.mkldnn.rnn.fp32_precision = rnn
    try:
        assert torch.equal(layer(x)[0], want)
    finally:
        torch.backends.mkldnn.rnn.fp32_precision = before


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("name", LAYERS)
def test_vmap_under_a_setting_equals_a_loop(name: str, precision: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    weights = dict(layer.named_parameters())
    x = torch.randn(3, 4, 2, layer.input_size)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,))[0].square().sum()

    torch.set_float32_matmul_precision(precision)
    by_input = vmap(grad(loss, argnums=1), (None, 0))(weights, x)
    by_weights = vmap(grad(loss), (None, 0))(weights, x)
    # Each product may be rounded to bfloat16, and a batch of another size takes other tiles.
    for i, one in enumerate(x):
        assert worst([by_input[i]], [grad(loss, argnums=1)(weights, one)]) < 0.02
        singles = grad(loss)(weights, one)
        assert worst([by_weights[k][i] for k in singles], list(singles.values())) < 0.02
