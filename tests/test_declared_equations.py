"""The C++ of declared cells computes what their Python functions and torch's derivatives compute."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from declared import CELLS, random_cells
from hypothesis import given, settings
from torch import Tensor

from fastrnn.cells import Cell
from fastrnn.cells.compiler import compile_shared_object
from fastrnn.cells.printing import print_cell

HARNESS = Path(__file__).with_name("scalar_cell.h")
UNITS = 200


def by_cpp(cell: Cell, values: list[Tensor]) -> Tensor:
    struct = f"namespace fastrnn {{\n{print_cell(cell).text}}}"
    text = f'#include "cells/functions.h"\n{struct}\n#include "{HARNESS}"\n'
    library = ctypes.CDLL(str(compile_shared_object(cell.__name__, text)))
    count = 2 * len(cell.states) + len(parts(cell)) + len(cell.weights) + len(cell.inputs)
    out = torch.empty(count, UNITS, dtype=torch.float64)
    given = torch.stack(values)
    library.run(ctypes.c_long(UNITS), ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr()))
    return out


def parts(cell: Cell) -> list[str]:
    """Parameters of the gates in the order of their slots."""
    return [g.parts[0] for g in cell.gates] + [g.parts[1] for g in cell.gates if len(g.parts) == 2]


def by_torch(cell: Cell, values: list[Tensor]) -> Tensor:
    names = [*parts(cell), *cell.states, *cell.weights, *cell.inputs]
    given, outer = values[: len(names)], values[len(names) :]
    leaves = [t.unsqueeze(0).clone().requires_grad_() for t in given]
    new = cell.step(dict(zip(names, leaves, strict=True)))
    pairs = [(n, d) for n, d in zip(new, outer, strict=True) if n.requires_grad]
    gradients: list[Tensor] = [torch.zeros(1, UNITS)] * len(names)
    if pairs:
        gradients = list(
            torch.autograd.grad(
                [n for n, _ in pairs],
                leaves,
                [d.unsqueeze(0) for _, d in pairs],
                materialize_grads=True,
                allow_unused=True,
            )
        )
    return torch.cat([t.detach().double() for t in (*new, *gradients)])


def check(cell: Cell) -> None:
    count = 2 * len(cell.states) + len(parts(cell)) + len(cell.weights) + len(cell.inputs)
    values = list(torch.randn(count, UNITS, dtype=torch.float64))
    ours, exact = by_cpp(cell, values), by_torch(cell, values)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", CELLS)
def test_declared_cell(name: str) -> None:
    check(CELLS[name])


@settings(max_examples=10)
@given(random_cells())
def test_random_cell(cell: Cell) -> None:
    check(cell)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("lstm", {"sigmoid", "sigmoid_1", "sigmoid_2", "tanh"}),
        ("gru", {"sigmoid", "sigmoid_1", "tanh", "arg3_1"}),  # the last is n_h
        ("rnn_tanh", set()),
        ("rnn_relu", set()),
    ],
)
def test_keeps_what_the_written_cells_keep(name: str, kept: set[str]) -> None:
    assert set(print_cell(CELLS[name]).kept) == kept


def test_nothing_around_the_caller_matters() -> None:
    cell = CELLS["conditional"]
    text = print_cell(cell).text
    with torch.no_grad(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert print_cell(cell).text == text
    with torch.inference_mode():
        assert print_cell(cell).text == text
    texts = []
    torch.vmap(lambda x: texts.append(print_cell(cell).text) or x)(torch.zeros(2))
    assert texts == [text]
