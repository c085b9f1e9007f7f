"""Declaring a cell: what signatures mean, and one clear sentence about every function that is no cell."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
from collections.abc import Callable

import declared
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import fastrnn
from fastrnn.cells import Cell, CellError
from fastrnn.cells.printing import print_cell

OUTSIDE = torch.ones(3)
MATRIX = torch.ones(128, 128)


def test_what_is_not_named_is_a_gate() -> None:
    assert [g.name for g in declared.peephole.gates] == ["i", "f", "g", "o"]
    assert [g.parts for g in declared.gru.gates] == [("r",), ("z",), ("n_x", "n_h")]
    assert [g.name for g in declared.split_first.gates] == ["n", "r", "z"]
    assert declared.peephole.weights == ("p_i", "p_f", "p_o")
    assert declared.slstm.states == ("h", "c", "n", "m")


def test_a_cell_is_its_function() -> None:
    a, h = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(declared.rnn_tanh(a, h), a.tanh())
    assert declared.rnn_tanh.__name__ == "rnn_tanh"
    assert declared.spiking.__doc__.startswith("Leaky")


def test_bare_and_called_decorators_are_the_same() -> None:
    def step(a, h):
        return a

    assert (
        fastrnn.cell(step).states == fastrnn.cell()(step).states == fastrnn.cell(states=["h"])(step).states
    )


def test_copies_and_pickles_are_the_same_cell() -> None:
    assert copy.deepcopy(declared.gru) is declared.gru is copy.copy(declared.gru)
    assert pickle.loads(pickle.dumps(declared.gru)) is declared.gru


def plain_step(a, h):
    return a


under_another_name = fastrnn.cell(plain_step)


def test_a_cell_under_another_name_than_its_function_is_pickled_with_it() -> None:
    twin = pickle.loads(pickle.dumps(under_another_name))
    assert twin.function is plain_step
    assert twin.gates == under_another_name.gates


def scaled(factor, a, h, *, shift=0.0):
    return factor * a + shift


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, a, h):
        return scaled(self.factor, a, h)

    def step(self, a, h):
        return scaled(self.factor, a, h)


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (functools.partial(scaled, 2.0), "scaled"),
        (functools.partial(scaled, 2.0, shift=0.0), "scaled"),
        (Scaled(2.0), "Scaled"),
        (Scaled(2.0).step, "step"),
    ],
)
def test_callables_that_are_no_functions(step: Callable, name: str) -> None:
    cell, a = fastrnn.cell(step), torch.randn(2, 3)
    assert cell.__name__ == name
    assert cell.parameters == ("a", "h")
    assert torch.equal(pickle.loads(pickle.dumps(cell))(a, a), 2 * a)
    print_cell(cell)


def test_import_brings_no_tracer() -> None:
    code = "import fastrnn, sys; assert not {'torch._dynamo', 'fastrnn.cells.tracing'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("step", "options", "sentence"),
    [
        (lambda a, h, *more: a, {}, r"takes \*more; name every gate"),
        (lambda a, h, **more: a, {}, r"takes \*\*more; name every gate"),
        (lambda a, h=0: a, {}, "gives h a default; write the number"),
        (lambda a, h: a, {"states": "h c"}, "has no parameter 'c'"),
        (lambda a, h: a, {"states": ""}, "has no state"),
        (lambda a, h: a, {"weights": "h"}, "names 'h' twice"),
        (lambda a_x, h: a_x, {}, "has a_x but no a_h; a gate has one part or both"),
        (lambda a, a_x, a_h, h: a, {}, "has a gate a both whole and in two parts"),
        (lambda h: h, {}, "has no gate"),
    ],
)
def test_signatures_that_do_not_fit(step: Callable, options: dict, sentence: str) -> None:
    with pytest.raises(CellError, match=sentence):
        fastrnn.cell(**options)(step)


def product(a, h):
    return a + h @ MATRIX


def other_units(a, h):
    return a - a.mean()


def softmax(a, h):
    return F.softmax(a, -1)


def neighbor(a, h):
    return torch.roll(a, 1, -1)


def prefix(a, h):
    return torch.cumsum(a, -1)


def random(a, h):
    return F.dropout(a)


def outside(a, h):
    return a * OUTSIDE


def part_of_outside(a, h):
    return a * OUTSIDE[: a.shape[-1]]


def branch(a, h):
    if (a > 0).all():
        return a
    return h


def number(a, h):
    return a * float(torch.tensor(2.0))


def size(a, h):
    return a / a.shape[-1]


def constant_of_units(a, h):
    return a * torch.full_like(h, 1 / h.shape[-1])


def constant_of_rows(a, h):
    return a * h.new_tensor(h.shape[0])


def one_row(a, h):
    return torch.tanh(a) if len(a) == 1 else torch.sigmoid(a)


def precision(a, h):
    return a / (h + torch.finfo(h.dtype).eps)


def in_place(a, h):
    return h.mul_(a)


def narrower(a, h):
    return a.half() + h


def integers(a, h):
    return a * ((a > 0).int() & (h > 0).int())


def no_cpp(a, h):
    return a + torch.lgamma(1 + h * h)


def helper(a):
    return torch.special.i0(a)


def no_cpp_in_another_function(a, h):
    return helper(a) + h


REFUSED = {
    product: "`h @ MATRIX` is a product; a cell's only products are its gates",
    other_units: "`a.mean()` looks at other units",
    softmax: "`F.softmax(a, -1)` looks at other units",
    neighbor: "`torch.roll(a, 1, -1)` looks at other units",
    prefix: "`torch.cumsum(a, -1)` looks at other units",
    random: "`F.dropout(a)` draws random numbers; give them as inputs",
    outside: "`a * OUTSIDE` uses a tensor from outside; name it in weights or inputs",
    part_of_outside: "`OUTSIDE[: a.shape[-1]]` uses a tensor from outside; name it in weights or inputs",
    branch: "`(a > 0).all()` looks at other units",
    number: "`float(torch.tensor(2.0))` takes a number out of a tensor; choose by torch.where",
    size: "`a / a.shape[-1]` depends on the number of units",
    constant_of_units: "`torch.full_like(h, 1 / h.shape[-1])` depends on the number of units",
    constant_of_rows: "`h.new_tensor(h.shape[0])` depends on the batch size",
    one_row: "`torch.sigmoid(a)` depends on the batch size",
    precision: "`h + torch.finfo(h.dtype).eps` depends on the dtype",
    in_place: "`h.mul_(a)` changes an argument in place; make a new tensor of it",
    narrower: "`a.half()` converts to float16; a cell has one dtype",
    integers: "`(a > 0).int() & (h > 0).int()` calls bitwise_and, which has no C++ form",
    no_cpp: "`torch.lgamma(1 + h * h)` calls lgamma, which has no C++ form",
    no_cpp_in_another_function: "`torch.special.i0(a)` calls i0, which has no C++ form",
}


@pytest.mark.parametrize("step", REFUSED)
def test_what_cannot_be_compiled_is_said_of_the_users_own_line(step: Callable) -> None:
    with pytest.raises(CellError) as error:
        print_cell(fastrnn.cell(step))
    file, line = __file__.rsplit("/", 1)[-1], step.__code__.co_firstlineno + 1
    if step is no_cpp_in_another_function:
        line = helper.__code__.co_firstlineno + 1
    assert str(error.value) == f"{step.__name__} ({file}:{line}): {REFUSED[step]}"


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (lambda a, h: 1.0, "returns a float; return the new h"),
        (lambda a, h: (a, a), "returns 2 values; return the new h"),
        (lambda a, h: [1.0], "returns a float for h; return a tensor"),
        (lambda a, h: a > 0, "returns torch.bool of shape"),
        (lambda a, h: torch.zeros(()), "returns torch.float32 of shape"),
        (lambda a, h: OUTSIDE, "returns a tensor from outside for h"),
    ],
)
def test_results_that_are_no_states(step: Callable, sentence: str) -> None:
    with pytest.raises(CellError, match=sentence):
        print_cell(fastrnn.cell(step))


@pytest.mark.parametrize("count", [9, 12])
def test_more_than_the_kernels_can_hold(count: int) -> None:
    names = ", ".join(f"g{i}" for i in range(count))
    scope: dict = {}
    exec(f"def many({names}, h): return g0", scope)
    with pytest.raises(CellError, match=f"has {count} gates; compiled cells have 8 at most"):
        print_cell(Cell(scope["many"], ["h"], [], []))
