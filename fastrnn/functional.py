"""Layers and directions: the loop around one layer in one direction, and which implementation runs it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fastrnn import _torch, ops, reference, streams, transforms
from fastrnn.autograd import Layer
from fastrnn.sequence import ALL_STEPS, Sequence

# w_ih, w_hh, b_ih, b_hh, w_hr of one layer in one direction; None if absent. Of a declared cell
# (nn/recurrence.py) also unit_weights and step_inputs.
LayerWeights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
State = tuple[Tensor, Tensor | None]
LayerResult = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
LayerFunction = Callable[..., LayerResult]


def fused_layer(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: LayerWeights,
    sequence: Sequence = ALL_STEPS,
    keep: int = ops.KEEP_SLOTS,
    states: bool = False,
) -> LayerResult:
    """One layer in one direction by the kernels: h of every step, last h, last c, c of every step.

    c of every step is None, or has no elements, unless ``states`` asks for it or a gradient needs it.
    """
    tensors = (x, h0, c0, *weights)
    if not torch.compiler.is_compiling() and _torch.innermost_transform() is not None:
        return transforms.layer(cell, sequence, keep, tensors)
    if not needs_gradient(tensors):
        keep = ops.KEEP_C if states else ops.KEEP_NOTHING
    elif not torch.compiler.is_compiling():
        return Layer.apply(cell, sequence, keep, *tensors)
    # A compiler finds the derivative by the op, and takes the same tensor for two arguments too.
    y, h_n, c_n, c, _ = ops.forward_layer(cell, tensors, sequence, keep)
    return y, h_n, c_n, c


def needs_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Autograd records what is computed with these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:  # a third of the time that any() takes
            if t is not None and t.requires_grad:
                return True
    return False


def reference_layer(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: LayerWeights,
    sequence: Sequence = ALL_STEPS,
    keep: int = ops.KEEP_SLOTS,
    states: bool = False,
) -> LayerResult:
    """The same by plain torch operators."""
    return reference.layer(cell, x, h0, c0, *weights[:5], sequence, *weights[5:])


LAYERS: dict[str, LayerFunction] = {"fused": fused_layer, "reference": reference_layer}


def recurrent(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[LayerWeights],
    *,
    directions: int = 1,
    dropout: float = 0.0,
    sequence: Sequence = ALL_STEPS,
    keep: int = ops.KEEP_SLOTS,
    states: bool = False,
    layer: LayerFunction = fused_layer,
) -> tuple[Tensor, Tensor, Tensor | None, list[State]]:
    """All layers and directions.

    Args:
        cell: a name in the registry.
        x: input [T, B, I], or [rows, I] packed.
        h0, c0: initial state [layers * directions, B, P or H]; c0 is None for cells without one.
        weights: of each layer and direction, in torch.nn's order.
        dropout: probability of a zero between layers; 0 when not training.
        sequence: of the forward direction.
        keep: what is kept for backward (ops.KEEP_C or ops.KEEP_SLOTS).
        states: return the state after every step, too.
        layer: the implementation.

    Returns:
        Output [T, B, directions * P], last h and last c, shaped as the initial ones, and with ``states``
        h [T, B, directions * P] and c [T, B, directions * H] of every step for each layer.
    """
    h_last: list[Tensor] = []
    c_last: list[Tensor] = []
    steps: list[State] = []
    count = len(weights) // directions
    sequences = (sequence,) if directions == 1 else (sequence, sequence.reversed())
    concurrent = False
    if directions == 2 and layer is fused_layer:
        sizes = sequence.batch_sizes
        T, H = (x if sizes is None else sizes).shape[0], weights[0][0].shape[0] // ops.facts(cell)["gates"]
        concurrent = streams.usable(x, cell, T, h0.shape[1], H, weights[0][4] is not None)
    for i in range(count):
        calls = []
        for k, of_direction in enumerate(sequences, i * directions):
            c = None if c0 is None else c0[k]
            calls.append((cell, x, h0[k], c, weights[k], of_direction, keep, states))
        results = streams.run_concurrently(x, layer, calls) if concurrent else [layer(*c) for c in calls]
        outputs, cells = [], []
        for y, h_n, c_n, c in results:
            outputs.append(y)
            h_last.append(h_n)
            if c0 is not None and c_n is not None and c is not None:
                c_last.append(c_n)
                cells.append(c)
        x = _join(outputs)
        if states:
            steps.append((x, _join(cells) if cells else None))
        if dropout > 0 and i < count - 1:
            x = drop(x, dropout, training=True)
    return x, _stack(h_last), None if c0 is None else _stack(c_last), steps


def _join(directions: list[Tensor]) -> Tensor:
    return directions[0] if len(directions) == 1 else torch.cat(directions, -1)


def _stack(states: list[Tensor]) -> Tensor:
    return states[0][None] if len(states) == 1 else torch.stack(states)
