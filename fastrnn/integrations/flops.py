"""Counts of floating-point operations for torch.utils.flop_counter.

It counts what torch.nn's layers count when they run on ATen's products (torch counts nothing for its oneDNN
LSTM): two operations for each multiplication of a matrix product, nothing for the rest of a cell. Padding
beyond ``lengths`` is counted, as torch.nn counts padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from fastrnn import ops
from fastrnn._imports import after_import

Shape = Sequence[int]
Arguments = Mapping[str, Any]  # an operator's, by the names in its schema


def forward_flops(x: Shape, gates: int, size: int, hidden: int | None) -> int:
    """The products of one layer in one direction.

    Args:
        x: shape of the input, [T, B, I], [rows, I] or [B, I].
        gates: rows of the weights, G * H.
        size: P, the size of h.
        hidden: H of a layer with a projection, else None.
    """
    rows = prod(x[:-1])
    return 2 * rows * (gates * (x[-1] + size) + (hidden or 0) * size)


def backward_flops(
    x: Shape,
    gates: int,
    size: int,
    hidden: int | None,
    *,
    first: int,
    needs_x: bool,
    trained: Sequence[Shape | None],
    recomputed: bool,
) -> int:
    """The products of its backward.

    Args:
        first: rows of the first step where h0 needs no gradient, else 0: torch.nn omits that product.
        needs_x: the gradient of the input is needed.
        trained: shapes of the matrices whose gradients are needed.
        recomputed: the gates were not kept and are computed a second time.
    """
    rows = prod(x[:-1])
    total = 2 * (rows - first) * gates * size + 2 * rows * (hidden or 0) * size
    total += 2 * rows * sum(prod(shape) for shape in trained if shape is not None)
    if needs_x:
        total += 2 * rows * gates * x[-1]
    if recomputed:
        total += forward_flops(x, gates, size, None)
    return total


def _forward(a: Arguments) -> int:
    w_hr = a["w_hr"]
    return forward_flops(
        a["x"].shape, a["w_ih"].shape[0], a["w_hh"].shape[1], None if w_hr is None else w_hr.shape[1]
    )


def _forward_prepacked(a: Arguments) -> int:
    size, hidden = a["h0"].shape[1], a["hidden_size"]
    gates = ops.facts(a["cell"])["gates"] * hidden
    return forward_flops(a["x"].shape, gates, size, hidden if size != hidden else None)


def _backward(a: Arguments) -> int:
    weights = [a[name] for name in ("w_ih", "w_hh", "w_hr", "b_ih", "b_hh") if a[name] is not None]
    # A compiled graph's tensors do not tell which of them need gradients.
    told = any(w.requires_grad for w in weights)
    trained = [w.shape for w in weights if w.dim() == 2 and (w.requires_grad or not told)]
    x, h0, w_hr, batch_sizes = a["x"], a["h0"], a["w_hr"], a["batch_sizes"]
    first = x.shape[-2] if batch_sizes is None else h0.shape[0]
    if batch_sizes is not None and a["reverse"] and not isinstance(batch_sizes, FakeTensor):
        first = int(batch_sizes[-1])
    return backward_flops(
        x.shape,
        a["w_ih"].shape[0],
        a["w_hh"].shape[1],
        None if w_hr is None else w_hr.shape[1],
        first=0 if h0.requires_grad else first,
        needs_x=a["needs"][0],
        trained=trained if a["needs"][1] else [],
        recomputed=bool(ops.facts(a["cell"])["keeps_slots"]) and a["slots"].numel() == 0,
    )


FORMULAS: dict[str, Callable[[Arguments], int]] = {
    "forward": _forward,
    "forward_prepacked": _forward_prepacked,
    "backward": _backward,
}


def _register(flop_counter: ModuleType) -> None:
    for name, formula in FORMULAS.items():
        op = getattr(torch.ops.fastrnn, name)
        names = [argument.name for argument in op.default._schema.arguments]

        def count(
            *args: Any, out_val: Any, names: list[str] = names, formula: Any = formula, **kwargs: Any
        ) -> int:
            return formula(dict(zip(names, args, strict=False)) | kwargs)

        flop_counter.register_flop_formula(op, get_raw=True)(count)


def install() -> None:
    """Registers the formulas once torch.utils.flop_counter is imported."""
    after_import("torch.utils.flop_counter", _register)
