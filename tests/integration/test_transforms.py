"""torch.func and forward-mode AD: against loops, torch.autograd, and the derivative's definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import fastrnn

from .common import DEVICES, KINDS, assert_same, loss_of, tensors

pytestmark = [pytest.mark.parametrize("kind", KINDS), pytest.mark.parametrize("device", DEVICES)]

N, T, B, I, H = 3, 5, 2, 3, 4


def layer_and_input(kind: str, device: str, **kwargs: Any) -> tuple[nn.Module, Tensor]:
    layer = getattr(fastrnn, kind)(I, H, dtype=torch.float64, device=device, **kwargs)
    return layer, torch.randn(N, T, B, I, dtype=torch.float64, device=device)


def test_vmap_over_batch(kind: str, device: str) -> None:
    layer, x = layer_and_input(kind, device, num_layers=2, bidirectional=True)
    assert_same(vmap(lambda a: layer(a)[0])(x), torch.stack([layer(a)[0] for a in x]))
    inner = vmap(vmap(lambda a: layer(a)[0]), in_dims=1, out_dims=1)(x.unsqueeze(1))
    assert_same(inner[:, 0], torch.stack([layer(a)[0] for a in x]))
    with torch.no_grad():
        assert_same(vmap(lambda a: layer(a)[0])(x), torch.stack([layer(a)[0] for a in x]))


def test_vmap_over_batch_unbatched_and_batch_first(kind: str, device: str) -> None:
    layer, x = layer_and_input(kind, device, batch_first=True)
    flat = x[:, :, 0]
    assert_same(vmap(lambda a: layer(a)[0])(flat), torch.stack([layer(a)[0] for a in flat]))
    x = x.transpose(1, 2)
    assert_same(vmap(lambda a: layer(a)[0])(x), torch.stack([layer(a)[0] for a in x]))


def test_vmap_over_state_lengths_and_reset(kind: str, device: str) -> None:
    layer, x = layer_and_input(kind, device, bidirectional=True)
    lengths = torch.randint(0, T + 1, (N, B), device=device)
    reset = torch.rand(N, T, B, device=device) < 0.3
    state = torch.randn(N, 2, B, H, dtype=torch.float64, device=device)

    def run(a: Tensor, n: Tensor, r: Tensor, s: Tensor) -> Tensor:
        return layer(a, (s, 2 * s) if kind == "LSTM" else s, lengths=n, reset=r)[0]

    expected = torch.stack([run(*args) for args in zip(x, lengths, reset, state, strict=True)])
    assert_same(vmap(run)(x, lengths, reset, state), expected)
    once = vmap(run, in_dims=(0, None, None, 0))(x, lengths[0], reset[0], state)
    assert_same(once, torch.stack([run(a, lengths[0], reset[0], s) for a, s in zip(x, state, strict=True)]))


def test_ensemble_of_weights(kind: str, device: str) -> None:
    layers = [layer_and_input(kind, device, bidirectional=True)[0] for _ in range(N)]
    _, x = layer_and_input(kind, device)
    stacked, _ = stack_module_state(layers)

    def run(weights: dict[str, Tensor], a: Tensor) -> Tensor:
        return functional_call(layers[0], weights, (a,))[0]

    same_input = vmap(run, in_dims=(0, None))(stacked, x[0])
    assert_same(same_input, torch.stack([m(x[0])[0] for m in layers]))
    own_input = vmap(run)(stacked, x)
    assert_same(own_input, torch.stack([m(a)[0] for m, a in zip(layers, x, strict=True)]))

    got = torch.autograd.grad(loss_of(same_input), list(stacked.values()))
    expected = torch.stack([m(x[0])[0] for m in layers])
    loss_of(expected).backward()
    for g, each in zip(got, zip(*(m.parameters() for m in layers), strict=True), strict=True):
        assert_same(g, torch.stack([p.grad for p in each]))


def test_gradients_of_an_ensemble(kind: str, device: str) -> None:
    """Every member its own gradient, in one call: how an ensemble is trained."""
    layers = [layer_and_input(kind, device, bidirectional=True)[0] for _ in range(N)]
    _, x = layer_and_input(kind, device)
    stacked, _ = stack_module_state(layers)

    def loss(weights: dict[str, Tensor], a: Tensor) -> Tensor:
        return loss_of(functional_call(layers[0], weights, (a,)))

    got = vmap(grad(loss))({n: w.detach() for n, w in stacked.items()}, x)
    for layer, a in zip(layers, x, strict=True):
        loss_of(layer(a)).backward()
    expected = [torch.stack([layer.get_parameter(n).grad for layer in layers]) for n in got]
    assert_same(list(got.values()), expected)


def test_per_sample_gradients_with_lengths_and_reset(kind: str, device: str) -> None:
    layer, x = layer_and_input(kind, device, bidirectional=True)
    lengths = torch.randint(0, T + 1, (N, B), device=device)
    reset = torch.rand(N, T, B, device=device) < 0.3
    weights = dict(layer.named_parameters())

    def loss(w: dict[str, Tensor], a: Tensor, n: Tensor, r: Tensor) -> Tensor:
        return loss_of(functional_call(layer, w, (a,), {"lengths": n, "reset": r}))

    got = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, x, lengths, reset)
    samples = zip(x, lengths, reset, strict=True)
    each = [torch.autograd.grad(loss(weights, *sample), list(weights.values())) for sample in samples]
    assert_same(list(got.values()), [torch.stack(g) for g in zip(*each, strict=True)])


def test_grad_vjp_and_per_sample_gradients(kind: str, device: str) -> None:
    layer, x = layer_and_input(kind, device, num_layers=2, bidirectional=True)
    weights = dict(layer.named_parameters())

    def loss(w: dict[str, Tensor], a: Tensor) -> Tensor:
        return loss_of(functional_call(layer, w, (a,)))

    expected = [torch.autograd.grad(loss(weights, a), list(weights.values())) for a in x]
    assert_same(list(grad(loss)(weights, x[0]).values()), expected[0])
    _, pull = vjp(loss, weights, x[0])
    assert_same(list(pull(torch.ones((), dtype=x.dtype, device=device))[0].values()), expected[0])
    per_sample = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    assert_same(list(per_sample.values()), [torch.stack(g) for g in zip(*expected, strict=True)])


def test_jacobians_and_hessian(kind: str, device: str) -> None:
    layer, x = layer_and_input(kind, device, bidirectional=True)
    short = x[0, :3]

    def output(a: Tensor) -> Tensor:
        return layer(a)[0]

    def loss(a: Tensor) -> Tensor:
        return loss_of(layer(a)[0].square())

    expected = torch.autograd.functional.jacobian(output, short)
    assert_same(jacrev(output)(short), expected)
    weights = {n: p.detach() for n, p in layer.named_parameters()}

    def of_weights(w: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, w, (short[:2],))[0]

    assert_same(list(jacrev(of_weights)(weights).values()), list(jacfwd(of_weights)(weights).values()))
    assert_same(jacfwd(output)(short), expected)
    second = torch.autograd.functional.hessian(loss, short)
    assert_same(hessian(loss)(short), second)
    assert_same(jacrev(jacrev(loss))(short), second)


def test_jvp_and_forward_ad(kind: str, device: str) -> None:
    layer, x = layer_and_input(kind, device, num_layers=2)
    jacobian = torch.autograd.functional.jacobian(lambda a: layer(a)[0], x[0])
    expected = torch.einsum("tbhsci,sci->tbh", jacobian, x[1])
    _, tangent = jvp(lambda a: layer(a)[0], (x[0],), (x[1],))
    assert_same(tangent, expected)
    with forward_ad.dual_level():
        output, _ = layer(forward_ad.make_dual(x[0], x[1]))
        assert_same(forward_ad.unpack_dual(output).tangent, expected)


def test_jvp_in_weights_and_state(kind: str, device: str) -> None:
    """In every argument at once, with lengths and reset: the derivative in a direction, which the gradient
    gives too."""
    layer, x = layer_and_input(kind, device, bidirectional=True)
    state = torch.randn(2, B, H, dtype=torch.float64, device=device)
    lengths = torch.tensor([T, 2], device=device)
    reset = torch.rand(T, B, device=device) < 0.3

    def loss(w: dict[str, Tensor], a: Tensor, s: Tensor) -> Tensor:
        hx = (s, 2 * s) if kind == "LSTM" else s
        return loss_of(functional_call(layer, w, (a, hx), {"lengths": lengths, "reset": reset}))

    at = ({n: p.detach() for n, p in layer.named_parameters()}, x[0], state)
    direction = ({n: torch.randn_like(p) for n, p in at[0].items()}, x[1], torch.randn_like(state))
    _, slope = jvp(loss, at, direction)
    gradient = grad(loss, argnums=(0, 1, 2))(*at)
    pairs = zip(tensors(gradient), tensors(direction), strict=True)
    assert_same(slope, sum((g * d).sum() for g, d in pairs))


def test_second_derivative_through_func_grad(kind: str, device: str) -> None:
    """As meta-learning does: torch.func.grad inside, .backward() outside."""
    layer, x = layer_and_input(kind, device)
    weights = dict(layer.named_parameters())

    def loss(w: dict[str, Tensor]) -> Tensor:
        return loss_of(functional_call(layer, w, (x[0],)))

    inner = grad(loss)(weights)
    got = torch.autograd.grad(loss_of(inner), list(weights.values()))
    inner = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True)
    assert_same(got, torch.autograd.grad(loss_of(inner), list(weights.values())))


def test_first_order_transforms_run_on_kernels(kind: str, device: str) -> None:
    layer, x = layer_and_input(kind, device)
    paths = []

    def run(a: Tensor) -> Tensor:
        paths.append(fastrnn.explain(layer, a).path)
        return layer(a)[0].sum()

    plain = fastrnn.explain(layer, x[0]).path
    vmap(grad(run))(x)
    jvp(run, (x[0],), (x[1],))
    grad(lambda a: grad(run)(a).sum())(x[0])
    assert paths == [plain if plain == "fused" else "reference", "reference", "reference"]


def test_cells_under_vmap_and_jvp(kind: str, device: str) -> None:
    cell = getattr(fastrnn, f"{kind}Cell")(I, H, dtype=torch.float64, device=device)
    x = torch.randn(N, B, I, dtype=torch.float64, device=device)

    def run(a: Tensor) -> Tensor:
        h = cell(a)
        return h[0] if kind == "LSTM" else h

    assert_same(vmap(run)(x), torch.stack([run(a) for a in x]))
    assert_same(jacfwd(run)(x[0]), jacrev(run)(x[0]))
    rows = grad(lambda a: loss_of(run(a)))(x[0])
    a = x[0].clone().requires_grad_()
    assert_same(rows, torch.autograd.grad(loss_of(run(a)), a)[0])
