"""Derivatives of many outputs at once, and derivatives of these: as torch.nn's, or as a loop's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap

T, B, I, H = 2, 2, 2, 3
FLAGS = {**support.FLAGS, "lean": {"memory": "lean"}}
CASES = [
    *((cell, flag) for cell in support.LAYERS for flag in FLAGS if flag != "projected" or cell == "lstm"),
    *((cell, "cell_module") for cell in support.CELLS),
]
MASKS: dict[str, dict[str, Tensor]] = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([1, T])},
    "reset": {"reset": torch.tensor([[False, True], [True, False]])},
}


class Net(nn.Module):
    """A recurrent module between two linear ones, so that gradients go through it in both directions."""

    def __init__(self, recurrent: nn.Module, **masks: Tensor) -> None:
        super().__init__()
        self.inner, self.recurrent, self.masks = nn.Linear(I, I), recurrent, masks
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        result = self.recurrent(self.inner(x).tanh(), **self.masks)
        while isinstance(result, tuple):
            result = result[0]
        return result.tanh()


def make(cell: str, flag: str, masks: str = "plain") -> tuple[Net, Tensor]:
    if flag == "cell_module":
        return Net(support.cell_twins(cell, I, H)[1]), torch.randn(B, I, dtype=torch.float64)
    net = Net(support.ours(cell, I, H, **FLAGS[flag]), **MASKS[masks])
    shape = (B, T, I) if flag == "batch_first" else (T, B, I)
    return net, torch.randn(shape, dtype=torch.float64)


def gradients(net: nn.Module, scalar: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(scalar, list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), found, strict=True)]


def jacobian_by_rows(net: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(net, x, create_graph=True)


def jacobian_vectorized(net: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(net, x, create_graph=True, vectorize=True)


def jacobian_by_grads_batched(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = net(x)
    basis = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    (rows,) = torch.autograd.grad(y, x, basis, create_graph=True, is_grads_batched=True)
    return rows.view(*y.shape, *x.shape)


def jacobian_by_vmap_of_grad(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = net(x)
    basis = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    rows = vmap(lambda v: torch.autograd.grad(y, x, v, create_graph=True)[0])(basis)
    return rows.view(*y.shape, *x.shape)


def jacobian_by_pullback(net: nn.Module, x: Tensor) -> Tensor:
    y, pullback = vjp(net, x)
    basis = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    return vmap(pullback)(basis)[0].view(*y.shape, *x.shape)


def jacobian_by_jacrev(net: nn.Module, x: Tensor) -> Tensor:
    return jacrev(net)(x)


JACOBIANS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "vectorize": jacobian_vectorized,
    "is_grads_batched": jacobian_by_grads_batched,
    "vmap_of_grad": jacobian_by_vmap_of_grad,
    "vmap_of_pullback": jacobian_by_pullback,
    "jacrev": jacobian_by_jacrev,
}


@pytest.mark.parametrize("way", JACOBIANS)
@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_gradient_of_a_jacobian(cell: str, flag: str, way: str) -> None:
    net, x = make(cell, flag)
    expected, found = jacobian_by_rows(net, x), JACOBIANS[way](net, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        gradients(net, found.pow(2).sum()), gradients(net, expected.pow(2).sum()), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("masks", ["lengths", "reset"])
@pytest.mark.parametrize("way", JACOBIANS)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_gradient_of_a_jacobian_with_masks(cell: str, way: str, masks: str) -> None:
    net, x = make(cell, "bidirectional", masks)
    expected, found = jacobian_by_rows(net, x), JACOBIANS[way](net, x)
    torch.testing.assert_close(
        gradients(net, found.pow(2).sum()), gradients(net, expected.pow(2).sum()), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_hessian_vectorized(cell: str) -> None:
    net, x = make(cell, "plain")
    x = x[:2, :1]

    def penalty(vectorize: bool) -> list[Tensor]:
        hessian: Any = torch.autograd.functional.hessian(
            lambda x: net(x).pow(2).sum(), x, create_graph=True, vectorize=vectorize
        )
        return [hessian, *gradients(net, hessian.pow(2).sum())]

    torch.testing.assert_close(penalty(True), penalty(False), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("outer", ["backward", "grad"])
@pytest.mark.parametrize(
    ("cell", "flag"), [c for c in CASES if c[1] in ("plain", "two_layers", "cell_module")]
)
def test_meta_learning_vmapped_over_tasks(cell: str, flag: str, outer: str) -> None:
    """An inner step of gradient descent for each task, and the gradient of the loss after it."""
    net, x = make(cell, flag)
    tasks = torch.randn(3, *x.shape, dtype=torch.float64)
    parameters = dict(net.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, weights, (x,)).pow(2).mean()

    def after_one_step(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        steps = grad(loss)(weights, x)
        return loss({n: w - 0.3 * steps[n] for n, w in weights.items()}, x)

    def by_hand(x: Tensor) -> Tensor:
        found = torch.autograd.grad(loss(parameters, x), list(parameters.values()), create_graph=True)
        stepped = {n: w - 0.3 * g for (n, w), g in zip(parameters.items(), found, strict=True)}
        return loss(stepped, x)

    expected = gradients(net, torch.stack([by_hand(x) for x in tasks]).sum())
    if outer == "grad":
        detached = {n: p.detach() for n, p in parameters.items()}
        total = grad(lambda w: vmap(after_one_step, (None, 0))(w, tasks).sum())(detached)
        found = list(total.values())
    else:
        found = gradients(net, vmap(after_one_step, (None, 0))(parameters, tasks).sum())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_batched_gradients_without_a_graph_of_them(cell: str) -> None:
    """As a loop's, in every dtype that has kernels."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        layer = support.ours(cell, I, H, dtype=dtype)
        x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
        y = layer(x)[0]
        rows = torch.randn(5, *y.shape, dtype=dtype)
        (found,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
        expected = torch.stack([torch.autograd.grad(y, x, row, retain_graph=True)[0] for row in rows])
        torch.testing.assert_close(found, expected)
