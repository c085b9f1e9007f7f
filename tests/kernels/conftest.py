"""Fixtures: each target, and each of its kernel tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import program
import pytest
import torch
from torch import Tensor

PROGRAM = program.Program()


@dataclass(frozen=True)
class Types:
    """A table's Storage, Operand, Compute and Panel (csrc/cpu/kernels.h)."""

    storage: torch.dtype
    operand: torch.dtype
    compute: torch.dtype
    panel: torch.dtype

    @property
    def quantizes(self) -> bool:
        return self.operand == BYTE

    @property
    def approximates(self) -> bool:
        """Whether the cells' functions are approximations."""
        return self.storage == F32 and self.operand in (BF16, BYTE)

    @property
    def cell_operand(self) -> torch.dtype:
        """What cells write for the next product."""
        return self.compute if self.quantizes else self.operand


F64, F32, F16, BF16, INT8 = torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8
SPLIT = torch.int32  # a float as two bfloat16
BYTE = torch.uint8  # a quantized number, plus 128

TABLES = {
    "f32": Types(F32, F32, F32, F32),
    "f64": Types(F64, F64, F64, F64),
    "bf16": Types(BF16, F32, F32, F32),
    "f16": Types(F16, F32, F32, F32),
    "bf16_dot": Types(BF16, BF16, F32, BF16),
    "f32_bf16_dot": Types(F32, BF16, F32, BF16),
    "f32_split": Types(F32, SPLIT, F32, SPLIT),
    "f32_int8": Types(F32, BYTE, F32, INT8),
}


@dataclass(frozen=True)
class Table:
    """One target's kernels for one combination of types."""

    target: str
    name: str
    types: Types
    lanes: int
    k_step: int
    rows_3: int
    rows_4: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Of tiles, in vectors."""
        return (3, 4) if self.types.quantizes or self.matrix_tiles else (1, 2, 3, 4)

    @property
    def matrix_tiles(self) -> bool:
        return self.rows_4 == 16

    @property
    def pair(self) -> int:
        return 2 if self.types.operand == BF16 else 1

    def tile_rows(self, vectors: int) -> int:
        return self.rows_3 if vectors == 3 else self.rows_4

    def call(self, kernel: str, numbers: list[int], arrays: list[Tensor | None]) -> list[Tensor]:
        return PROGRAM.call(self.target, self.name, kernel, numbers, arrays)  # type: ignore[return-value]

    def to_operand(self, x: Tensor) -> Tensor:
        """x, float64, as products read it; exact, if its numbers are integers up to 127."""
        if self.types.quantizes:
            return (x + 128).to(BYTE)
        if self.types.operand != SPLIT:
            return x.to(self.types.operand)
        high = x.to(BF16)
        low = (x - high.to(F64)).to(BF16)
        return torch.stack([high, low], -1).view(SPLIT)[..., 0].contiguous()


def need(target: str) -> None:
    """Skips the test if this target can't be run."""
    if tool := program.missing_tool():
        pytest.skip(f"{tool} is not installed")
    if not PROGRAM.numbers(target, "-", "usable")[0]:
        pytest.skip(f"this processor does not run {target}")


def has_table(target: str, name: str) -> bool:
    """Whether a target has this table, as its name tells."""
    if name == "f32_split":
        return "amx" in target
    return name not in ("bf16_dot", "f32_bf16_dot") or "bf16" in target or "amx" in target


@pytest.fixture(params=program.targets())
def target(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return request.param


def all_tables(condition: Callable[[Types], bool] = lambda types: True) -> list[tuple[str, str]]:
    """The target and name of every table that meets a condition."""
    return [
        (target, name)
        for target in program.targets()
        for name, types in TABLES.items()
        if has_table(target, name) and condition(types)
    ]


def tables(condition: Callable[[Types], bool]) -> pytest.MarkDecorator:
    """For tests of kernels that only some tables have."""
    return pytest.mark.parametrize("table", all_tables(condition), indirect=True, ids="-".join)


@pytest.fixture(params=all_tables(), ids="-".join)
def table(request: pytest.FixtureRequest) -> Table:
    target, name = request.param
    need(target)
    return Table(target, name, TABLES[name], *PROGRAM.numbers(target, name, "facts"))
