"""The adapter for Opacus without Opacus: layers on rows, and per-sample gradients from what hooks see."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.integrations.opacus import PerSample, grad_sample

B, T, I, H = 3, 4, 3, 5
# Opacus's hooks and these are of the first layer too, whose input needs no gradient.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
FLAGS = {**support.FLAGS, "lean": {"memory": "lean"}}
CASES = [(c, f) for c in support.LAYERS for f in FLAGS if f != "projected" or c == "lstm"]


def pair(cell: str, flag: str, **more: Any) -> tuple[Any, PerSample]:
    layer = support.ours(cell, I, H, **FLAGS[flag], dtype=torch.float64, **more)
    return layer, PerSample(copy.deepcopy(layer))


def example(layer: Any) -> Tensor:
    x = torch.randn(B, T, I, dtype=torch.float64)
    return x if layer.batch_first else x.transpose(0, 1)


@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_computes_what_the_layer_does(cell: str, flag: str) -> None:
    layer, wrapped = pair(cell, flag)
    x, hx = example(layer), support.initial_state(layer, B, dtype=torch.float64)
    lengths = torch.tensor([2, 4, 1])
    reset = torch.rand(x.shape[:2]) < 0.5
    packed = pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted=False)
    support.same(wrapped(x), layer(x))
    support.same(wrapped(x, hx), layer(x, hx))
    support.same(wrapped(x, hx, lengths=lengths, reset=reset), layer(x, hx, lengths=lengths, reset=reset))
    support.same(wrapped(packed, hx), layer(packed, hx))
    assert list(wrapped.state_dict()) == list(layer.state_dict())
    other = PerSample(support.ours(cell, I, H, **FLAGS[flag], dtype=torch.float64))
    other.load_state_dict(layer.state_dict())
    support.same(other(x), layer(x))


def sampled(wrapped: PerSample, exchanged: bool, *args: Any, **masks: Any) -> list[Tensor]:
    """Per-sample gradients of every weight, from one backward with hooks as Opacus has them."""
    found: dict[nn.Parameter, Tensor] = {}
    seen: dict[nn.Module, Tensor] = {}

    def before(layer: nn.Module, rows: tuple[Tensor], _: Any) -> None:
        seen[layer] = rows[0].detach()

    def after(layer: Any, _: Any, grads: tuple[Tensor]) -> None:
        given = [t.transpose(0, 1) if exchanged else t for t in (seen[layer], grads[0])]
        found.update(grad_sample(layer, given[:1], given[1]))

    for layer in wrapped.layers:
        layer.register_forward_hook(before)
        layer.register_full_backward_hook(after)
    torch.stack([t.square().sum() for t in support.tensors_of(wrapped(*args, **masks))]).sum().backward()
    return [found[p] for p in wrapped.parameters()]


@pytest.mark.parametrize("cell", support.LAYERS)
def test_gradients_of_each_sample_of_a_packed_batch(cell: str) -> None:
    """In the order that the user has them in."""
    layer, wrapped = pair(cell, "deep_bidirectional")
    x, lengths = example(layer), torch.tensor([2, 4, 1])
    hx = support.initial_state(layer, B, dtype=torch.float64)
    found = sampled(wrapped, False, pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    for b in range(B):
        expected = of_sample(b, layer, x, hx, lengths, torch.zeros(T, B, dtype=torch.bool))
        torch.testing.assert_close([g[b] for g in found], expected)


def of_sample(b: int, layer: Any, x: Tensor, hx: Any, lengths: Tensor, reset: Tensor) -> list[Tensor]:
    dim = 0 if layer.batch_first else 1
    states = tuple(s[:, b : b + 1].contiguous() for s in (hx if isinstance(hx, tuple) else [hx]))
    results = layer(
        x.narrow(dim, b, 1),
        states if len(states) == 2 else states[0],
        lengths=lengths[b : b + 1],
        reset=reset.narrow(dim, b, 1),
    )
    loss = torch.stack([t.square().sum() for t in support.tensors_of(results)]).sum()
    return list(torch.autograd.grad(loss, list(layer.parameters())))


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_gradients_of_each_sample(cell: str, flag: str, exchanged: bool) -> None:
    """Also those through the last state, and of masks and initial states."""
    layer, wrapped = pair(cell, flag)
    x, hx = example(layer), support.initial_state(layer, B, dtype=torch.float64)
    masks = {"lengths": torch.tensor([2, 4, 1]), "reset": torch.rand(x.shape[:2]) < 0.5}
    found = sampled(wrapped, exchanged, x, hx, **masks)
    for b in range(B):
        expected = of_sample(b, layer, x, hx, **masks)
        torch.testing.assert_close([g[b] for g in found], expected)


def test_frozen_weights_and_an_empty_batch() -> None:
    _, wrapped = pair("gru", "batch_first")
    wrapped.layers[0].weight_hh_l0.requires_grad_(False)
    rows = torch.randn(0, 1, T * I + H + 2 * T, dtype=torch.float64)
    found = grad_sample(wrapped.layers[0], [rows], wrapped.layers[0](rows))
    names = {name for name, p in wrapped.layers[0].named_parameters() if p in found}
    assert names == {"weight_ih_l0", "bias_ih_l0", "bias_hh_l0"}
    assert all(g.shape == (0, *p.shape) for p, g in found.items())
    support.same(wrapped(torch.zeros(0, T, I, dtype=torch.float64))[1], torch.zeros(1, 0, H).double())


def test_dropout_between_layers() -> None:
    layer = fastrnn.GRU(I, H, num_layers=2, dropout=0.5)
    wrapped = PerSample(copy.deepcopy(layer))
    x = torch.randn(T, B, I)
    assert not torch.equal(wrapped(x)[0], wrapped(x)[0])
    support.same(wrapped.eval()(x), layer.eval()(x))


def test_arguments_that_do_not_fit() -> None:
    _, wrapped = pair("lstm", "two_layers")
    x = torch.zeros(T, B, I, dtype=torch.float64)
    h = torch.zeros(2, B, H, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"input\.size\(-1\) must be equal to input_size"):
        wrapped(torch.zeros(T, B, I + 1, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        wrapped(x, (h[:1], h))
    with pytest.raises(TypeError, match="got a Tensor as hx"):
        wrapped(x, h)
    with pytest.raises(ValueError, match="lengths should be from 0 to 4"):
        wrapped(x, lengths=[1, 2, 5])
    with pytest.raises(ValueError, match="got 2-D input"):
        wrapped(x[0])
    with pytest.raises(TypeError, match=r"PerSample takes fastrnn\.LSTM"):
        PerSample(nn.LSTM(I, H))
    parametrized = nn.utils.parametrizations.weight_norm(fastrnn.LSTM(I, H), "weight_hh_l0")
    with pytest.raises(TypeError, match=r"PerSample takes fastrnn\.LSTM"):
        PerSample(parametrized)
    pruned = prune.identity(fastrnn.LSTM(I, H), "weight_hh_l0")
    with pytest.raises(TypeError, match="weight_hh_l0 is computed"):
        PerSample(pruned)
