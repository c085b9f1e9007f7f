"""Conversion, bias and sums over rows, on every target."""

from __future__ import annotations

import math

import pytest
import support
import torch
from conftest import BF16, F16, F32, F64, PROGRAM, SPLIT, TABLES, Table, has_table, tables
from test_products import integers, strided
from torch import Tensor

# Around every vector's size, and none.
COUNTS = [0, 1, 3, 8, 15, 16, 17, 33]


def special_floats() -> Tensor:
    """float32: ties, overflow and subnormal numbers of 16-bit formats, random bits, infinities, NaN."""
    bits = torch.randint(-(2**31), 2**31, (1 << 14,), dtype=torch.int32).view(F32)
    every_half = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(F16).float()
    between = [every_half, torch.nextafter(every_half, torch.tensor(math.inf)), every_half * (1 + 2.0**-11)]
    ends = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 3.4e38, 2.0**-24, 2.0**-25, 2.0**-26]
    ends += [math.inf, -math.inf, math.nan]
    return torch.cat([bits, *between, torch.tensor(ends), torch.randn(1 << 14)])


def same(result: Tensor, expected: Tensor) -> None:
    """Equal numbers and signs of zeros; any NaN for a NaN."""
    nan = expected.isnan()
    assert torch.equal(result.isnan(), nan)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    assert torch.equal(result[~nan].view(bits), expected[~nan].view(bits))


def test_a_target_has_the_tables_its_name_tells(target: str) -> None:
    for name in TABLES:
        if has_table(target, name):
            assert PROGRAM.numbers(target, name, "facts")
        else:
            with pytest.raises(AssertionError, match="has no table"):
                PROGRAM.numbers(target, name, "facts")


def convert(table: Table, kernel: str, x: Tensor, to: torch.dtype) -> Tensor:
    return table.call(kernel, [x.numel()], [x, torch.full((x.numel(),), 3).to(to)])[1]


@tables(lambda types: types.storage in (F16, BF16))
def test_16_bit_formats_become_float(table: Table) -> None:
    types = table.types
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(types.storage)
    same(convert(table, "to_compute", every, types.compute), every.to(types.compute))
    same(convert(table, "to_operand", every, types.operand), every.to(types.operand))


@tables(lambda types: not types.quantizes)
def test_float_becomes_storage_and_operand(table: Table) -> None:
    types = table.types
    x = special_floats().to(types.compute)
    same(convert(table, "to_storage", x, types.storage), x.to(types.storage))
    result = convert(table, "round_to_operand", x, types.operand)
    if types.operand != SPLIT:
        return same(result, x.to(types.operand))
    parts = result.view(BF16).view(-1, 2).double()
    high = x.to(BF16).double()
    assert torch.equal(parts[:, 0][~high.isnan()], high[~high.isnan()])
    fits = high.isfinite()
    low = (x.double() - high)[fits].to(BF16).double()
    normal = low.abs() >= torch.finfo(F32).tiny
    assert torch.equal(parts[:, 1][fits][normal], low[normal])
    assert (parts[:, 1][x.isinf()] == 0).all()


@tables(lambda types: not types.quantizes)
@pytest.mark.parametrize("kernel", ["to_compute", "to_storage", "to_operand", "round_to_operand"])
def test_conversion_of_any_count(table: Table, kernel: str) -> None:
    types = table.types
    from_, to = {
        "to_compute": (types.storage, types.compute),
        "to_storage": (types.compute, types.storage),
        "to_operand": (types.storage, types.operand),
        "round_to_operand": (types.compute, types.operand),
    }[kernel]
    for n in COUNTS:
        x = integers(n)
        expected = table.to_operand(x) if to == SPLIT else x.to(to)
        assert torch.equal(convert(table, kernel, x.to(from_), to), expected), n


ONE_TYPE = tables(lambda types: types.storage == types.operand == types.compute)


@ONE_TYPE
@pytest.mark.parametrize("rows", [0, 1, 16, 17, 100])
def test_sum_rows(table: Table, rows: int) -> None:
    types = table.types
    for n in COUNTS:
        x = integers(rows, n)
        flat = strided(x.to(types.storage), n + 3) if rows else torch.zeros(0, dtype=types.storage)
        result = table.call("sum_rows", [rows, n, n + 3], [flat, torch.full((n,), 3).to(types.compute)])[1]
        assert torch.equal(result.double(), x.sum(0)), n


@ONE_TYPE
def test_sum_of_many_rows_is_exact(table: Table) -> None:
    """By pairs: no further off than torch's own sum."""
    types = table.types
    x = torch.rand(20000, 17, dtype=F64).to(types.storage)
    result = table.call("sum_rows", [len(x), 17, 17], [x.flatten(), torch.zeros(17).to(types.compute)])[1]
    for error in support.errors(["sum"], [x.double().sum(0)], [x.sum(0)], [result], types.compute):
        assert error.ours <= error.bound, error


@pytest.mark.parametrize(("rows", "gates"), [(1, 1), (3, 4), (2, 3)])
def test_add_bias(table: Table, rows: int, gates: int) -> None:
    compute = table.types.compute
    for block, units in [(table.lanes, 1), (2 * table.lanes, table.lanes + 1), (table.lanes, table.lanes)]:
        H, row = units + 2, gates * (units + 2) + 3
        acc, bias = integers(rows, gates, block), integers(gates, H)
        used = (gates - 1) * H + units
        pre = strided(torch.full((rows, used), -999.0, dtype=F64), row).to(compute)
        numbers = [rows, gates, units, block, H, row]
        result = table.call(
            "add_bias", numbers, [acc.to(compute), bias.flatten()[:used].to(compute), pre.clone()]
        )[2]
        expected = pre.clone()
        for m in range(rows):
            for g in range(gates):
                at = m * row + g * H
                expected[at : at + units] = (acc[m, g, :units] + bias[g, :units]).to(compute)
        assert torch.equal(result, expected)
