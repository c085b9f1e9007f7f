"""Kernels under torch.func: vmap rules of the operators, and a layer for vmap and grad.

A dimension that vmap adds is one more batch dimension, so it is folded into B and the kernels run once.
If it belongs to the weights (an ensemble), or if each sample needs its own gradient of the weights, the
kernels run once for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import _torch, autograd, ops
from fastrnn.sequence import Sequence

# Where the arguments of the ops are. Trailing ones that have their defaults may be missing.
_FORWARD_WEIGHTS = {4, 5, 6, 7, 8, 15}
_FORWARD_BATCH_SIZES = 9
_BACKWARD_WEIGHTS = {8, 9, 10, 11, 12, 22}
_BACKWARD_BATCH_SIZES = 13
_NEEDS = 20


@torch.library.register_vmap("fastrnn::forward")
def _vmap_forward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    if any(in_dims[i] is not None for i in _FORWARD_WEIGHTS if i < len(args)):
        return _each(_forward, info.batch_size, in_dims, args)
    results = _forward(*_fold(info.batch_size, in_dims, args, _FORWARD_WEIGHTS, _FORWARD_BATCH_SIZES))
    return _unfold(results, info.batch_size)


@torch.library.register_vmap("fastrnn::backward")
def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    wants_weights = args[_NEEDS][1]
    if wants_weights or any(in_dims[i] is not None for i in _BACKWARD_WEIGHTS if i < len(args)):
        return _each(ops.backward_op, info.batch_size, in_dims, args)
    folded = _fold(info.batch_size, in_dims, args, _BACKWARD_WEIGHTS, _BACKWARD_BATCH_SIZES)
    results = ops.backward_op(*folded)
    return _unfold(results, info.batch_size)


def _forward(*args: Any) -> tuple[Tensor, ...]:
    with _torch.below_autograd():
        return ops.forward_op(*args)


def _each(op: Any, n: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """The op n times, each on its own part of the arguments."""
    results = [
        op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
        for i in range(n)
    ]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


def _fold(
    n: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...], weights: set[int], batch_sizes: int
) -> list[Any]:
    """Arguments with vmap's dimension joined to the batch: sequence b of copy i is sequence b * n + i."""
    folded = list(args)
    for i in range(len(args)):
        t = args[i]
        if not isinstance(t, Tensor) or i in weights:
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
        return ops.forward_layer(cell, tensors, (batch_sizes, lengths, reset, reverse), keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        cell, batch_sizes, lengths, reset, reverse, _, *tensors = inputs
        y, _, c_n, c, slots = output
        ctx.save_for_backward(batch_sizes, lengths, reset, *tensors, y, c, slots)
        ctx.cell, ctx.reverse = cell, reverse
        ctx.mark_non_differentiable(slots, *(() if ops.facts(cell)["has_c"] else (c_n, c)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        batch_sizes, lengths, reset, *saved = ctx.saved_tensors
        sequence = Sequence(batch_sizes, lengths, reset, ctx.reverse)
        needs = ctx.needs_input_grad[6:]
        outer = grads[:4] if ops.facts(ctx.cell)["has_c"] else (*grads[:2], None, None)
        found = autograd.gradients(ctx.cell, sequence, needs, outer, saved[:-3], saved[-3:])
        return (None,) * 6 + found


def layer(
    cell: str, sequence: Sequence, keep: int, tensors: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """As functional.fused_layer, inside torch.func's transforms."""
    if torch.is_grad_enabled():
        y, h_n, c_n, c, _ = Layer.apply(cell, *sequence, keep, *tensors)
    else:
        y, h_n, c_n, c, _ = ops.forward_layer(cell, tensors, sequence, ops.KEEP_C)
    return y, h_n, c_n, c
