"""The compiled operators, typed, and the shapes of their results for tracers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import _build, _torch

_build.load()

# What the registry in csrc/cells says of each cell: gates, slots, has_c, keeps_slots, projects.
CELLS: dict[str, dict[str, int]] = _build.cells()

# The same of cells that were declared in Python and compiled (fastrnn.cells).
DECLARED: dict[str, dict[str, int]] = {}

BUILT_WITH_CUDA = _torch.has_kernel("fastrnn::forward", "CUDA")

# x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr.
LAYER_TENSORS = 8

# What forward keeps for backward.
KEEP_NOTHING, KEEP_C, KEEP_SLOTS = 0, 1, 2

forward_op = torch.ops.fastrnn.forward.default
backward_op = torch.ops.fastrnn.backward.default
prepack_op = torch.ops.fastrnn.prepack.default
forward_prepacked_op = torch.ops.fastrnn.forward_prepacked.default
stream = torch.ops.fastrnn.stream.default
cuda_driver_op = torch.ops.fastrnn.cuda_driver.default


# How exact products of float32 must be; Precision in csrc/torch/cpu_kernels.h.
HIGHEST, _HIGH, _MEDIUM = 0, 1, 2


# A compiled graph keeps the settings it was traced under.
@_torch.assume_constant
def _cpu_precision() -> int:
    matmul, rnn = _torch.float32_matmul_precision(), _torch.fp32_precision("mkldnn", "rnn")
    if matmul == "medium" or rnn == "bf16":
        return _MEDIUM
    return _HIGH if matmul == "high" or rnn == "tf32" else HIGHEST


@_torch.assume_constant
def _cuda_precision() -> int:
    return _HIGH if _torch.fp32_precision("cuda", "rnn") == "tf32" else HIGHEST


def precision(x: Tensor) -> int:
    """The least exact products of float32 that torch's settings allow on x's device."""
    if not x.is_cuda:
        return _cpu_precision()  # whatever x's dtype: the kernels of others ignore it
    return _cuda_precision() if x.dtype is torch.float32 else HIGHEST


def facts(cell: str) -> dict[str, int]:
    """What is known of a cell with kernels."""
    return CELLS.get(cell) or DECLARED[cell]


def load_cell(name: str, address: int) -> None:
    """Adds a cell that was compiled by itself to those that the operators know."""
    DECLARED[name] = _build.cell_facts(torch.ops.fastrnn.load_cell(name, address))[1]


def forward(*args: Any, given: tuple[Tensor | None, ...] = ()) -> tuple[Tensor, ...]:
    """The op, without dispatch to autograd (10 us a call), which autograd.Layer does itself.

    given: unit_weights and step_inputs, of a declared cell.
    """
    allowed = precision(args[1])
    if torch.compiler.is_compiling():
        return forward_op(*args, allowed, *given)
    with _torch.below_autograd():
        return forward_op(*args, allowed, *given)


def forward_layer(
    cell: str, tensors: Sequence[Tensor | None], sequence: Sequence[Any], keep: int
) -> tuple[Tensor, ...]:
    """forward of x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr and, of a declared cell, what it is given."""
    if len(tensors) == LAYER_TENSORS:
        return forward(cell, *tensors, *sequence, keep)
    given = tuple(tensors[LAYER_TENSORS:])
    return forward(cell, *tensors[:LAYER_TENSORS], *sequence, keep, given=given)


def backward(*args: Any, given: tuple[Tensor | None, ...] = ()) -> tuple[Tensor, ...]:
    """The op, as exact as torch's settings ask for now. given: as forward's."""
    return backward_op(*args, precision(args[5]), *given)


def backward_layer(
    cell: str,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor | None],
    sequence: Sequence[Any],
    kept: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of forward_layer's tensors."""
    given = tuple(tensors[LAYER_TENSORS:])
    results = backward(cell, *grads, *tensors[:LAYER_TENSORS], *sequence, *kept, list(needs), given=given)
    return tuple(results[: len(tensors)])


def cuda_driver(
    x: Tensor, cell: str, T: int, B: int, H: int, projects: bool, backward: bool
) -> tuple[str, str]:
    """The driver that computes a pass of a layer in x's dtype on x's GPU, and why."""
    return cuda_driver_op(x, cell, T, B, H, projects, backward, precision(x))


def prepack(cell: str, w_ih: Tensor, *args: Any) -> Tensor:
    """The op, for products as exact as torch's settings ask for now."""
    return prepack_op(cell, w_ih, *args, precision(w_ih))


def forward_prepacked(
    *args: Any, given: tuple[Tensor | None, ...] = ()
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op; what it was given must have been packed under the same settings. given: as forward's."""
    return forward_prepacked_op(*args, precision(args[1]), *given)


def _check_cell(cell: str) -> None:
    known = cell in CELLS or cell in DECLARED
    torch._check_value(known, lambda: f"fastrnn: there is no cell named {cell!r}")


def _check(
    name: str,
    t: Tensor | None,
    shape: Sequence[int],
    x: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """Checks a tensor without memory as the backends check others. Sizes may be symbols, and stay so."""
    if t is None:
        return
    dtype = dtype or x.dtype

    def wrong() -> str:
        return (
            f"fastrnn: {name} must be {dtype} of shape {list(shape)} on {x.device}, "
            f"got {t.dtype} of shape {list(t.shape)} on {t.device}"
        )

    torch._check_value(t.dim() == len(shape) and t.dtype == dtype and t.device == x.device, wrong)
    for size, expected in zip(t.shape, shape, strict=True):
        torch._check_value(size == expected, wrong)


def _check_sequence(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    hidden: int,
    size: int,
) -> None:
    """Checks all but the matrices, for a layer of `hidden` units with an h of `size` numbers."""
    known = facts(cell)
    has_c, packed = bool(known["has_c"]), batch_sizes is not None
    sizes = None if batch_sizes is None else (batch_sizes.dim(), batch_sizes.dtype, batch_sizes.device.type)
    for right, what in (
        (x.dim() == 2 or (x.dim() == 3 and not packed), f"the input has {x.dim()} dimensions"),
        ((c0 is not None) == has_c, f"{cell} {'needs' if has_c else 'has no'} c0"),
        ((b_ih is None) == (b_hh is None), "b_ih and b_hh come together or not at all"),
        (not packed or sizes == (1, torch.int64, "cpu"), "batch_sizes must be 1-D int64 on the CPU"),
        (lengths is None or not packed, "lengths and batch_sizes exclude each other"),
    ):
        torch._check_value(right, lambda what=what: f"fastrnn: {what}")
    batch = h0.shape[0] if packed else x.shape[-2]
    _check("h0", h0, (batch, size), x)
    _check("c0", c0, (batch, known["own_states"] * hidden), x)
    _check("b_ih", b_ih, (known["gates"] * hidden,), x)
    _check("b_hh", b_hh, (known["gates"] * hidden,), x)
    _check("lengths", lengths, (batch,), x, torch.int64)
    _check("reset", reset, x.shape[:-1], x, torch.bool)


@torch.library.register_fake("fastrnn::forward")
def _(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    keep: int,
    precision: int = 0,
    unit_weights: Tensor | None = None,
    step_inputs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_cell(cell)
    torch._check_value(w_ih.dim() == 2, lambda: "fastrnn: w_ih must have 2 dimensions")
    known = facts(cell)
    gates, hidden = known["gates"], w_ih.shape[0] // known["gates"]
    torch._check_value(w_hr is None or known["projects"] == 1, lambda: f"fastrnn: {cell} has no projection")
    torch._check_value(w_hr is None or w_hr.dim() == 2, lambda: "fastrnn: w_hr must have 2 dimensions")
    size = hidden if w_hr is None else w_hr.shape[0]
    _check_sequence(cell, x, h0, c0, b_ih, b_hh, batch_sizes, lengths, reset, hidden, size)
    _check("w_ih", w_ih, (gates * hidden, x.shape[-1]), x)
    _check("w_hh", w_hh, (gates * hidden, size), x)
    _check("w_hr", w_hr, (size, hidden), x)
    leading = x.shape[:-1]
    for name, t, shape in (
        ("unit_weights", unit_weights, (known["unit_weights"] * hidden,)),
        ("step_inputs", step_inputs, (*leading, known["step_inputs"] * hidden)),
    ):
        wants = known[name] > 0
        said = f"fastrnn: {cell} takes {name}: {wants}"
        torch._check_value((t is not None) == wants, lambda said=said: said)
        _check(name, t, shape, x)
    none = x.new_empty(0)
    keeps_slots = known["keeps_slots"] and keep >= KEEP_SLOTS
    return (
        x.new_empty((*leading, size)),
        x.new_empty(h0.shape),
        x.new_empty(c0.shape) if c0 is not None else none,
        x.new_empty((*leading, c0.shape[-1])) if c0 is not None and keep >= KEEP_C else none.clone(),
        x.new_empty((*leading, known["slots"] * hidden)) if keeps_slots else none.clone(),
    )


@torch.library.register_fake("fastrnn::backward")
def _(
    cell: str,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    y: Tensor,
    c: Tensor,
    slots: Tensor,
    needs: list[bool],
    precision: int = 0,
    unit_weights: Tensor | None = None,
    step_inputs: Tensor | None = None,
) -> tuple[Tensor, ...]:
    def like(t: Tensor | None, needed: bool = True) -> Tensor:
        return x.new_empty(t.shape if t is not None and needed else 0)

    weights = (like(t, needs[1]) for t in (w_ih, w_hh, b_ih, b_hh, w_hr, unit_weights))
    return like(x, needs[0]), like(h0), like(c0), *weights, like(step_inputs, needs[0])


@torch.library.register_fake("fastrnn::forward_prepacked")
def _(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    panels: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    hidden_size: int,
    weights: str,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    keep: int,
    precision: int = 0,
    unit_weights: Tensor | None = None,
    step_inputs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_cell(cell)
    torch._check_value(h0.dim() == 2, lambda: "fastrnn: h0 must have 2 dimensions")
    masks = (batch_sizes, lengths, reset)
    _check_sequence(cell, x, h0, c0, b_ih, b_hh, *masks, hidden_size, h0.shape[1])
    leading = x.shape[:-1]
    return (
        x.new_empty((*leading, h0.shape[1])),
        x.new_empty(h0.shape),
        x.new_empty(c0.shape if c0 is not None else 0),
        x.new_empty((*leading, c0.shape[-1]) if c0 is not None and keep >= KEEP_C else 0),
    )


@torch.library.register_fake("fastrnn::stream")
def _(
    cell: str,
    x: Tensor,
    state: Tensor,
    turn: int,
    panels: list[Tensor],
    biases: list[Tensor],
    hidden_size: int,
    size: int,
    weights: str,
    precision: int = 0,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], size))
