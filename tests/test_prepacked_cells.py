"""prepack() of declared cells and of those that come with generated kernels."""

from __future__ import annotations

from collections.abc import Callable

import declared
import pytest
import torch
from support import tensors_of
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

LAYERS: dict[str, Callable[[], fastrnn.Recurrence]] = {
    "peephole_lstm": lambda: fastrnn.PeepholeLSTM(6, 40, num_layers=2, bidirectional=True),
    "coupled_lstm": lambda: fastrnn.CoupledLSTM(6, 40, bias=False, batch_first=True),
    "ligru": lambda: fastrnn.LiGRU(6, 40),
    "declared": lambda: fastrnn.Recurrence(declared.decaying, 6, 40, num_layers=2),
    "zoneout": lambda: fastrnn.Recurrence(declared.zoneout, 6, 40, bidirectional=True),
}


@torch.no_grad()
@pytest.mark.parametrize("form", ["padded", "masked", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_prepacked(name: str, form: str) -> None:
    layer = LAYERS[name]().eval()
    x, inputs, options = torch.randn(5, 4, 6), {n: torch.rand(40) for n in layer.cell.inputs}, {}
    if form == "packed":
        lengths = torch.tensor([3, 4, 1, 2, 4][: x.shape[0 if layer.batch_first else 1]])
        x = pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted=False)
    elif form == "masked":
        options = {"reset": torch.rand(5, 4) < 0.3, "states": True}
    served = fastrnn.prepack(layer)
    assert not list(served.parameters())
    expected, got = tensors_of(layer(x, **inputs, **options)), tensors_of(served(x, **inputs, **options))
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_prepacked_as_bytes(name: str) -> None:
    layer = LAYERS[name]().eval()
    x, inputs = torch.randn(5, 4, 6), {n: torch.rand(40) for n in layer.cell.inputs}
    y, served = layer(x, **inputs)[0], fastrnn.prepack(layer, weights="int8")
    torch.testing.assert_close(served(x, **inputs)[0], y, rtol=0, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(served(x, **inputs)[0], y, rtol=0, atol=0.02)


def test_what_cannot_be_packed() -> None:
    @fastrnn.cell
    def centered(a, h):
        return torch.tanh(a - a.mean())

    with pytest.raises(ValueError, match=r"\(Recurrence\) cannot be packed: it has no kernels"):
        fastrnn.prepack(fastrnn.Recurrence(centered, 3, 4).eval())
    layer = fastrnn.PeepholeLSTM(3, 4)
    nn.utils.parametrizations.weight_norm(layer, "p_i_l0", dim=0)
    with pytest.raises(ValueError, match="its weights are computed"):
        fastrnn.prepack(layer.eval())
    with pytest.raises(ValueError, match="a declared cell cannot be streamed: call the prepacked layer"):
        fastrnn.stream(fastrnn.LiGRU(3, 4).eval())
