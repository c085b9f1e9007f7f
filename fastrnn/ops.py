"""The compiled operators, typed, with what a tracer needs to know of their results' shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import _build

_C = _build.load()

# What the registry in csrc/cells says of each cell: gates, slots, has_c, keeps_slots.
CELLS: dict[str, dict[str, int]] = _C.cells()

BUILT_WITH_CUDA = bool(_C.cuda_archs)

# What forward keeps for backward.
KEEP_NOTHING, KEEP_C, KEEP_SLOTS = 0, 1, 2

forward_op = torch.ops.fastrnn.forward.default
backward = torch.ops.fastrnn.backward.default
prepack = torch.ops.fastrnn.prepack.default
forward_prepacked = torch.ops.fastrnn.forward_prepacked.default
cuda_driver = torch.ops.fastrnn.cuda_driver.default


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op, without the search for gradients that autograd.Layer takes care of (10 us a call)."""
    if torch.compiler.is_compiling():
        return forward_op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return forward_op(*args)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    facts = CELLS[cell]
    hidden = w_ih.shape[0] // facts["gates"]
    leading = x.shape[:-1]
    none = x.new_empty(0)
    keeps_slots = facts["keeps_slots"] and keep >= KEEP_SLOTS
    return (
        x.new_empty((*leading, w_hh.shape[1])),
        x.new_empty(h0.shape),
        x.new_empty(c0.shape) if c0 is not None else none,
        x.new_empty((*leading, hidden)) if c0 is not None and keep >= KEEP_C else none.clone(),
        x.new_empty((*leading, facts["slots"] * hidden)) if keeps_slots else none.clone(),
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
) -> tuple[Tensor, ...]:
    def like(t: Tensor | None, needed: bool = True) -> Tensor:
        return x.new_empty(t.shape if t is not None and needed else 0)

    weights = (like(t, needs[1]) for t in (w_ih, w_hh, b_ih, b_hh, w_hr))
    return like(x, needs[0]), like(h0), like(c0), *weights


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    leading = x.shape[:-1]
    return (
        x.new_empty((*leading, h0.shape[1])),
        x.new_empty(h0.shape),
        x.new_empty(c0.shape if c0 is not None else 0),
        x.new_empty((*leading, hidden_size) if c0 is not None and keep >= KEEP_C else 0),
    )
