"""The driver `torch`: torch's own kernels for all layers of a call.

They are cuDNN's on a GPU, oneDNN's and ATen's on a CPU.

A call that needs gradients runs inside an autograd.Function, on a graph of its own: backward goes through
that graph. So backward works in evaluation mode too, for which cuDNN keeps nothing unless told that it
trains, and with create_graph=True, where the reference is differentiated instead.

A compiler does not see such graphs. It gets two operators, without dropout between layers, whose backward
computes the forward once more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fastrnn import _torch, autograd, functional, ops, routing
from fastrnn.sequence import Sequence

_KERNELS: dict[str, Any] = {
    "lstm": torch.lstm,
    "gru": torch.gru,
    "rnn_tanh": torch.rnn_tanh,
    "rnn_relu": torch.rnn_relu,
}
CELLS = frozenset(_KERNELS)

_NAMES = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")

# cuDNN refuses longer sequences.
_MOST_STEPS_ON_CUDNN = 65535


class Layout(NamedTuple):
    """What a call is, beside its tensors."""

    cell: str
    layers: int
    directions: int
    bias: bool
    dropout: float = 0.0
    dtype: torch.dtype | None = None  # that autocast computes in; None for the tensors' own

    def weights(self, flat: tuple[Tensor, ...]) -> list[functional.LayerWeights]:
        """The weights of each layer and direction, from torch.nn's flat list."""
        each = len(flat) // (self.layers * self.directions)
        found: list[functional.LayerWeights] = []
        for start in range(0, len(flat), each):
            w_ih, w_hh, *rest = flat[start : start + each]
            b_ih, b_hh = (rest.pop(0), rest.pop(0)) if self.bias else (None, None)
            found.append((w_ih, w_hh, b_ih, b_hh, rest[0] if rest else None))
        return found


def why_not(cell: str, x: Tensor, steps: int, dtype: torch.dtype) -> str | None:
    """Why torch's kernels do not serve a call that torch.nn's layer can express; None if they do.

    Args:
        dtype: what would be computed in.
    """
    if not x.is_cuda:
        narrowed = dtype is torch.float16 and x.dtype is not torch.float16
        return "oneDNN's LSTM takes no float16 on a CPU" if narrowed and cell == "lstm" else None
    if steps > _MOST_STEPS_ON_CUDNN:
        return f"cuDNN takes no more than {_MOST_STEPS_ON_CUDNN} steps"
    if torch.are_deterministic_algorithms_enabled() and not _torch.deterministic_cublas():
        return "torch's kernels are deterministic with CUBLAS_WORKSPACE_CONFIG=:4096:8 only"
    return None


def recurrent(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[functional.LayerWeights],
    *,
    directions: int,
    dropout: float,
    sequence: Sequence,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All layers and directions, as functional.recurrent, under whatever autocast is active.

    Args:
        dtype: what that autocast computes in, or None.
    """
    flat = [t for layer in weights for t in layer if t is not None]
    layout = Layout(cell, len(weights) // directions, directions, weights[0][2] is not None, dropout, dtype)
    _check_weights(cell, x.shape[-1], h0.shape[-1], h0 if c0 is None else c0, weights, directions)
    if torch.compiler.is_compiling():
        return _compiled(layout, sequence.batch_sizes, x, h0, c0, weights)
    tensors = (x, h0, c0, *flat)
    if functional.needs_gradient(tensors):
        return TorchLayers.apply(layout, sequence.batch_sizes, *tensors)
    return _run(layout, sequence.batch_sizes, tensors, train=dropout > 0)


def _check_weights(
    cell: str, inputs: int, size: int, c0: Tensor, weights: list[functional.LayerWeights], directions: int
) -> None:
    """Weights that do not fit, which torch's kernels would read beyond their end, raise a ValueError."""
    hidden = c0.shape[-1]
    rows = ops.CELLS[cell]["gates"] * hidden
    for i, layer in enumerate(weights):
        columns = inputs if i < directions else size * directions
        shapes = ((rows, columns), (rows, size), (rows,), (rows,), (size, hidden))
        for name, weight, shape in zip(_NAMES, layer, shapes, strict=True):
            if weight is not None and weight.shape != shape:
                raise ValueError(
                    f"fastrnn: {name} must have the shape {list(shape)}, got {list(weight.shape)}"
                )


def _run(
    layout: Layout, batch_sizes: Tensor | None, tensors: tuple[Any, ...], train: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    x, h0, c0, *flat = tensors
    # cuDNN takes no state with strides of its own.
    h0, c0 = h0.contiguous(), None if c0 is None else c0.contiguous()
    hx = h0 if c0 is None else (h0, c0)
    options = (layout.bias, layout.layers, layout.dropout, train, layout.directions == 2)
    if batch_sizes is None:
        y, h_n, *rest = _KERNELS[layout.cell](x, hx, flat, *options, False)
    else:
        y, h_n, *rest = _KERNELS[layout.cell](x, batch_sizes, hx, flat, *options)
    return y, h_n, rest[0] if rest else None


def _reference(
    layout: Layout, batch_sizes: Tensor | None, tensors: tuple[Any, ...], dtypes: list[torch.dtype]
) -> tuple[Tensor, ...]:
    """The same results by the reference, in the given dtypes."""
    if layout.dtype is not None:
        tensors = tuple(None if t is None else t.to(layout.dtype) for t in tensors)
    x, h0, c0, *flat = tensors
    with routing.without_autocast(x.device.type):
        y, h_n, c_n, _ = functional.recurrent(
            layout.cell,
            x,
            h0,
            c0,
            layout.weights(tuple(flat)),
            directions=layout.directions,
            dropout=layout.dropout,
            sequence=Sequence(batch_sizes),
            layer=functional.reference_layer,
        )
    outputs = (y, h_n) if c_n is None else (y, h_n, c_n)
    return tuple(t.to(dtype) for t, dtype in zip(outputs, dtypes, strict=True))


def _on_a_graph(tensors: tuple[Any, ...], needs: Any) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Aliases of the tensors, leaves of a graph to come, and those of them that need gradients."""
    aliases: list[Any] = [
        None if t is None else t.detach().requires_grad_(bool(need))
        for t, need in zip(tensors, needs, strict=True)
    ]
    return tuple(aliases), [t for t in aliases if t is not None and t.requires_grad]


class TorchLayers(torch.autograd.Function):
    """forward(layout, batch_sizes, x, h0, c0, *weights) returns y, h_n and c_n, which is None without c."""

    @staticmethod
    def forward(
        ctx: Any, layout: Layout, batch_sizes: Tensor | None, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        drops_on_cpu = layout.dropout > 0 and tensors[0].is_cpu  # type: ignore[union-attr]
        ctx.random_state = torch.get_rng_state() if drops_on_cpu else None
        with torch.enable_grad():
            inside, leaves = _on_a_graph(tensors, ctx.needs_input_grad[2:])
            outputs = _run(layout, batch_sizes, inside, train=True)
        ctx.graph = [t for t in outputs if t is not None], leaves
        # For derivatives of backward; torch's graph has saved these for backward itself.
        ctx.save_for_backward(batch_sizes, *tensors)
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        # Aliases with the same version counter: a change in place is refused where torch.nn refuses it.
        return tuple(None if t is None else t.detach() for t in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        if ctx.graph is None:
            ctx.saved_tensors  # noqa: B018  # raises torch's error of a second backward
        outputs, leaves = ctx.graph
        given = list(grads[: len(outputs)])
        batched = any(g is not None and _torch.batched_by_autograd(g) for g in given)
        found: tuple[Tensor | None, ...]
        if torch.is_grad_enabled() or batched:
            found = _derivable_gradients(ctx, needs, given, [t.dtype for t in outputs])
        else:
            found = _gradients(outputs, leaves, given, _torch.graph_is_kept())
        if not _torch.graph_is_kept():
            ctx.graph = None
        each = iter(found)
        return None, None, *(next(each) if need else None for need in needs)


def _gradients(
    outputs: list[Tensor], leaves: list[Tensor], grads: list[Tensor | None], keep: bool
) -> tuple[Tensor | None, ...]:
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
    if not pairs:
        return (None,) * len(leaves)
    used, given = zip(*pairs, strict=True)
    return torch.autograd.grad(used, leaves, given, retain_graph=keep, allow_unused=True)


def _derivable_gradients(
    ctx: Any, needs: tuple[bool, ...], grads: list[Tensor | None], dtypes: list[torch.dtype]
) -> tuple[Tensor, ...]:
    """Gradients that have derivatives of every order."""
    batch_sizes, *tensors = ctx.saved_tensors
    layout = ctx.layout
    if layout.dropout > 0 and ctx.random_state is None:
        raise RuntimeError(
            "cuDNN's dropout between layers has no second derivative: set FASTRNN_DRIVER=fused, or "
            "dropout=0 on the layer"
        )
    places = [i for i, need in enumerate(needs) if need]
    wanted = [i for i, g in enumerate(grads) if g is not None]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        by_place = dict(zip(places, inputs, strict=True))
        every = tuple(by_place.get(i, t) for i, t in enumerate(tensors))
        outputs = _reference(layout, batch_sizes, every, dtypes)
        return tuple(outputs[i] for i in wanted)

    with _torch.random_state(ctx.random_state):
        return autograd.vjp(run, [tensors[i] for i in places], [g for g in grads if g is not None])


# What compilers get: results and gradients are functions of the arguments alone.


def _compiled(
    layout: Layout,
    batch_sizes: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[functional.LayerWeights],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All layers by one operator, or with dropout each by one of its own."""
    directions = layout.directions
    at_once = layout.layers if layout.dropout == 0 else 1
    h_last, c_last = [], []
    for start in range(0, layout.layers, at_once):
        if start > 0:
            x = drop(x, layout.dropout, training=True)
        rows = slice(start * directions, (start + at_once) * directions)
        flat = [t for layer in weights[rows] for t in layer if t is not None]
        c = None if c0 is None else c0[rows]
        x, h_n, c_n = _forward_op(
            layout.cell, x, h0[rows], c, flat, batch_sizes, at_once, directions, layout.bias
        )
        h_last.append(h_n)
        c_last.append(c_n)
    if len(h_last) == 1:
        return x, h_last[0], None if c0 is None else c_last[0]
    return x, torch.cat(h_last), None if c0 is None else torch.cat(c_last)


_library = torch.library.Library("fastrnn", "FRAGMENT")
_ARGUMENTS = (
    "str cell, Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, int layers, "
    "int directions, bool bias"
)
_library.define(f"torch_forward({_ARGUMENTS}) -> (Tensor y, Tensor h_n, Tensor c_n)")
_library.define(
    f"torch_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, {_ARGUMENTS}, bool[] needs) -> Tensor[]"
)
_forward_op = torch.ops.fastrnn.torch_forward.default
_backward_op = torch.ops.fastrnn.torch_backward.default


@torch.library.impl(_library, "torch_forward", "CompositeExplicitAutograd")
def _forward(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    layers: int,
    directions: int,
    bias: bool,
) -> tuple[Tensor, ...]:
    layout = Layout(cell, layers, directions, bias)
    y, h_n, c_n = _run(layout, batch_sizes, (x, h0, c0, *weights), train=False)
    return y.contiguous(), h_n.contiguous(), x.new_empty(0) if c_n is None else c_n.contiguous()


@torch.library.impl(_library, "torch_backward", "CompositeExplicitAutograd")
def _backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    layers: int,
    directions: int,
    bias: bool,
    needs: list[bool],
) -> list[Tensor]:
    layout = Layout(cell, layers, directions, bias)
    tensors = (x, h0, c0, *weights)
    with _torch.above_autograd(), torch.enable_grad():
        inside, leaves = _on_a_graph(tensors, needs)
        outputs = [t for t in _run(layout, batch_sizes, inside, train=True) if t is not None]
        found = iter(_gradients(outputs, leaves, [dy, dh_n, dc_n][: len(outputs)], keep=False))
    results = []
    for t, need in zip(tensors, needs, strict=True):
        g = next(found) if t is not None and need else None
        if g is None:
            results.append(x.new_zeros(t.shape if t is not None and need else 0))
        else:
            results.append(g.contiguous())
    return results


@torch.library.register_fake("fastrnn::torch_forward")
def _(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    layers: int,
    directions: int,
    bias: bool,
) -> tuple[Tensor, ...]:
    y = x.new_empty((*x.shape[:-1], h0.shape[-1] * directions))
    return y, x.new_empty(h0.shape), x.new_empty(0 if c0 is None else c0.shape)


@torch.library.register_fake("fastrnn::torch_backward")
def _(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    layers: int,
    directions: int,
    bias: bool,
    needs: list[bool],
) -> list[Tensor]:
    tensors = (x, h0, c0, *weights)
    return [
        x.new_empty(t.shape if t is not None and need else 0)
        for t, need in zip(tensors, needs, strict=True)
    ]


def _save_op(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, x, h0, c0, weights, batch_sizes, *facts = inputs
    ctx.save_for_backward(x, h0, c0, batch_sizes, *weights)
    ctx.cell, ctx.facts = cell, facts
    ctx.set_materialize_grads(False)
    if c0 is None:
        ctx.mark_non_differentiable(output[2])


def _op_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    x, h0, c0, batch_sizes, *weights = ctx.saved_tensors
    _, x_needs, h0_needs, c0_needs, weights_need, *_ = ctx.needs_input_grad
    needs = [x_needs, h0_needs, c0_needs, *weights_need]
    dc_n = None if c0 is None else grads[2]
    found = _backward_op(*grads[:2], dc_n, ctx.cell, x, h0, c0, weights, batch_sizes, *ctx.facts, needs)
    dx, dh0, dc0, *of_weights = (g if need else None for g, need in zip(found, needs, strict=True))
    return None, dx, dh0, dc0, of_weights, None, None, None, None


torch.library.register_autograd("fastrnn::torch_forward", _op_gradients, setup_context=_save_op)
