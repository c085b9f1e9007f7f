"""Derivatives of a layer: one autograd.Function for every cell, and one for its own derivative.

`Layer` is the operator with its first derivative. `LayerBackward` is that derivative as a
function of its own, applied only if a graph of it is asked for (create_graph, torch.func); its derivative
is the reference's. transforms.py has Layer in the form that torch.func takes.

Layer saves what its derivative reads, and nothing else, so that everything else may be changed in place
before backward. This includes the output: saved apart from the version counter of what the caller gets, it
is computed again should the caller have changed it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastrnn import _torch, ops, reference, routing
from fastrnn.sequence import Sequence

# Positions among a layer's tensors x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr and, if its cell was declared,
# unit_weights and step_inputs.
X, W_IH, W_HH, B_IH, B_HH, STEP_INPUTS = 0, 3, 4, 5, 6, 9
NAMES = ("the input", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")

_EMPTY = torch.empty(0)


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
        y, h_n, c_n, c, slots = ops.forward_layer(cell, tensors, sequence, keep)
        saved, kept_y = list(tensors), y
        ctx.unread, ctx.output = [], None
        if not _torch_refuses_changes(cell, tensors, sequence):
            one_step = _is_one_step(tensors[X], sequence)
            if keep == ops.KEEP_SLOTS or not ops.facts(cell)["keeps_slots"]:
                ctx.unread = _take_unread(saved, ctx.needs_input_grad, one_step)
            kept_y = y.data  # with a version counter of its own
            if not one_step or cell not in ("lstm", "gru"):  # these read no output of their only step
                ctx.output = _version_counter(y), y._version
        ctx.save_for_backward(*sequence[:3], *saved, kept_y, c, slots)
        ctx.cell, ctx.reverse = cell, sequence.reverse
        ctx.set_materialize_grads(False)
        if not ops.facts(cell)["has_c"]:
            ctx.mark_non_differentiable(c_n, c)
        return y, h_n, c_n, c

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        batch_sizes, lengths, reset, *saved = ctx.saved_tensors
        sequence = Sequence(batch_sizes, lengths, reset, ctx.reverse)
        tensors, (y, c, slots) = saved[:-3], saved[-3:]
        changed = ctx.output is not None and ctx.output[0]._version != ctx.output[1]
        if changed or torch.is_grad_enabled():
            why = "since the output was changed too" if changed else "for create_graph=True"
            _check_unchanged(ctx.unread, why)
        for i, tensor, _ in ctx.unread:
            tensors[i] = tensor
        if changed:
            y = ops.forward_layer(ctx.cell, tensors, sequence, ops.KEEP_NOTHING)[0]
        needs = ctx.needs_input_grad[3:]
        return None, None, None, *gradients(ctx.cell, sequence, needs, grads, tensors, (y, c, slots))


def _check_unchanged(unread: list[tuple[int, Tensor, int]], why: str) -> None:
    for i, tensor, version in unread:
        if tensor._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace "
                f"operation: {NAMES[i]} of a fastrnn layer, which backward reads {why}; change it after "
                "backward, or give the layer a clone"
            )


def _version_counter(t: Tensor) -> Tensor:
    """A tensor with t's version counter and without its memory."""
    counter = t.detach()
    try:
        counter.data = _EMPTY  # a third of the time of making one
    except RuntimeError:  # meta and fake tensors
        counter.data = t.new_empty(0)
    return counter


def _torch_refuses_changes(cell: str, tensors: tuple[Any, ...], sequence: Sequence) -> bool:
    """oneDNN's layer saves all it is given and returns.

    What torch.nn refuses to differentiate after a change is refused here too, and costs nothing.
    """
    x, w_hr = tensors[X], tensors[-1]
    packed = sequence.batch_sizes is not None
    return x.dim() == 3 and routing.torch_uses_onednn(cell, x, packed, w_hr is not None)


def _is_one_step(x: Any, sequence: Sequence) -> bool:
    if sequence.batch_sizes is not None:
        return len(sequence.batch_sizes) == 1
    return x.dim() == 2 or x.shape[0] == 1


def _take_unread(
    saved: list[Tensor | None], needs: tuple[bool, ...], one_step: bool
) -> list[tuple[int, Tensor, int]]:
    """Takes the tensors that backward does not read out of ``saved``.

    Returns:
        Of each its position, itself and its version.
    """
    _, _, _, needs_x, needs_h0, _, needs_w_ih, *_ = needs
    places = []
    if not needs_w_ih:
        places.append(X)
    if not needs_x:
        places.append(W_IH)
    if one_step and not needs_h0:
        places.append(W_HH)
    if saved[B_IH] is not None:
        places += (B_IH, B_HH)
    unread = []
    for i in places:
        t: Any = saved[i]
        unread.append((i, t, t._version))
        saved[i] = None
    return unread


def gradients(
    cell: str, sequence: Sequence, needs: tuple[bool, ...], grads: Any, tensors: Any, kept: Any
) -> tuple[Any, ...]:
    """Gradients of the layer's tensors, those that are needed, from dy, dh_n, dc_n and dc."""

    which = (needs[X] or any(needs[STEP_INPUTS:]), any(needs[W_IH:STEP_INPUTS]))
    results: tuple[Tensor, ...]
    # A graph of this backward is asked for only by create_graph, which compilers do not trace.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        results = ops.backward_layer(cell, grads, tensors, sequence, kept, which)
    else:

        def run(*grads: Tensor | None) -> tuple[Tensor, ...]:
            return LayerBackward.apply(cell, *sequence, which, *grads, *tensors, *kept)

        batched = any(g is not None and _torch.batched_by_autograd(g) for g in grads)
        results = _torch.vmap_over_gradients(run, grads) if batched else run(*grads)
    return tuple(g if need else None for g, need in zip(results, needs, strict=True))


class LayerBackward(torch.autograd.Function):
    """The backward of `Layer`, differentiable any number of times through the reference.

    forward(cell, batch_sizes, lengths, reset, reverse, needs, dy, dh_n, dc_n, dc, x, h0, c0, w_ih .. (the
    layer's tensors), y, c, slots).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        reverse: bool,
        needs: tuple[bool, bool],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        sequence = (batch_sizes, lengths, reset, reverse)
        return ops.backward_layer(cell, tensors[:4], tensors[4:-3], sequence, tensors[-3:], needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, *masks, ctx.reverse, _ = inputs[:6]
        ctx.save_for_backward(*masks, *inputs[6:-3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        batch_sizes, lengths, reset, *tensors = ctx.saved_tensors
        sequence = Sequence(batch_sizes, lengths, reset, ctx.reverse)
        second = second_derivative(ctx.cell, sequence, tensors, grads)
        return (None,) * 6 + second + (None,) * 3


def second_derivative(
    cell: str, sequence: Sequence, tensors: Any, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of `LayerBackward`'s dy, dh_n, dc_n, dc, x .. w_hr, given those of its results."""
    derive = vjp if _torch.innermost_transform() is None else _vjp_inside_transforms
    places = [i for i, t in enumerate(tensors) if t is not None]
    outer = [i for i in places if i < 4]
    wanted = []
    for i in places[len(outer) :]:
        g = grads[i - 4]
        if g is not None and g.shape == tensors[i].shape:  # one not asked for has no elements
            wanted.append(i)

    if not wanted or not outer:
        return (None,) * len(tensors)

    def first_derivative(*given: Tensor) -> tuple[Tensor, ...]:
        by_place = dict(zip(places, given, strict=True))

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            by_input: Any = {**by_place, **dict(zip(wanted, inputs, strict=True))}
            layer: Any = [by_input.get(i) for i in range(4, len(tensors))]
            outputs: Any = reference.layer(cell, *layer[:8], sequence, *layer[8:])  # type: ignore[call-arg]
            return tuple(outputs[i] for i in outer)

        return derive(run, [by_place[i] for i in wanted], [by_place[i] for i in outer])

    given: Any = [grads[i - 4] for i in wanted]
    second = derive(first_derivative, [tensors[i] for i in places], given)
    by_place = dict(zip(places, second, strict=True))
    return tuple(by_place.get(i) for i in range(len(tensors)))


Function = Callable[..., tuple[Tensor, ...]]


def vjp(function: Function, inputs: list[Tensor], grads: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of function's inputs, given those of its outputs; differentiable under grad mode.

    By autograd's own means, which take two thirds of torch.func.vjp's time.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, so that gradients with respect to them are not cut short by how they were made.
        aliases = [t.view_as(t) if create_graph else t.detach() for t in inputs]
        aliases = [t if t.requires_grad else t.requires_grad_() for t in aliases]
        pairs = [(o, g) for o, g in zip(function(*aliases), grads, strict=True) if o.requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(t) for t in inputs)
        outputs, given = zip(*pairs, strict=True)
        return torch.autograd.grad(
            outputs, aliases, given, create_graph=create_graph, materialize_grads=True
        )


def _vjp_inside_transforms(
    function: Function, inputs: list[Tensor], grads: list[Tensor]
) -> tuple[Tensor, ...]:
    """The same under any transform of torch.func."""
    return torch.func.vjp(function, *inputs)[1](tuple(grads))


def _save_op(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, *tensors = (*inputs[:9], *inputs[15:17])
    y, _, c_n, c, slots = output
    *masks, ctx.reverse = inputs[9:13]
    ctx.save_for_backward(*masks, *tensors, y, c, slots)
    ctx.cell = cell
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(slots, *(() if ops.facts(cell)["has_c"] else (c_n, c)))


def _op_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    batch_sizes, lengths, reset, *saved = ctx.saved_tensors
    sequence = Sequence(batch_sizes, lengths, reset, ctx.reverse)
    # Arguments that have their defaults may be missing here.
    needs = (*ctx.needs_input_grad[1:9], *ctx.needs_input_grad[15:17], False, False)[:10]
    found = gradients(ctx.cell, sequence, needs, grads[:4], saved[:-3], saved[-3:])
    return None, *found[:8], *(None,) * 6, *found[8:]


# For whoever calls the op itself, as an exported program does.
torch.library.register_autograd("fastrnn::forward", _op_gradients, setup_context=_save_op)
