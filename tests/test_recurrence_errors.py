"""Errors of fastrnn.Recurrence: clear sentences, from the constructor and from calls."""

from __future__ import annotations

from typing import Any

import declared
import pytest
import torch

import fastrnn
from fastrnn import ops
from fastrnn.cells import CellError


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((torch.tanh, 3, 5), {}, "expected a cell; declare it by @fastrnn.cell"),
        ((declared.gru, 0, 5), {}, "input_size should be a positive integer, got 0"),
        ((declared.gru, 3, 5.0), {}, "hidden_size should be a positive integer, got 5.0"),
        ((declared.gru, 3, 5), {"dropout": 2}, "dropout should be from 0 to 1, got 2"),
        ((declared.gru, 3, 5), {"memory": "less"}, "memory should be 'full' or 'lean', got 'less'"),
    ],
)
def test_constructor_errors(arguments: Any, options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fastrnn.Recurrence(*arguments, **options)


def test_an_input_named_as_an_argument() -> None:
    @fastrnn.cell(inputs="lengths")
    def clash(a, h, lengths):
        return a * lengths

    with pytest.raises(CellError, match="names an input 'lengths', as an argument of forward"):
        fastrnn.Recurrence(clash, 3, 5)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_a_weight_named_as_the_layers_own(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def clash(a, h, {name}): return a", scope)
    with pytest.raises(CellError, match=f"names a weight '{name}', as the layer's own weights"):
        fastrnn.Recurrence(fastrnn.cell(weights=name)(scope["clash"]), 3, 5)


def test_a_function_that_is_no_cell() -> None:
    with pytest.raises(CellError, match="returns 2 values; return the new h"):
        fastrnn.Recurrence(fastrnn.cell(lambda a, h: (a, a)), 3, 5)


X = torch.randn(4, 2, 3)
CALLS: list[tuple[Any, dict[str, Any], str]] = [
    ((X[..., :2],), {}, "got an input of size 2, expected input_size=3"),
    ((X[0, 0],), {}, "got 1 dimensions as input"),
    (([1],), {}, "got a list as input"),
    ((X[:0],), {}, "got a sequence of no steps"),
    ((X.double(),), {}, "got a tensor of torch.float64 on cpu, expected torch.float32"),
    ((X, torch.zeros(1, 2, 5)), {}, "got 1 for hx, expected a tuple of 2 tensors: h, c"),
    ((X, 3), {}, "got a int for hx"),
    ((X, (torch.zeros(1, 2, 5), torch.zeros(1, 3, 5))), {}, r"got hx of shape \(1, 3, 5\) for c, expected"),
    ((X,), {"lengths": torch.tensor([1.0, 2.0])}, "lengths should be an int64 tensor"),
    ((X,), {"z_h": torch.rand(3, 5)}, r"got z_h of shape \(3, 5\), expected 5 numbers for each step"),
    ((X,), {"z_h": [torch.rand(5)] * 3}, "got 3 for z_h, expected a tensor, or 1"),
    ((X,), {"z_h": 0.5}, "got a float for z_h"),
]


@pytest.mark.parametrize(("arguments", "kwargs", "sentence"), CALLS, ids=[c[2][:30] for c in CALLS])
def test_call_errors(arguments: Any, kwargs: Any, sentence: str) -> None:
    layer = fastrnn.Recurrence(declared.zoneout, 3, 5)
    with pytest.raises(ValueError, match=sentence):
        layer(*arguments, **({"z_h": torch.rand(5), "z_c": torch.rand(5)} | kwargs))


def test_missing_and_unknown_inputs() -> None:
    layer = fastrnn.Recurrence(declared.decaying, 3, 5)
    with pytest.raises(TypeError, match="decaying misses input gamma; it takes gamma"):
        layer(X)
    with pytest.raises(TypeError, match="decaying has no input delta; it takes gamma"):
        layer(X, gamma=torch.rand(5), delta=1)


def test_operators_refuse_what_is_not_the_cells() -> None:
    layer = fastrnn.Recurrence(declared.peephole, 3, 5)
    w = layer._layer_weights()[0]
    zeros = torch.zeros(2, 5)
    common = (layer._name, X, zeros, zeros, *w[:5], None, None, None, False, 0)
    with pytest.raises(ValueError, match="needs unit_weights"):
        ops.forward(*common, given=(None, None))
    with pytest.raises(ValueError, match=r"unit_weights must have the shape \[15\]"):
        ops.forward(*common, given=(w[5][:3], None))
    with pytest.raises(ValueError, match="has no step_inputs"):
        ops.forward(*common, given=(w[5], X))
    with pytest.raises(ValueError, match="was compiled with the headers of another fastrnn"):
        torch.ops.fastrnn.load_cell("unknown", torch.zeros(100, dtype=torch.int64).data_ptr())
