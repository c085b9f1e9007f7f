"""Kernels under torch.func: vmap rules of the operators, and a layer for vmap and grad.

A dimension that vmap adds is one more batch dimension, so it is folded into B and the kernels run once.
If it belongs to the weights (an ensemble), or if each sample needs its own gradient of the weights, the
kernels run once for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import autograd, ops
from fastrnn.sequence import Sequence

# Where the arguments of the ops are. ops.forward and ops.backward add the precision, which comes last.
_FORWARD_WEIGHTS = slice(4, 9)
_FORWARD_PRECISION = 14
_BACKWARD_WEIGHTS = slice(8, 13)
_NEEDS = 20
_BACKWARD_PRECISION = 21


@torch.library.register_vmap("fastrnn::forward")
def _vmap_forward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    args, in_dims = args[:_FORWARD_PRECISION], in_dims[:_FORWARD_PRECISION]
    if any(d is not None for d in in_dims[_FORWARD_WEIGHTS]):
        return _each(ops.forward, info.batch_size, in_dims, args)
    batch_sizes = 9
    results = ops.forward(*_fold(info.batch_size, in_dims, args, _FORWARD_WEIGHTS, batch_sizes))
    return _unfold(results, info.batch_size)


@torch.library.register_vmap("fastrnn::backward")
def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    args, in_dims = args[:_BACKWARD_PRECISION], in_dims[:_BACKWARD_PRECISION]
    wants_weights = args[_NEEDS][1]
    if wants_weights or any(d is not None for d in in_dims[_BACKWARD_WEIGHTS]):
        return _each(ops.backward, info.batch_size, in_dims, args)
    batch_sizes = 13
    results = ops.backward(*_fold(info.batch_size, in_dims, args, _BACKWARD_WEIGHTS, batch_sizes))
    return _unfold(results, info.batch_size)


def _each(op: Any, n: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The op n times, each on its own part of the arguments."""
    results = [
        op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
        for i in range(n)
    ]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


def _fold(
    n: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...], weights: slice, batch_sizes: int
) -> list[Any]:
    """Arguments with vmap's dimension joined to the batch: sequence b of copy i is sequence b * n + i."""
    folded = list(args)
    for i in range(len(args)):
        t = args[i]
        if not isinstance(t, Tensor) or i in range(*weights.indices(len(args))):
            continue
        if i == batch_sizes:
            folded[i] = t * n
            continue
        # The last dimension is a state's; lengths and reset have none.
        last = t.dtype in (torch.bool, torch.int64)
        dim = in_dims[i]
        at = t.dim() - (dim is not None) - (not last)
        t = t.unsqueeze(at).expand(*t.shape[:at], n, *t.shape[at:]) if dim is None else t.movedim(dim, at)
        # Slots or c that were not kept have the shape [0].
        folded[i] = t.flatten(at - 1, at) if at > 0 else t.flatten()
    return folded


def _unfold(results: tuple[Tensor, ...], n: int) -> tuple[Any, Any]:
    outputs: list[Tensor] = []
    dims: list[int | None] = []
    for t in results:
        if t.dim() == 1:  # not asked for, so it has no elements
            outputs.append(t)
            dims.append(None)
        else:
            outputs.append(t.unflatten(-2, (t.shape[-2] // n, n)))
            dims.append(t.dim() - 1)
    return tuple(outputs), tuple(dims)


class Layer(torch.autograd.Function):
    """`fastrnn.autograd.Layer` in the form that torch.func asks for, which costs more to call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        reverse: bool,
        keep: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        return ops.forward(cell, *tensors, batch_sizes, lengths, reset, reverse, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        cell, batch_sizes, lengths, reset, reverse, _, *tensors = inputs
        y, _, c_n, c, slots = output
        ctx.save_for_backward(batch_sizes, lengths, reset, *tensors, y, c, slots)
        ctx.cell, ctx.reverse = cell, reverse
        ctx.mark_non_differentiable(slots, *(() if ops.CELLS[cell]["has_c"] else (c_n, c)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        batch_sizes, lengths, reset, *saved = ctx.saved_tensors
        sequence = Sequence(batch_sizes, lengths, reset, ctx.reverse)
        needs = ctx.needs_input_grad[6:]
        outer = grads[:4] if ops.CELLS[ctx.cell]["has_c"] else (*grads[:2], None, None)
        found = autograd.gradients(ctx.cell, sequence, needs, outer, saved[:8], saved[8:])
        return (None,) * 6 + found


def layer(
    cell: str, sequence: Sequence, keep: int, tensors: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """As functional.fused_layer, inside torch.func's transforms."""
    if torch.is_grad_enabled():
        y, h_n, c_n, c, _ = Layer.apply(cell, *sequence, keep, *tensors)
    else:
        y, h_n, c_n, c, _ = ops.forward(cell, *tensors, *sequence, ops.KEEP_C)
    return y, h_n, c_n, c
