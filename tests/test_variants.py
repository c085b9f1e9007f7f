"""The layers that come with generated kernels: their papers' equations as plain loops, headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import declared
import pytest
import torch
from support import check_rule, errors, leaves, tensors_of
from torch import Tensor, nn

import fastrnn
from fastrnn.cells import compiler, headers, plugin
from fastrnn.nn.variants import GENERATED

State = tuple[Tensor, ...]


# One step of each paper: the gates' pre-activations in the order of the weights' rows, and the layer.
def peephole(a: tuple[Tensor, ...], state: State, layer: Any) -> State:
    (_, c), (p_i, p_f, p_o) = state, (layer.p_i_l0, layer.p_f_l0, layer.p_o_l0)
    i = 1 / (1 + torch.exp(-(a[0] + p_i * c)))
    f = 1 / (1 + torch.exp(-(a[1] + p_f * c)))
    new = f * c + i * torch.tanh(a[2])
    o = 1 / (1 + torch.exp(-(a[3] + p_o * new)))
    return o * torch.tanh(new), new


def coupled(a: tuple[Tensor, ...], state: State, layer: Any) -> State:
    i, g, o = torch.sigmoid(a[0]), torch.tanh(a[1]), torch.sigmoid(a[2])
    f = 1 - i
    c = f * state[1] + i * g
    return o * torch.tanh(c), c


def light(a: tuple[Tensor, ...], state: State, layer: Any) -> State:
    z, candidate = torch.sigmoid(a[0]), torch.clamp(a[1], min=0)
    return (z * state[0] + (1 - z) * candidate,)


VARIANTS: dict[str, tuple[type[fastrnn.Recurrence], Callable[..., State], int]] = {
    "peephole_lstm": (fastrnn.PeepholeLSTM, peephole, 4),
    "coupled_lstm": (fastrnn.CoupledLSTM, coupled, 3),
    "ligru": (fastrnn.LiGRU, light, 2),
}
each = pytest.mark.parametrize("name", VARIANTS)


def loop(name: str, layer: Any, x: Tensor, state: State) -> list[Tensor]:
    _, step, gates = VARIANTS[name]
    ys = []
    for row in x:
        a = (
            row @ layer.weight_ih_l0.T
            + layer.bias_ih_l0
            + state[0] @ layer.weight_hh_l0.T
            + layer.bias_hh_l0
        )
        state = step(a.chunk(gates, -1), state, layer)
        ys.append(state[0])
    return [torch.stack(ys), *state]


def by_kernels(layer: Any, x: Tensor, state: State) -> list[Tensor]:
    hx: Any = tuple(s[None] for s in state)
    hx = hx if len(hx) > 1 else hx[0]
    assert fastrnn.explain(layer, x, hx).path == "fused"
    return tensors_of(layer(x, hx))


def results(run: Any, layer: nn.Module, x: Tensor, state: State) -> list[Tensor]:
    """Results, and gradients of everything for random gradients of the results."""
    x, *state = leaves(x, *state)
    outputs = [t.reshape(-1) for t in run(layer, x, tuple(state))]
    generator = torch.Generator().manual_seed(1)
    outer = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x, *state, *layer.parameters()], outer)]


def problem(name: str, dtype: torch.dtype, T: int, B: int, I: int, H: int) -> tuple[Any, Tensor, State]:
    layer = VARIANTS[name][0](I, H, dtype=dtype)
    count = len(layer.cell.states)
    return layer, torch.randn(T, B, I, dtype=dtype), tuple(torch.rand(count, B, H, dtype=dtype))


@each
def test_generated_header_is_up_to_date(name: str) -> None:
    cell = GENERATED[name]
    assert headers.path_of(cell).read_text() == headers.header_of(cell)


def test_every_generated_cell_is_tested() -> None:
    assert GENERATED.keys() == VARIANTS.keys()


@each
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (40, 9, 33, 65)], ids=str)
def test_float64_equals_the_equations(name: str, sizes: tuple[int, int, int, int]) -> None:
    layer, x, state = problem(name, torch.float64, *sizes)
    ours = results(by_kernels, layer, x, state)
    exact = results(lambda *args: loop(name, *args), layer, x, state)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_exactness(name: str, dtype: torch.dtype) -> None:
    def draw(i: int) -> Any:
        torch.manual_seed(i)
        layer, x, state = problem(name, dtype, 9, 5, 7, 37)

        def plain(*args: Any) -> list[Tensor]:
            return loop(name, *args)

        ours, theirs = results(by_kernels, layer, x, state), results(plain, layer, x, state)
        exact = results(plain, layer.double(), x.double(), tuple(s.double() for s in state))
        return errors([f"tensor {i}" for i in range(len(exact))], exact, theirs, ours, dtype)

    check_rule(name, dtype, draw)


@each
def test_derivatives(name: str) -> None:
    layer, x, state = problem(name, torch.float64, 3, 2, 2, 3)
    names = list(dict(layer.named_parameters()))
    count = len(state)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, state, own = (
            tensors[0],
            tensors[1 : 1 + count],
            dict(zip(names, tensors[1 + count :], strict=True)),
        )
        hx: Any = tuple(s[None] for s in state) if count > 1 else state[0][None]
        return tuple(tensors_of(torch.func.functional_call(layer, own, (x, hx))))

    inputs = leaves(x, *state, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@each
def test_needs_no_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError("called the compiler")

    monkeypatch.setattr(compiler, "find_compiler", fails)
    assert plugin._register(GENERATED[name]) == plugin.Registered(name, None)


def test_equal_equations_with_a_compiler_give_the_same() -> None:
    ours, own = fastrnn.PeepholeLSTM(3, 20), fastrnn.Recurrence(declared.peephole, 3, 20)
    own.load_state_dict(ours.state_dict())
    x = torch.randn(5, 4, 3)
    assert all(map(torch.equal, tensors_of(ours(x)), tensors_of(own(x))))
    assert repr(ours) == "PeepholeLSTM(3, 20)"


def test_a_library_without_the_cell() -> None:
    with pytest.raises(ValueError, match="this build has no cell named 'unknown'"):
        torch.ops.fastrnn.load_cell("unknown", 0)
