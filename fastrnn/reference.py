"""Each cell in a few lines of plain torch, and the loop over time: the kernels must give the same results.

Works in any dtype, on any device and under any transform, and has derivatives of any order. It is slow: the
tests compare with it, second derivatives are computed by it, and it runs what has no kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastrnn.sequence import ALL_STEPS, Sequence

# One step. x_part = x w_ih' + b_ih and h_part = h w_hh' + b_hh, both [B, G * H]; h, c [B, H].
Cell = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
# Of a declared cell: c [B, K * H] for K private states; then unit_weights [W * H], step_inputs [B, E * H].
DeclaredCell = Callable[
    [Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None], tuple[Tensor, Tensor | None]
]


def lstm(x_part: Tensor, h_part: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    i, f, g, o = (x_part + h_part).chunk(4, -1)
    assert c is not None
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(x_part: Tensor, h_part: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x_part.chunk(3, -1), h_part.chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return (1 - z) * n + z * h, None


def rnn_tanh(x_part: Tensor, h_part: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (x_part + h_part).tanh(), None


def rnn_relu(x_part: Tensor, h_part: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return (x_part + h_part).relu(), None


def gru_reset_before(x_part: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor | None) -> Tensor:
    """GRU with the reset gate before the matrix product: r scales h, not the product with it."""
    hidden = h.shape[-1]
    w_rz, w_n = w_hh.split((2 * hidden, hidden))
    b_rz, b_n = (None, None) if b_hh is None else b_hh.split((2 * hidden, hidden))
    x_rz, x_n = x_part.split((2 * hidden, hidden), -1)
    r, z = (x_rz + linear(h, w_rz, b_rz)).sigmoid().chunk(2, -1)
    n = (x_n + linear(r * h, w_n, b_n)).tanh()
    return (1 - z) * n + z * h


# Cells that the kernels cannot express, since one product needs the result of the other.
WITHOUT_KERNEL = {"gru_reset_before": gru_reset_before}

CELLS: dict[str, Cell] = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu}

# Those that fastrnn.cells adds, by the names that it gives them.
DECLARED: dict[str, DeclaredCell] = {}


def layer(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    sequence: Sequence = ALL_STEPS,
    unit_weights: Tensor | None = None,
    step_inputs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer in one direction; arguments and shapes as ``torch.ops.fastrnn.forward`` has them.

    Returns:
        h of every step, the last h, the last c, c of every step; None for c if the cell has none.
    """
    batch_sizes, lengths, reset, reverse = sequence
    if lengths is not None:
        # After a sequence's end the gradient of the products is zero, but zero times NaN is NaN.
        ended = torch.arange(x.shape[0] if x.dim() == 3 else 1, device=x.device).unsqueeze(1) >= lengths
        x = torch.where(ended.view(*x.shape[:-1], 1), 0, x)
    steps = _by_step(linear(x, w_ih, b_ih), x, batch_sizes)
    resets = [None] * len(steps) if reset is None else _by_step(reset, x, batch_sizes)
    inputs = [None] * len(steps) if step_inputs is None else _by_step(step_inputs, x, batch_sizes)
    h, c = h0, c0
    h_steps: list[Tensor] = [h] * len(steps)
    c_steps: list[Tensor | None] = [c] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        rows = steps[t].shape[0]
        h_in, c_in = h[:rows], None if c is None else c[:rows]
        active = None if lengths is None else (t < lengths).unsqueeze(-1)
        if (mask := resets[t]) is not None:
            mask = mask.unsqueeze(-1)
            if active is not None:
                mask = mask & active
            h_in = torch.where(mask, 0, h_in)
            c_in = None if c_in is None else torch.where(mask, 0, c_in)
        h_out, c_out = _step(cell, steps[t], h_in, c_in, w_hh, b_hh, unit_weights, inputs[t])
        if w_hr is not None:
            h_out = linear(h_out, w_hr)
        h_steps[t], c_steps[t] = h_out, c_out
        if active is not None:
            h_steps[t] = torch.where(active, h_out, 0)
            h_out = torch.where(active, h_out, h_in)
            if c_out is not None and c_in is not None:
                c_steps[t] = torch.where(active, c_out, 0)
                c_out = torch.where(active, c_out, c_in)
        # Sequences of a packed batch that have ended, or not yet begun, keep their state.
        h = torch.cat((h_out, h[rows:])) if rows < h.shape[0] else h_out
        if c is not None and c_out is not None:
            c = torch.cat((c_out, c[rows:])) if rows < c.shape[0] else c_out
    join = torch.stack if x.dim() == 3 else torch.cat
    y = join(h_steps)
    return y, h, c, None if c is None else join([s for s in c_steps if s is not None])


def _step(
    cell: str,
    x_part: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    unit_weights: Tensor | None,
    step_inputs: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    if cell in WITHOUT_KERNEL:
        return WITHOUT_KERNEL[cell](x_part, h, w_hh, b_hh), None
    h_part = linear(h, w_hh, b_hh)
    if cell in CELLS:
        return CELLS[cell](x_part, h_part, h, c)
    return DECLARED[cell](x_part, h_part, h, c, unit_weights, step_inputs)


def _by_step(t: Tensor, x: Tensor, batch_sizes: Tensor | None) -> list[Any]:
    """A tensor of x's leading dimensions, step by step."""
    if batch_sizes is not None:
        return list(t.split(batch_sizes.tolist()))
    return list(t) if x.dim() == 3 else [t]
