"""Cells that nobody wrote: results as a torch loop's, and derivatives as finite differences."""

from __future__ import annotations

from typing import Any

import torch
from declared import random_cells
from hypothesis import given, settings
from support import leaves, tensors_of
from torch import Tensor

import fastrnn
from fastrnn.cells import Cell


@settings(max_examples=20)
@given(random_cells())
def test_derivatives(cell: Cell) -> None:
    layer = fastrnn.Recurrence(cell, 2, 3, dtype=torch.float64)
    names, count = list(dict(layer.named_parameters())), len(cell.states)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    states = [torch.rand(1, 2, 3, dtype=torch.float64) for _ in cell.states]
    inputs = [torch.rand(3, 2, 3, dtype=torch.float64) for _ in cell.inputs]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, states, others = tensors[0], tensors[1 : 1 + count], tensors[1 + count :]
        step_inputs = dict(zip(cell.inputs, others, strict=False))
        own = dict(zip(names, others[len(inputs) :], strict=True))
        hx: Any = states if count > 1 else states[0]
        return tuple(tensors_of(torch.func.functional_call(layer, own, (x, hx), step_inputs)))

    tensors = leaves(x, *states, *inputs, *layer.parameters())
    assert (
        fastrnn.explain(layer, x, tuple(states), **dict(zip(cell.inputs, inputs, strict=True))).path
        == "fused"
    )
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)
