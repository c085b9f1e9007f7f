"""First and second derivatives, and how autograd is used: what it keeps, asks for and never changes."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

T, B, I, H = 3, 2, 3, 4
FORMS = ("padded", "unbatched", "packed", "lengths", "reset")


def inputs(layer: Any, device: str, form: str = "padded") -> list[Tensor]:
    """x and initial states, leaves in float64."""
    options = {"device": device, "dtype": torch.float64}
    if form == "unbatched":
        shape: tuple[int, ...] = (T, I)
    else:
        shape = (B, T, I) if layer.batch_first else (T, B, I)
    state = support.initial_state(layer, None if form == "unbatched" else B, **options)
    states = [state] if isinstance(state, Tensor) else state
    return support.leaves(torch.randn(shape, **options), *states)


def call(layer: Any, form: str, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
    hx = states[0] if len(states) == 1 else states
    masks = {}
    if form == "lengths":
        masks["lengths"] = torch.tensor([2, 3], device=x.device)
    if form == "reset":
        reset = torch.tensor([[False, True], [True, False], [False, True]], device=x.device)
        masks["reset"] = reset.t() if layer.batch_first else reset
    if form == "packed":
        lengths = torch.tensor([2, 3])
        x = pack_padded_sequence(x, lengths, batch_first=layer.batch_first, enforce_sorted=False)
    return tuple(support.tensors_of(layer(x, hx, **masks)))


def as_function(layer: Any, form: str) -> Any:
    """The layer as a function of x, states and parameters."""
    names = [name for name, _ in layer.named_parameters()]
    states = 2 if isinstance(layer, torch.nn.LSTM) else 1

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            return call(self.layer, form, *tensors)

    called = Called()

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        parameters = {f"layer.{n}": p for n, p in zip(names, tensors[1 + states :], strict=True)}
        return torch.func.functional_call(called, parameters, tensors[: 1 + states])

    return function


def check_derivatives(layer: Any, form: str, device: str) -> None:
    tensors = (*inputs(layer, device, form), *support.leaves(*layer.parameters()))
    function = as_function(layer, form)
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize(("cell", "flag"), support.layer_cases())
def test_flags(cell: str, flag: str, device: str) -> None:
    layer = support.ours(cell, I, H, **support.FLAGS[flag], device=device, dtype=torch.float64)
    check_derivatives(layer, "padded", device)


@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_forms(cell: str, form: str, memory: str, device: str) -> None:
    flags: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "memory": memory}
    if cell == "lstm":
        flags["proj_size"] = 3
    layer = support.ours(cell, I, H, **flags, device=device, dtype=torch.float64)
    check_derivatives(layer, form, device)


# Half of the sequences end early, one at once; T and B are such that threads have slices and chunks.
PADDED_T, PADDED_B = 11, 9
PADDED_LENGTHS = torch.tensor([11, 0, 3, 11, 1, 7, 11, 10, 11])


def padded_results(layer: Any, x: Tensor, reset: Tensor | None, order: int) -> list[Tensor]:
    """All results, gradients of a scalar of them by x and parameters, and of a scalar of these."""
    x = x.detach().requires_grad_()
    masks = {"lengths": PADDED_LENGTHS.to(x.device), "reset": reset}
    found = support.tensors_of(layer(x, **masks, states=True))
    for _ in range(order):
        scalar = sum(t.double().square().sum() for t in found)
        found += torch.autograd.grad(scalar, [x, *layer.parameters()], create_graph=order == 2)
    return found


@pytest.mark.parametrize("fill", [float("nan"), float("inf")])
@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize(
    ("dtype", "order"),
    [(torch.float64, 2), (torch.float32, 1), (torch.bfloat16, 1), (torch.float16, 1)],
    ids=str,
)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_what_padding_holds_makes_no_difference(
    cell: str, dtype: torch.dtype, order: int, memory: str, fill: float, device: str
) -> None:
    flags: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "memory": memory}
    if cell == "lstm":
        flags["proj_size"] = 3
    layer = support.ours(cell, I, H, **flags, device=device, dtype=dtype)
    x = torch.randn(PADDED_T, PADDED_B, I, device=device).to(dtype)
    beyond = (torch.arange(PADDED_T).unsqueeze(1) >= PADDED_LENGTHS).unsqueeze(-1).to(device)
    for reset in (None, torch.rand(PADDED_T, PADDED_B, device=device) < 0.3):
        zeros, filled = (
            padded_results(layer, x.masked_fill(beyond, value), reset, order) for value in (0, fill)
        )
        for a, b in zip(zeros, filled, strict=True):
            assert torch.equal(a, b)
        if order == 1:
            dx = filled[-1 - len(list(layer.parameters()))]
            assert not dx.masked_select(beyond).any()


@pytest.mark.parametrize("cell", support.LAYERS)
def test_gradients_are_nan_where_torchs_are(cell: str, device: str) -> None:
    x = torch.randn(5, 3, I, device=device)
    x[2, 1, 0] = float("nan")
    gradients = []
    for layer in support.twins(cell, I, H, device=device):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)[0]
        assert y.isnan().any()
        gradients.append(torch.autograd.grad(y, [leaf, *layer.parameters()], torch.ones_like(y)))
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("cell", support.LAYERS)
def test_exhaustive(cell: str, device: str) -> None:
    """Every element of every Jacobian, where the tests above take random directions."""
    layer = support.ours(cell, 2, 2, device=device, dtype=torch.float64)
    options = {"device": device, "dtype": torch.float64}
    state = support.initial_state(layer, B, **options)
    x, *states = support.leaves(torch.randn(2, B, 2, **options), *support.tensors_of(state))
    tensors = (x, *states, *support.leaves(*layer.parameters()))
    assert gradcheck(as_function(layer, "padded"), tensors)
    assert gradgradcheck(as_function(layer, "padded"), tensors)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", support.CELLS)
def test_cells(cell: str, bias: bool, device: str) -> None:
    module = support.cell_twins(cell, I, H, bias=bias, device=device, dtype=torch.float64)[1]
    names = [n for n, _ in module.named_parameters()]
    count = 2 if cell == "lstm" else 1

    def function(x: Tensor, *rest: Tensor) -> Any:
        hx = rest[:2] if count == 2 else rest[0]
        return torch.func.functional_call(module, dict(zip(names, rest[count:], strict=True)), (x, hx))

    options = {"device": device, "dtype": torch.float64}
    for leading in ((B,), ()):
        tensors = support.leaves(
            torch.randn(*leading, I, **options),
            *(torch.randn(*leading, H, **options) for _ in range(count)),
            *module.parameters(),
        )
        assert gradcheck(function, tensors, fast_mode=True)
        assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize(
    ("cell", "memory", "most"),
    [("lstm", "full", 6), ("lstm", "lean", 2), ("gru", "full", 5), ("gru", "lean", 1)],
)
def test_memory_between_forward_and_backward(cell: str, memory: str, most: int, device: str) -> None:
    """Numbers kept for each of T * B * H, the output among them, the input and the parameters not."""
    T, B, H = 40, 3, 16
    layer = support.ours(cell, I, H, memory=memory, device=device)
    x = torch.randn(T, B, I, device=device, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = layer(x)[0]
    keep(output)
    for t in (x, *layer.parameters()):
        kept.pop(t.untyped_storage().data_ptr(), None)
    states = 2 * B * H  # the initial ones
    assert most * T * B * H <= sum(kept.values()) <= most * T * B * H + states


def test_third_order(device: str) -> None:
    mine, torchs = (m.to(device).double() for m in reversed(support.twins("lstm", I, H)))
    tensors = inputs(mine, device)
    orders = []
    for layer in (mine, torchs):
        with support.torch_by_operators():
            scalar = sum(t.sin().sum() for t in call(layer, "padded", *tensors))
            found = []
            for _ in range(3):
                (gradient,) = torch.autograd.grad(scalar, tensors[0], create_graph=True)
                found.append(gradient)
                scalar = gradient.pow(2).sum()
        orders.append(found)
    torch.testing.assert_close(*orders)


@pytest.mark.parametrize("cell", support.LAYERS)
def test_gradients_of_every_c(cell: str, device: str) -> None:
    """Gradients with respect to c of every step, which the op gives and modules do not use."""
    from fastrnn import reference
    from fastrnn.functional import fused_layer

    layer = support.ours(cell, I, H, device=device, dtype=torch.float64)
    weights = layer._layer_weights()[0]
    x, *states = inputs(layer, device)
    h0, c0 = states[0][0], states[1][0] if len(states) == 2 else None
    fused = fused_layer(cell, x, h0, c0, weights)
    plain = reference.layer(cell, x, h0, c0, *weights)
    outputs = [(a, b) for a, b in zip(fused, plain, strict=True) if b is not None]
    assert len(outputs) == (4 if cell == "lstm" else 2)
    variables = [x, *states, *layer.parameters()]
    for a, b in outputs:
        torch.testing.assert_close(a, b)
        g = torch.randn_like(b)
        options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
        torch.testing.assert_close(
            torch.autograd.grad(a, variables, g, **options), torch.autograd.grad(b, variables, g, **options)
        )


@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_retain_graph(cell: str, memory: str, device: str) -> None:
    layer = support.ours(cell, I, H, num_layers=2, memory=memory, device=device)
    x = torch.randn(T, B, I, device=device, requires_grad=True)
    y = layer(x)[0].sum()
    first = torch.autograd.grad(y, [x, *layer.parameters()], retain_graph=True)
    second = torch.autograd.grad(y, [x, *layer.parameters()])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, [x])


@pytest.mark.parametrize("cell", support.LAYERS)
def test_eval_mode(cell: str, device: str) -> None:
    torchs, mine = (m.to(device).eval() for m in support.twins(cell, I, H, num_layers=2, dropout=0.5))
    x = torch.randn(T, B, I, device=device, requires_grad=True)
    with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):  # cuDNN refuses
        gradients = [torch.autograd.grad(m(x)[0].sum(), [x, *m.parameters()]) for m in (mine, torchs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cell", support.LAYERS)
def test_only_what_requires_gradients(cell: str, device: str) -> None:
    layer = support.ours(cell, I, H, num_layers=2, device=device)
    x = torch.randn(T, B, I, device=device)
    with torch.no_grad():
        assert not layer(x)[0].requires_grad
    assert layer(x)[0].requires_grad
    layer.requires_grad_(False)
    assert not layer(x)[0].requires_grad
    layer.bias_hh_l1.requires_grad_(True)
    y = layer(x)[0]
    y.sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is not None] == ["bias_hh_l1"]
    twin = support.theirs(cell, I, H, num_layers=2, device=device)
    twin.load_state_dict(layer.state_dict())
    twin(x)[0].sum().backward()
    torch.testing.assert_close(layer.bias_hh_l1.grad, twin.bias_hh_l1.grad)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_nothing_given_is_changed(cell: str, memory: str, form: str, device: str) -> None:
    layer = support.ours(cell, I, H, bidirectional=True, memory=memory, device=device).double()
    tensors = [*inputs(layer, device, form), *layer.parameters()]
    before = [t.detach().clone() for t in tensors]
    versions = [t._version for t in tensors]
    outputs = call(layer, form, *tensors[: 3 if cell == "lstm" else 2])
    kept = [o.detach().clone() for o in outputs]
    torch.autograd.grad(sum(o.sum() for o in outputs), tensors, create_graph=True)
    assert versions == [t._version for t in tensors]
    for a, b in zip((*tensors, *outputs), (*before, *kept), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", support.LAYERS)
def test_changed_in_place_between(cell: str, device: str) -> None:
    """A weight changed between forward and backward is noticed."""
    layer = support.ours(cell, I, H, device=device)
    y = layer(torch.randn(T, B, I, device=device))[0].sum()
    with torch.no_grad():
        layer.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_gradients_of_any_layout(device: str) -> None:
    torchs, mine = (m.to(device) for m in support.twins("gru", I, H, batch_first=True))
    x = torch.randn(B, T, I, device=device, requires_grad=True)
    strided = torch.randn(T, B, 2 * H, device=device)[..., ::2].transpose(0, 1)
    for g in (torch.ones((), device=device).expand(B, T, H), strided):
        gradients = [torch.autograd.grad(m(x)[0], [x, *m.parameters()], g) for m in (mine, torchs)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant: bool, device: str) -> None:
    from torch.utils.checkpoint import checkpoint

    layer = fastrnn.LSTM(I, H, device=device)
    x = torch.randn(T, B, I, device=device, requires_grad=True)
    kept = checkpoint(layer, x, use_reentrant=use_reentrant)[0]
    torch.testing.assert_close(
        torch.autograd.grad(kept.sum(), x) if not use_reentrant else _backward(kept, x),
        torch.autograd.grad(layer(x)[0].sum(), x),
    )


def _backward(y: Tensor, x: Tensor) -> tuple[Tensor]:
    y.sum().backward()
    assert x.grad is not None
    return (x.grad,)


def test_saved_tensors_hooks(device: str) -> None:
    """What is kept goes through autograd's own hooks (save_on_cpu and others)."""
    layer = fastrnn.GRU(I, H, device=device)
    x = torch.randn(T, B, I, device=device, requires_grad=True)
    with torch.autograd.graph.save_on_cpu():
        y = layer(x)[0]
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(layer(x)[0].sum(), x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_any_stride_of_a_dimension_of_size_1(
    cell: str, memory: str, dtype: torch.dtype, device: str
) -> None:
    """One sequence, batch first, is one: transposed, its rows are a whole sequence apart."""
    for T, B, I in ((6, 1, 3), (70, 1, 3), (1, 3, 3), (1, 1, 3), (6, 1, 1), (6, 2, 1)):
        layer = support.ours(cell, I, H, memory=memory, dtype=dtype, device=device)
        memory_of_x = torch.randn(8000, dtype=dtype, device=device)
        strides = [B * I, I, 1]
        for i, size in enumerate((T, B, I)):
            if size == 1:
                strides[i] = 1000
        x = memory_of_x.as_strided((T, B, I), strides)
        gradients = []
        for form in (x, x.clone(memory_format=torch.contiguous_format).view(-1).view(T, B, I)):
            y, _ = layer(form.requires_grad_())
            weights = torch.linspace(-1, 1, y.numel(), dtype=dtype, device=device).view(y.shape)
            gradients.append(torch.autograd.grad((y * weights).sum(), [form, *layer.parameters()]))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("cell", "flag"), support.layer_cases())
def test_one_sequence_batch_first(cell: str, flag: str, device: str) -> None:
    flags = {**support.FLAGS[flag], "batch_first": True, "device": device, "dtype": torch.float64}
    theirs, ours = support.twins(cell, I, H, **flags)
    x = torch.randn(1, 5, I, device=device, dtype=torch.float64)
    grads = [torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())) for m in (theirs, ours)]
    torch.testing.assert_close(*grads)
