"""Derivatives of a layer: one autograd.Function for every cell, and one for its own derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import ops, reference
from fastrnn.sequence import Sequence


class Layer(torch.autograd.Function):
    """forward(cell, sequence, keep, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr).

    Returns y, h_n, c_n and c as ``torch.ops.fastrnn.forward`` does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cell: str,
        sequence: Sequence,
        keep: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        y, h_n, c_n, c, slots = ops.forward(cell, *tensors, *sequence, keep)
        ctx.save_for_backward(*sequence[:3], *tensors, y, c, slots)
        ctx.cell, ctx.reverse = cell, sequence.reverse
        ctx.set_materialize_grads(False)
        if not ops.CELLS[cell]["has_c"]:
            ctx.mark_non_differentiable(c_n, c)
        return y, h_n, c_n, c

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[3:]
        return None, None, None, *_gradients(ctx, needs, grads)


def _gradients(ctx: Any, needs: tuple[bool, ...], grads: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    """Gradients of x, h0, c0, w_ih .. w_hr, those that are needed, from dy, dh_n, dc_n and dc."""
    batch_sizes, lengths, reset, *saved = ctx.saved_tensors
    sequence = Sequence(batch_sizes, lengths, reset, ctx.reverse)
    tensors, kept = saved[:8], saved[8:]
    which = (needs[0], any(needs[3:]))
    # A graph of this backward is asked for only by create_graph, which compilers do not trace.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        results = LayerBackward.apply(ctx.cell, sequence, which, *grads, *tensors, *kept)
    else:
        results = run_backward(ctx.cell, sequence, which, grads, tensors, kept)
    return tuple(g if need else None for g, need in zip(results, needs, strict=True))


def run_backward(
    cell: str,
    sequence: Sequence,
    needs: tuple[bool, bool],
    grads: Any,
    tensors: Any,
    kept: Any,
) -> tuple[Tensor, ...]:
    return ops.backward(cell, *grads, *tensors, *sequence, *kept, list(needs))


class LayerBackward(torch.autograd.Function):
    """The backward of `Layer`, differentiable any number of times through the reference.

    forward(cell, sequence, needs, dy, dh_n, dc_n, dc, x, h0, c0, w_ih .. w_hr, y, c, slots).
    """

    @staticmethod
    def forward(
        ctx: Any, cell: str, sequence: Sequence, needs: tuple[bool, bool], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        results = run_backward(cell, sequence, needs, tensors[:4], tensors[4:12], tensors[12:])
        ctx.cell, ctx.sequence = cell, sequence
        ctx.save_for_backward(*tensors[:12])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        second = second_derivative(ctx.cell, ctx.sequence, ctx.saved_tensors, grads)
        return None, None, None, *second, None, None, None


def second_derivative(
    cell: str, sequence: Sequence, tensors: Any, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of `LayerBackward`'s dy, dh_n, dc_n, dc, x .. w_hr, given those of its results."""
    third_order = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that gradients with respect to them are not cut short by how they were made.
        saved = [None if t is None else (t.view_as(t) if third_order else t.detach()) for t in tensors]
        for t in saved:
            if t is not None and not t.requires_grad:
                t.requires_grad_()
        outer = saved[:4]
        inputs: Any = saved[4:]
        x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr = inputs
        outputs = reference.layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, sequence)
        pairs = [(o, g) for o, g in zip(outputs, outer, strict=True) if o is not None and g is not None]
        first = torch.autograd.grad(
            [o for o, _ in pairs],
            [t for t in inputs if t is not None],
            [g for _, g in pairs],
            create_graph=True,
            materialize_grads=True,
        )
        given = iter(first)
        by_input = [None if t is None else next(given) for t in inputs]
        wanted = [
            (f, g)
            for f, g in zip(by_input, grads, strict=True)
            if f is not None and g is not None and g.shape == f.shape and f.requires_grad
        ]
        variables = [t for t in saved if t is not None]
        second: tuple[Tensor | None, ...] = (None,) * len(variables)
        if wanted:
            second = torch.autograd.grad(
                [f for f, _ in wanted],
                variables,
                [g for _, g in wanted],
                create_graph=third_order,
                allow_unused=True,
            )
    results = iter(second)
    return tuple(None if t is None else next(results) for t in saved)


def _save_op(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, *tensors = inputs[:9]
    y, _, c_n, c, slots = output
    *masks, ctx.reverse = inputs[9:13]
    ctx.save_for_backward(*masks, *tensors, y, c, slots)
    ctx.cell = cell
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(slots, *(() if ops.CELLS[cell]["has_c"] else (c_n, c)))


def _op_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    return None, *_gradients(ctx, ctx.needs_input_grad[1:9], grads[:4]), *(None,) * 6


# For whoever calls the op itself, as an exported program does.
torch.library.register_autograd("fastrnn::forward", _op_gradients, setup_context=_save_op)
