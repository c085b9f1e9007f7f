"""Layers packed as int8: their products are those of whole numbers, and each row has its own scale."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import reference

LAYERS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"proj_size": 3}),
    (fastrnn.GRU, {}),
    (fastrnn.RNN, {"nonlinearity": "relu", "bias": False}),
]


def scale_of(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1, keepdim=True) / 127


def quantized(rows: Tensor, scale: Tensor) -> Tensor:
    """Whole numbers from -127 to 127."""
    return (rows.double() * torch.where(scale > 0, 1 / scale, 0)).round().long()


def product(x: Tensor, w: Tensor) -> Tensor:
    """x w' of quantized rows: sums of whole numbers, times the scales of the row of x and of w."""
    x_scale, w_scale = scale_of(x), scale_of(w)
    sums = quantized(x, x_scale) @ quantized(w, w_scale).T
    return sums.double() * x_scale.double() * w_scale.double().T


def one_step(module: Any, x: Tensor, h: Tensor, c: Tensor | None) -> Tensor:
    """h after one step, in float64 but for what is quantized."""
    w_ih, w_hh, b_ih, b_hh, *w_hr = (p.detach() for p in module.parameters())
    state = h.double(), None if c is None else c.double()
    h, _ = reference.CELLS[module.cell](product(x, w_ih) + b_ih, product(h, w_hh) + b_hh, *state)
    return product(h.float(), w_hr[0]) if w_hr else h


@pytest.mark.parametrize("flags", [{}, {"proj_size": 3}])
@pytest.mark.parametrize("layer", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 16, 17])
@pytest.mark.parametrize(("inputs", "hidden"), [(1, 5), (7, 16), (64, 65), (130, 200)])
def test_products_are_of_whole_numbers(
    layer: type[nn.Module], flags: dict[str, Any], batch: int, inputs: int, hidden: int
) -> None:
    if flags and layer is not fastrnn.LSTM:
        pytest.skip("only LSTM has a projection")
    torch.manual_seed(0)
    module: Any = layer(inputs, hidden, **flags).eval()
    x = torch.randn(batch, inputs) * torch.logspace(-2, 2, batch).unsqueeze(1)
    h = torch.rand(batch, module.proj_size or hidden) - 0.5
    h[0] = 0  # which has no scale
    c = torch.randn(batch, hidden) if layer is fastrnn.LSTM else None
    hx = h[None] if c is None else (h[None], c[None])
    got = fastrnn.prepack(module, "int8")(x[None], hx)[0][0]
    # What is projected, or multiplied without fused additions, is known to float32's precision only: a
    # number halfway between two integers may be rounded otherwise.
    exact = not flags and fastrnn.build_info()["cpu_target"] != "portable"
    tolerance = 2e-6 if exact else 2e-3
    expected = one_step(module, x, h, c)
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("layer", "flags"), LAYERS)
@pytest.mark.parametrize(("batch", "hidden"), [(3, 20), (9, 100), (16, 40)])
def test_a_sequence_does_not_depend_on_others(
    layer: type[nn.Module], flags: dict[str, Any], batch: int, hidden: int, threads: int
) -> None:
    """By scales for each row and exact sums: the same bits, whatever is beside it and who computes it."""
    torch.manual_seed(0)
    served = fastrnn.prepack(layer(12, hidden, **flags).eval(), "int8")
    x = torch.randn(40, batch, 12)
    with support.threads(threads):
        together = served(x)[0]
    for b in range(batch):
        with support.threads(1):
            assert torch.equal(served(x[:, b : b + 1])[0], together[:, b : b + 1])


@pytest.mark.parametrize(("layer", "flags"), LAYERS)
def test_masks(layer: type[nn.Module], flags: dict[str, Any]) -> None:
    """A sequence of a padded or packed batch, or between resets, is what it is alone."""
    torch.manual_seed(0)
    served = fastrnn.prepack(layer(12, 33, bidirectional=True, **flags).eval(), "int8")
    x, lengths = torch.randn(9, 5, 12), torch.tensor([9, 4, 7, 1, 0])
    x[4:, 1] = torch.nan
    padded = served(x, lengths=lengths)[0]
    for b, length in enumerate(lengths[:4].tolist()):
        assert torch.equal(padded[:length, b : b + 1], served(x[:length, b : b + 1])[0])
        assert not padded[length:, b].any()
    sizes = lengths[:4]
    packed = nn.utils.rnn.pack_padded_sequence(x[:, :4], sizes, enforce_sorted=False)
    unpacked, _ = nn.utils.rnn.pad_packed_sequence(served(packed)[0])
    assert torch.equal(unpacked, padded[:, :4])
    reset = torch.zeros(9, 5, dtype=torch.bool)
    reset[6, 0] = reset[0, 0] = True
    parts = [served(part)[0] for part in (x[:6, :1], x[6:, :1])]
    assert torch.equal(served(x[:, :1], reset=reset[:, :1])[0], torch.cat(parts))


def test_a_row_that_no_scale_fits_is_nan() -> None:
    served = fastrnn.prepack(fastrnn.GRU(4, 8).eval(), "int8")
    x = torch.ones(3, 4, 4)
    x[1, 1, 2], x[1, 2, 3], x[1, 3] = torch.nan, torch.inf, 1e-38
    y = served(x)[0]
    assert y[:, [0, 3]].isfinite().all()
    assert y[0].isfinite().all()
    assert y[1:, 1:3].isnan().all()


@pytest.mark.parametrize("hidden", [64, 256])
@pytest.mark.parametrize("layer", [fastrnn.LSTM, fastrnn.GRU])
def test_error(layer: type[nn.Module], hidden: int) -> None:
    """Relative to the largest value, of standard normal input; docs/serving.md states these figures."""
    torch.manual_seed(0)
    module = layer(hidden, hidden).eval()
    x = torch.randn(50, 8, hidden)
    exact, got = module(x)[0], fastrnn.prepack(module, "int8")(x)[0]
    error = (got - exact) / exact.abs().max()
    assert 1e-3 < error.square().mean().sqrt() < 3e-3
    assert error.abs().max() < 2.5e-2
