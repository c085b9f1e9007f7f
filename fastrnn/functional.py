"""Layers and directions: the loop around one layer in one direction, and which implementation runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fastrnn import ops, reference, streams, transforms
from fastrnn.autograd import Layer

# w_ih, w_hh, b_ih, b_hh, w_hr of one layer in one direction; None for those there are not.
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
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    keep: int = ops.KEEP_SLOTS,
    states: bool = False,
) -> LayerResult:
    """One layer in one direction by the kernels: h of every step, last h, last c, c of every step.

    The last is there only when ``states`` asks for it or a gradient needs it.
    """
    tensors = (x, h0, c0, *weights)
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        return transforms.layer(cell, batch_sizes, lengths, reset, reverse, keep, tensors)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        keep = ops.KEEP_C if states else ops.KEEP_NOTHING
    elif not torch.compiler.is_compiling():
        return Layer.apply(cell, batch_sizes, lengths, reset, reverse, keep, *tensors)
    # A compiler finds the derivative by the op, and takes the same tensor for two arguments too.
    y, h_n, c_n, c, _ = ops.forward(cell, *tensors, batch_sizes, lengths, reset, reverse, keep)
    return y, h_n, c_n, c


def reference_layer(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: LayerWeights,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    keep: int = ops.KEEP_SLOTS,
    states: bool = False,
) -> LayerResult:
    """The same by plain torch operators."""
    return reference.layer(cell, x, h0, c0, *weights, batch_sizes, lengths, reset, reverse)


LAYERS: dict[str, LayerFunction] = {"fused": fused_layer, "reference": reference_layer}


def reset_when_reversed(reset: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The mask for a reverse direction: what begins at step t ends, seen from behind, after step t + 1.

    Nothing begins beyond a sequence's end.
    """
    if lengths is not None:
        steps = torch.arange(reset.shape[0], device=reset.device)
        reset = reset & (steps.unsqueeze(1) < lengths)
    return torch.cat((reset[1:], torch.zeros_like(reset[:1])))


def recurrent(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[LayerWeights],
    *,
    directions: int = 1,
    dropout: float = 0.0,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    keep: int = ops.KEEP_SLOTS,
    states: bool = False,
    layer: LayerFunction = fused_layer,
) -> tuple[Tensor, Tensor, Tensor | None, list[State]]:
    """All layers and directions.

    Args:
        cell: a name in the registry.
        x: input [T, B, I], or [rows, I] with ``batch_sizes``.
        h0, c0: initial state [layers * directions, B, P or H]; c0 is None for cells without one.
        weights: of each layer and direction, in torch.nn's order.
        dropout: probability of a zero between layers; 0 when not training.
        batch_sizes, lengths, reset: see csrc/ops.cpp.
        states: the state after every step is asked for.
        layer: the implementation.

    Returns:
        Output [T, B, directions * P], last h and last c, shaped as the initial ones, and with ``states``
        h [T, B, directions * P] and c [T, B, directions * H] of every step for each layer.
    """
    h_last: list[Tensor] = []
    c_last: list[Tensor] = []
    steps: list[State] = []
    count = len(weights) // directions
    backward_reset = reset
    if reset is not None and directions == 2:
        backward_reset = reset_when_reversed(reset, lengths)
    beside = directions == 2 and layer is fused_layer and streams.usable(x)
    for i in range(count):
        calls = []
        for direction in range(directions):
            at = i * directions + direction
            arguments = (
                cell,
                x,
                h0[at],
                None if c0 is None else c0[at],
                weights[at],
                batch_sizes,
                lengths,
                backward_reset if direction else reset,
                direction == 1,
                keep,
                states,
            )
            calls.append(arguments)
        outputs, cells = [], []
        results = streams.side_by_side(x, layer, calls) if beside else [layer(*call) for call in calls]
        for y, h_n, c_n, c in results:
            outputs.append(y)
            h_last.append(h_n)
            if c0 is not None and c_n is not None and c is not None:
                c_last.append(c_n)
                cells.append(c)
        x = _beside(outputs)
        if states:
            steps.append((x, _beside(cells) if cells else None))
        if dropout > 0 and i < count - 1:
            x = drop(x, dropout, training=True)
    return x, _stack(h_last), None if c0 is None else _stack(c_last), steps


def _beside(directions: list[Tensor]) -> Tensor:
    return directions[0] if len(directions) == 1 else torch.cat(directions, -1)


def _stack(states: list[Tensor]) -> Tensor:
    return states[0][None] if len(states) == 1 else torch.stack(states)
