"""The cells' forward and backward kernels on every target, against fastrnn.reference in float64."""

from __future__ import annotations

import pytest
import support
import torch
from conftest import F64, SPLIT, Table, tables
from test_products import strided
from torch import Tensor

from fastrnn import reference

NAMES = ["lstm", "gru", "rnn_tanh", "rnn_relu"]  # in the order of csrc/cells/registry.h
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
SLOTS = {**GATES, "gru": 4}


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers that dtype has, in float64."""
    return x.to(dtype).to(F64)


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return rounded(torch.randn(shape, dtype=F64), dtype)


def check(names: list[str], exact: list[Tensor], theirs: list[Tensor], ours: list[Tensor]) -> None:
    """The rule of exactness in each result's own type: twice torch's error and a few ulp."""
    for name, e, t, o in zip(names, exact, theirs, ours, strict=True):
        for error in support.errors([name], [e], [t.to(o.dtype)], [o], o.dtype):
            assert error.ours <= error.bound, error


def take(flat: Tensor, rows: int, columns: int, row: int) -> Tensor:
    return torch.as_strided(flat, (rows, columns), (row, 1))


class Arrays:
    """A call's arrays: matrices [rows, n] at row distances of their own, n of which is touched."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.flat: list[Tensor | None] = []
        self.strides: list[int] = []
        self.names: dict[str, int] = {}

    def add(self, name: str, x: Tensor | None, dtype: torch.dtype, row: int | None = None) -> int:
        """Adds a matrix and returns its row distance."""
        self.names[name] = len(self.flat)
        if x is None:
            self.flat.append(None)
            return 0
        row = x.shape[1] + 3 + len(self.flat) if row is None else row
        self.flat.append(strided(x.to(dtype), row))
        return row


def spread(x: Tensor, H: int) -> Tensor:
    """[rows, gates, units] as [rows, (gates - 1) * H + units] with a distance of H from gate to gate."""
    rows, gates, units = x.shape
    wide = torch.full((rows, gates, H), 5.0, dtype=x.dtype)
    wide[:, :, :units] = x
    return wide.flatten(1)[:, : (gates - 1) * H + units]


def unspread(x: Tensor, gates: int, H: int) -> Tensor:
    rows, units = len(x), x.shape[1] - (gates - 1) * H
    return torch.stack([x[:, g * H : g * H + units] for g in range(gates)], 1).view(rows, gates, units)


def reference_forward(
    cell: str, pre: Tensor, acc: Tensor, bias: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """h, c and slots in the arguments' type; parts of the pre-activations [rows, gates, units]."""
    new_h, new_c = reference.CELLS[cell](pre.flatten(1), (acc + bias).flatten(1), h, c)
    if cell == "lstm":
        i, f, g, o = (pre + acc + bias).unbind(1)
        slots = [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
    elif cell == "gru":
        part = acc + bias
        r, z = (pre + part)[:, :2].sigmoid().unbind(1)
        slots = [r, z, (pre[:, 2] + r * part[:, 2]).tanh(), part[:, 2]]
    else:
        slots = [new_h]
    return new_h, new_c, torch.stack(slots, 1)


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("cell", NAMES)
def test_forward(table: Table, cell: str, everything: bool) -> None:
    """everything: results that are optional; else h is updated in place and nothing is kept."""
    types, gates, rows = table.types, GATES[cell], 3
    storage, operand, compute = types.storage, types.cell_operand, types.compute
    for block, units in [(table.lanes, 1), (2 * table.lanes, table.lanes + 1), (table.lanes, table.lanes)]:
        H = units + 2
        pre, acc = (drawn(rows, gates, units, dtype=compute) for _ in range(2))
        bias = drawn(gates, units, dtype=compute)
        h_prev, c_prev = (drawn(rows, units, dtype=compute) for _ in range(2))
        # Only a recurrent part with a slot of its own has its bias added here.
        added = torch.zeros_like(bias)
        if cell == "gru":
            added[2] = bias[2]
        has_c = cell == "lstm"
        keeps = everything and cell in ("lstm", "gru")

        arrays = Arrays(rows)
        products = torch.zeros(rows, gates, block, dtype=F64)
        products[:, :, :units] = acc
        acc_row = arrays.add("acc", products.flatten(1), compute, gates * block)
        pre_row = arrays.add("pre", spread(pre, H), compute)
        arrays.add("b_hh", spread(bias[None], H), compute)
        h_row = arrays.add("h_prev", h_prev, compute)
        arrays.add("h", torch.zeros_like(h_prev) if everything else None, compute, h_row)
        wide_operand = torch.zeros(rows, units) if operand != compute else None
        operand_row = arrays.add("operand", wide_operand, operand)
        c_row = arrays.add("c", c_prev if has_c else None, compute)
        y_row = arrays.add("y", torch.zeros(rows, units) if everything else None, storage)
        kept_c = torch.zeros(rows, units) if everything and has_c else None
        c_out_row = arrays.add("c_out", kept_c, storage)
        kept = torch.zeros(rows, (SLOTS[cell] - 1) * H + units) if keeps else None
        slots_row = arrays.add("slots", kept, storage)
        strides = [acc_row, pre_row, h_row, operand_row, c_row, y_row, c_out_row, slots_row]
        flat = table.call("forward", [NAMES.index(cell), rows, units, block, H, *strides], arrays.flat)

        arguments = (pre, acc, added, h_prev, c_prev)
        h, c, slots = reference_forward(cell, *arguments)
        t_h, t_c, t_slots = reference_forward(cell, *(x.to(compute) for x in arguments))

        def result(name: str, row: int, columns: int = units) -> Tensor:
            return take(flat[arrays.names[name]], rows, columns, row)  # noqa: B023

        names, exact, theirs = ["h"], [h], [t_h]
        ours = [result("h" if everything else "h_prev", h_row)]
        if operand == SPLIT:
            assert torch.equal(result("operand", operand_row), table.to_operand(ours[0].double()))
        elif operand != compute:
            assert torch.equal(result("operand", operand_row), ours[0].to(operand))
        if everything:
            assert torch.equal(result("y", y_row), ours[0].to(storage))
        if has_c:
            assert c is not None
            assert t_c is not None
            names, exact, theirs = [*names, "c"], [*exact, c], [*theirs, t_c]
            ours.append(result("c", c_row))
            if everything:
                assert torch.equal(result("c_out", c_out_row), ours[-1].to(storage))
        if keeps:
            wide = result("slots", slots_row, (SLOTS[cell] - 1) * H + units)
            names, exact, theirs = [*names, "slots"], [*exact, slots], [*theirs, t_slots]
            ours.append(unspread(wide, SLOTS[cell], H).contiguous())
        if types.approximates:
            # Twice the largest error of an approximation for each of the two in a row.
            for name, e, o in zip(names, exact, ours, strict=True):
                assert (o.double() - e).abs().max() <= 8e-6 * (1 + c_prev.abs().max()), name
        else:
            check(names, exact, theirs, ours)


def reference_backward(
    cell: str, slots: Tensor, h: Tensor, h_prev: Tensor, c: Tensor, c_prev: Tensor, dh: Tensor, dc: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """d_slots [rows, slots, units], the direct part of dh_prev, dc_prev: derivatives by autograd.

    The pre-activations are computed from the slots, or from h if there are none.
    """
    with torch.enable_grad():
        h_prev, c_prev = h_prev.clone().requires_grad_(), c_prev.clone().requires_grad_()
        zeros = torch.zeros_like(h_prev)
        if cell == "lstm":
            i, f, g, o = slots.unbind(1)
            parts = [torch.stack([i.logit(), f.logit(), g.atanh(), o.logit()], 1).requires_grad_()]
            i, f, g, o = parts[0].unbind(1)
            new_c = f.sigmoid() * c_prev + i.sigmoid() * g.tanh()
            new_c = c + new_c - new_c.detach()  # the value that the kernel is given, which may be rounded
            new_h = o.sigmoid() * new_c.tanh()
        elif cell == "gru":
            r, z, n, part = slots.unbind(1)
            x = torch.stack([r.logit(), z.logit(), n.atanh() - r * part], 1).requires_grad_()
            by_h = torch.stack([zeros, zeros, part], 1).detach().requires_grad_()
            parts = [x, by_h]
            new_h, new_c = reference.gru(x.flatten(1), by_h.flatten(1), h_prev, None)
        else:
            x = (h.atanh() if cell == "rnn_tanh" else torch.where(h > 0, h, -1)).requires_grad_()
            parts = [x]
            new_h, new_c = reference.CELLS[cell](x, torch.zeros_like(x), zeros, None)
        total = (new_h * dh).sum() + (0 if new_c is None else (new_c * dc).sum())
        grads = torch.autograd.grad(total, [*parts, h_prev, c_prev], allow_unused=True)
    by_part, dh_prev, dc_prev = grads[: len(parts)], grads[-2], grads[-1]
    if cell == "gru":
        d_slots = torch.cat([by_part[0], by_part[1][:, 2:]], 1)
    else:
        d_slots = by_part[0].view(len(dh), -1, dh.shape[1])
    return d_slots, torch.zeros_like(dh) if dh_prev is None else dh_prev, dc_prev


@tables(lambda types: not types.quantizes)
@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("cell", NAMES)
def test_backward(table: Table, cell: str, everything: bool) -> None:
    """everything: gradients and results that are optional."""
    types, count, rows = table.types, SLOTS[cell], 3
    storage, operand, compute = types.storage, types.cell_operand, types.compute
    has_c, keeps = cell == "lstm", cell in ("lstm", "gru")
    for block, units in [(table.lanes, 1), (2 * table.lanes, table.lanes + 1), (table.lanes, table.lanes)]:
        H = units + 2
        # Away from the ends, where the inverse functions lose digits.
        slots = rounded(torch.rand(rows, count, units, dtype=F64) * 0.8 + 0.1, storage)
        h = rounded((torch.rand(rows, units, dtype=F64) - 0.5) * 1.6, storage)
        h_prev, c_prev = (drawn(rows, units, dtype=storage) for _ in range(2))
        c = rounded(c_prev * slots[:, 1] + slots[:, 0] * slots[:, 2], storage) if has_c else c_prev
        acc, carry_h, carry_c = (drawn(rows, units, dtype=compute) for _ in range(3))
        dy, dc = (drawn(rows, units, dtype=storage) for _ in range(2))

        arrays = Arrays(rows)
        products = torch.zeros(rows, block, dtype=F64)
        products[:, :units] = acc
        numbers = [arrays.add("acc", products if everything else None, compute, block)]
        numbers.append(arrays.add("carry_h", carry_h, compute))
        numbers.append(arrays.add("carry_c", carry_c if has_c else None, compute))
        numbers.append(arrays.add("dy", dy if everything else None, storage))
        numbers.append(arrays.add("dc", dc if everything and has_c else None, storage))
        numbers.append(arrays.add("slots", spread(slots, H) if keeps else None, storage))
        numbers.append(arrays.add("h", h, storage))
        numbers.append(arrays.add("h_prev", h_prev, storage))
        numbers.append(arrays.add("c", c if has_c else None, storage))
        numbers.append(arrays.add("c_prev", c_prev if has_c else None, storage))
        output = torch.zeros(rows, units) if everything and has_c else None
        numbers.append(arrays.add("output", output, storage))
        wide = torch.zeros(rows, (count - 1) * H + units)
        numbers.append(arrays.add("d_slots", wide, storage))
        operand_slot = H + 1
        apart = torch.zeros(rows, (count - 1) * operand_slot + units)
        numbers += [arrays.add("operand", apart, operand), operand_slot]
        flat = table.call("backward", [NAMES.index(cell), rows, units, H, *numbers], arrays.flat)

        dh = carry_h + acc + dy if everything else carry_h
        all_dc = carry_c + dc if everything else carry_c
        d_slots, dh_prev, dc_prev = reference_backward(cell, slots, h, h_prev, c, c_prev, dh, all_dc)

        def result(name: str, columns: int = units) -> Tensor:
            at = arrays.names[name]  # noqa: B023
            strides = dict(zip(arrays.names, numbers, strict=False))  # noqa: B023
            return take(flat[at], rows, columns, strides[name])  # noqa: B023

        ours = [unspread(result("d_slots", wide.shape[1]), count, H).contiguous(), result("carry_h")]
        names, exact = ["d_slots", "carry_h"], [d_slots, dh_prev]
        if has_c:
            assert dc_prev is not None
            names, exact = [*names, "carry_c"], [*exact, dc_prev]
            ours.append(result("carry_c"))
        if output is not None:
            names, exact = [*names, "output"], [*exact, slots[:, 3] * c.tanh()]
            ours.append(result("output"))
        for name, e, o in zip(names, exact, ours, strict=True):
            # The exact result rounded to its type takes the place of torch's, which has no such function.
            for error in support.errors([name], [e], [e.to(o.dtype)], [o], o.dtype):
                assert error.ours <= error.bound, error
        # d_slots and operand hold the same numbers; the narrower of the two is the other, rounded.
        kept = unspread(result("operand", apart.shape[1]), count, operand_slot).contiguous()
        if operand == SPLIT:
            assert torch.equal(kept, table.to_operand(ours[0].double()))
        elif torch.finfo(operand).eps >= torch.finfo(storage).eps:
            assert torch.equal(kept, ours[0].to(operand))
        else:
            assert torch.equal(kept.to(storage), ours[0])
