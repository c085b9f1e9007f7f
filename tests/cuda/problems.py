"""A layer by the emulated CUDA ops beside the same by fastrnn.reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastrnn import reference
from fastrnn.ops import CELLS
from fastrnn.sequence import Sequence

GATES = {cell: facts["gates"] for cell, facts in CELLS.items()}
NAMES = ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr")


@dataclass
class Problem:
    cell: str
    tensors: tuple[Tensor | None, ...]  # x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr
    sequence: Sequence
    grads: tuple[Tensor | None, ...]  # of y, h_n, c_n and c

    def padded_with(self, value: float) -> Problem:
        """The same with x filled beyond the end of each sequence, of which there must be lengths."""
        x, lengths = self.tensors[0], self.sequence.lengths
        beyond = torch.arange(len(x)).unsqueeze(1) >= lengths
        filled = x.masked_fill(beyond.unsqueeze(-1), value)
        return replace(self, tensors=(filled, *self.tensors[1:]))

    def outputs(self) -> tuple[Tensor, ...]:
        """y, h_n, c_n, c and gradients of `tensors`, in float64 by the reference."""
        wide = tuple(None if t is None else t.double().requires_grad_() for t in self.tensors)
        y, h_n, c_n, c = reference.layer(self.cell, *wide, self.sequence)
        pairs = [
            (out, grad.double())
            for out, grad in zip((y, h_n, c_n, c), self.grads, strict=True)
            if out is not None and grad is not None
        ]
        grads = torch.autograd.grad(
            [p[0] for p in pairs], [t for t in wide if t is not None], [p[1] for p in pairs]
        )
        return tuple(t.detach() for t in (y, h_n, c_n, c) if t is not None) + grads


def make(
    cell: str,
    T: int,
    B: int,
    I: int,
    H: int,
    *,
    P: int | None = None,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    kind: str = "plain",
    reverse: bool = False,
    positive: bool = False,
    seed: int = 0,
) -> Problem:
    """A random problem. `kind` is plain, packed, lengths, or either with `+reset`.

    `positive` keeps every number above zero, where relu has no kink that rounding could cross.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=random, dtype=torch.float64) * scale
        return (numbers.abs() if positive else numbers).to(dtype)

    has_c, rows, leading = CELLS[cell]["has_c"], H if P is None else P, (T, B)
    batch_sizes = lengths = reset = None
    if "packed" in kind:
        ends = torch.randint(1, T + 1, (B,), generator=random)
        ends[0] = T
        batch_sizes = torch.stack([(ends > t).sum() for t in range(T)])
        leading = (int(batch_sizes.sum()),)
    elif "lengths" in kind:
        lengths = torch.randint(0, T + 1, (B,), generator=random)
    if "reset" in kind:
        reset = torch.rand(leading, generator=random) < 0.3
    weight = H**-0.5
    G = GATES[cell]
    tensors = (
        normal(*leading, I),
        normal(B, rows),
        normal(B, H) if has_c else None,
        normal(G * H, I, scale=weight),
        normal(G * H, rows, scale=weight),
        normal(G * H, scale=weight) if bias else None,
        normal(G * H, scale=weight) if bias else None,
        normal(P, H, scale=weight) if P is not None else None,
    )
    grads = (
        normal(*leading, rows),
        normal(B, rows),
        normal(B, H) if has_c else None,
        normal(*leading, H) if has_c else None,
    )
    return Problem(cell, tensors, Sequence(batch_sizes, lengths, reset, reverse), grads)


def by_ops(ops: object, problem: Problem, keep: int = 2) -> tuple[Tensor, ...]:
    """The same results as Problem.outputs by the ops' forward and backward."""
    y, h_n, c_n, c, slots = ops.forward(problem.cell, *problem.tensors, *problem.sequence, keep)
    grads = ops.backward(
        problem.cell,
        *problem.grads,
        *problem.tensors,
        *problem.sequence,
        y,
        c,
        slots,
        [True, True],
    )
    outs = (y, h_n, c_n, c) if CELLS[problem.cell]["has_c"] else (y, h_n)
    given = zip(grads[: len(problem.tensors)], problem.tensors, strict=True)
    return outs + tuple(g for g, t in given if t is not None)
