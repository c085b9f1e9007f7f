"""Packing and products on every target.

Most tests use small integers, whose products and sums are exact in every format and order: results must be
equal. One uses real numbers.
"""

from __future__ import annotations

import pytest
import torch
from conftest import BF16, F32, F64, SPLIT, Table, tables
from torch import Tensor

LARGEST = 127  # of the integers; rows and columns with this among them are quantized with a scale of 1


def integers(*shape: int) -> Tensor:
    return torch.randint(-LARGEST, LARGEST + 1, shape, dtype=F64)


def padded(table: Table, k: int) -> int:
    return -(-k // table.k_step) * table.k_step


def strided(rows: Tensor, row: int, value: float = 7) -> Tensor:
    """rows [m, n] flat at a distance of `row`; the last ends where the array ends."""
    flat = torch.full(((len(rows) - 1) * row + rows.shape[1],), value).to(rows.dtype)
    torch.as_strided(flat, rows.shape, (row, 1)).copy_(rows)
    return flat


def operand_rows(table: Table, a: Tensor, row: int) -> Tensor:
    """a [rows, k] as products read it: padded with zeros, `row` apart; bytes with a scale of 1."""
    wide = torch.zeros(len(a), padded(table, a.shape[1]), dtype=F64)
    wide[:, : a.shape[1]] = a
    operand = table.to_operand(wide)
    if table.types.quantizes:
        operand = torch.cat([operand, torch.ones(len(a), 1).view(torch.uint8)], 1)
    return strided(operand, row)


def columns_of(w: Tensor, gates: int, H: int, units: int, block: int) -> Tensor:
    """What the columns of a block's panel are: [k, gates * block], zero beyond the units."""
    columns = torch.zeros(w.shape[1], gates * block, dtype=F64)
    for g in range(gates):
        columns[:, g * block : g * block + units] = w[g * H : g * H + units].t()
    return columns


def rows_of_integers(table: Table, rows: int, k: int) -> Tensor:
    """[rows, k]; if they will be quantized, so that this changes nothing."""
    x = integers(rows, k)
    if table.types.quantizes:
        x[:, 0] = LARGEST
    return x


def pack_transposed(table: Table, w: Tensor, gates: int, H: int, units: int, block: int) -> Tensor:
    """w [gates * H, k] from the first row of a block of a wider matrix, packed for its `units`."""
    k, columns = w.shape[1], gates * block
    count = padded(table, k) * columns
    if table.types.quantizes:
        count += 8 * columns
    panel = torch.full((count,), 85).to(table.types.panel)
    used = w[: (gates - 1) * H + units].to(table.types.storage)
    numbers = [k, k + 3, gates, H, units, block]
    return table.call("pack_transposed", numbers, [strided(used, k + 3), panel])[1]


def unpacked(table: Table, panel: Tensor, columns: int) -> Tensor:
    """A panel as a matrix [k, columns] in float64."""
    if table.types.quantizes:
        # [k / 4][columns][4], then what each column's sums start from, and its scale.
        weights = panel[: -8 * columns].to(F64).view(-1, columns, 4).transpose(1, 2).reshape(-1, columns)
        starts = panel[-8 * columns : -4 * columns].clone().view(torch.int32)
        assert torch.equal(starts.to(F64), -128 * weights.sum(0))
        return weights * panel[-4 * columns :].clone().view(F32).to(F64)
    if table.types.panel == SPLIT:
        return panel.view(BF16).to(F64).view(-1, columns, 2).sum(-1)
    # [k / pair][columns][pair]
    return panel.to(F64).view(-1, columns, table.pair).transpose(1, 2).reshape(-1, columns)


# Gates and vectors of a tile.
FORMS = [(4, 4), (3, 3), (1, 4), (2, 4)]


@pytest.mark.parametrize("k", [1, 2, 15, 33, 70])
@pytest.mark.parametrize(("gates", "vectors"), FORMS)
def test_pack_transposed(table: Table, gates: int, vectors: int, k: int) -> None:
    block = vectors // gates * table.lanes
    for units in {1, block - 1, block}:
        H = block + 2
        w = rows_of_integers(table, gates * H, k)
        panel = pack_transposed(table, w, gates, H, units, block)
        expected = torch.zeros(padded(table, k), gates * block, dtype=F64)
        expected[:k] = columns_of(w, gates, H, units, block)
        assert torch.equal(unpacked(table, panel, gates * block), expected)


def test_pack_rounds_to_nearest(table: Table) -> None:
    """Weights that the panel's type can't hold."""
    k, block = 37, table.lanes
    w = torch.randn(4 * block, k, dtype=F64).to(table.types.storage)
    panel = unpacked(table, pack_transposed(table, w.to(F64), 4, block, block, block), 4 * block)
    exact = columns_of(w.to(F64), 4, block, block, block)
    if table.types.quantizes:
        assert ((panel[:k] - exact).abs() <= exact.abs().amax(0) / 127 * 0.5001).all()
    elif table.types.panel == SPLIT:
        assert torch.equal(panel[:k], table.to_operand(exact).view(BF16).to(F64).view(k, -1, 2).sum(-1))
    else:
        assert torch.equal(panel[:k], exact.to(table.types.panel).to(F64))


@tables(lambda types: not types.quantizes)
@pytest.mark.parametrize("k", [1, 2, 15, 33, 70])
def test_pack(table: Table, k: int) -> None:
    for vectors in table.widths:
        block = vectors * table.lanes
        for units in {1, block - 1, block}:
            w = integers(k, units)
            panel = table.to_operand(torch.full((padded(table, k) * block,), 85.0, dtype=F64))
            numbers = [k, units + 3, units, block]
            stored = strided(w.to(table.types.storage), units + 3)
            panel = table.call("pack", numbers, [stored, panel])[1]
            expected = torch.zeros(padded(table, k), block, dtype=F64)
            expected[:k, :units] = w
            assert torch.equal(unpacked(table, panel, block), expected)


def multiply(table: Table, vectors: int, a: Tensor, panel: Tensor, acc: Tensor, accumulate: bool) -> Tensor:
    """a [rows, k] times a panel, added to acc [rows, vectors * lanes] or in its place."""
    rows, k = a.shape
    row = padded(table, k) + 64
    numbers = [vectors, rows, padded(table, k), row, vectors * table.lanes * table.k_step, accumulate]
    return table.call("multiply", numbers, [operand_rows(table, a, row), panel, acc])[2]


@pytest.mark.parametrize("k", [1, 2, 7, 33, 70])
def test_tiles_of_every_width_and_height(table: Table, k: int) -> None:
    for vectors in table.widths:
        columns = vectors * table.lanes
        w = rows_of_integers(table, columns, k)
        panel = pack_transposed(table, w, 1, columns, columns, columns)
        for rows in range(1, table.tile_rows(vectors) + 1):
            a, acc = rows_of_integers(table, rows, k), integers(rows, columns)
            product = a @ w.t()
            given = acc.to(table.types.compute)
            for accumulate in (False,) if table.types.quantizes else (False, True):
                result = multiply(table, vectors, a, panel, given, accumulate).to(F64)
                expected = product + acc if accumulate else product
                assert torch.equal(result, expected), f"{rows} rows of {vectors} vectors"


@tables(lambda types: types.operand in (F32, F64))
def test_tile_with_distant_panel_rows(table: Table) -> None:
    """Unpacked weights as a panel, whose rows are further apart than a tile is wide."""
    k, rows, vectors = 9, 2, 4
    columns = vectors * table.lanes
    a, w = integers(rows, k), integers(k, columns)
    panel_row = columns + 5
    numbers = [vectors, rows, k, k, panel_row, False]
    acc = torch.zeros(rows, columns, dtype=table.types.compute)
    arrays = [table.to_operand(a).flatten(), strided(table.to_operand(w), panel_row), acc]
    assert torch.equal(table.call("multiply", numbers, arrays)[2].to(F64), a @ w)


@tables(lambda types: types.operand != SPLIT and not types.quantizes)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8])
def test_unpacked_weights(table: Table, rows: int) -> None:
    block = table.lanes
    for gates, units, k in [
        (4, block, 33),
        (3, block - 1, 70),
        (1, 1, 2),
        (4, block - 1, 1),
        (1, block, 64),
    ]:
        H = block + 2
        a, w = integers(rows, k), integers((gates - 1) * H + units, k)
        numbers = [rows, k, k + 5, k + 3, gates, H, units, block]
        acc = torch.zeros(rows, gates, block, dtype=table.types.compute)
        arrays = [strided(table.to_operand(a), k + 5), strided(w.to(table.types.storage), k + 3), acc]
        result = table.call("multiply_unpacked", numbers, arrays)[2].to(F64)
        for g in range(gates):
            expected = a @ w[g * H : g * H + units].t()
            assert torch.equal(result[:, g, :units], expected), f"gate {g} of {gates}"


@tables(lambda types: not types.quantizes)
def test_products_of_real_numbers(table: Table) -> None:
    """The error of a sum of k products is at most k half ulps of the sum of their magnitudes."""
    k, vectors = 300, 4
    columns, rows = vectors * table.lanes, table.tile_rows(vectors)
    w = torch.randn(columns, k, dtype=F64).to(table.types.storage).to(F64)
    panel = pack_transposed(table, w, 1, columns, columns, columns)
    read = unpacked(table, panel, columns)[:k]  # the weights as the panel holds them
    a = torch.randn(rows, k, dtype=F64)
    kept = table.to_operand(a)
    a = kept.view(BF16).to(F64).view(rows, k, 2).sum(-1) if table.types.operand == SPLIT else kept.to(F64)
    result = multiply(
        table, vectors, a, panel, torch.zeros(rows, columns, dtype=table.types.compute), False
    )
    bound = k * torch.finfo(table.types.compute).eps / 2 * (a.abs() @ read.abs())
    assert ((result.to(F64) - a @ read).abs() <= bound).all()


@tables(lambda types: types.quantizes)
@pytest.mark.parametrize("n", [1, 3, 16, 37, 64, 100])
def test_quantize(table: Table, n: int) -> None:
    """Rows of real numbers, of zeros, and with a number that is not finite."""
    width = padded(table, n)
    for x in (torch.randn(n), torch.zeros(n), torch.full((n,), 1e-32), torch.randn(n) * 1e30):
        row = table.call("quantize", [n], [x, torch.zeros(width + 4, dtype=torch.uint8)])[1]
        scale = row[width:].clone().view(F32).to(F64)
        q = row[:width].to(F64) - 128
        largest = x.abs().max().to(F64)
        assert abs(scale - largest / 127) <= 1e-7 * largest / 127 or (scale == 0 and largest < 1e-30)
        assert ((q[:n] * scale - x).abs() <= 0.5001 * scale + (scale == 0) * 1e-30).all()
        assert (q[n:] == 0).all()
    for bad in (torch.inf, torch.nan):
        x = torch.ones(n)
        x[-1] = bad
        row = table.call("quantize", [n], [x, torch.zeros(width + 4, dtype=torch.uint8)])[1]
        assert row[width:].clone().view(F32).isnan()


@tables(lambda types: types.quantizes)
def test_products_of_quantized_numbers(table: Table) -> None:
    """Sums of bytes are exact, and then scaled: three roundings."""
    k, vectors = 300, 4
    columns, rows = vectors * table.lanes, table.tile_rows(vectors)
    width, row = padded(table, k), padded(table, k) + 64
    panel = pack_transposed(table, torch.randn(columns, k, dtype=F64), 1, columns, columns, columns)
    a = torch.zeros(rows, k, dtype=F64)
    operand = torch.zeros(rows, width + 4, dtype=torch.uint8)
    for m in range(rows):
        operand[m] = table.call("quantize", [k], [torch.randn(k), operand[m]])[1]
        a[m] = (operand[m, :k].to(F64) - 128) * operand[m, width:].clone().view(F32).to(F64)
    numbers = [vectors, rows, width, row, columns * table.k_step, False]
    result = table.call("multiply", numbers, [strided(operand, row), panel, torch.zeros(rows, columns)])[2]
    exact = a @ unpacked(table, panel, columns)[:k]
    assert ((result.to(F64) - exact).abs() <= 2 * torch.finfo(F32).eps * exact.abs()).all()
