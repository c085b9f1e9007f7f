"""Runs a cell's function and refuses what is not arithmetic of one unit, naming the user's own line."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastrnn.cells.declaration import Cell, NoKernelError

aten = torch.ops.aten

_PRODUCTS = "mm addmm bmm baddbmm mv addmv dot vdot addr linear matmul convolution _trilinear"
PRODUCTS = {getattr(aten, name) for name in _PRODUCTS.split()}
# Operators that copy numbers or make constants. Whether their shapes fit is seen from the results.
_COPIES = """detach alias lift lift_fresh lift_fresh_copy _to_copy copy_ fill_ zero_ expand view
_unsafe_view reshape empty_like empty new_empty ones_like zeros_like full_like full zeros ones new_zeros
new_ones new_full scalar_tensor resolve_conj resolve_neg"""
COPIES = {getattr(aten, name) for name in _COPIES.split()}
# Those of them that are given a number, and as which argument.
CONSTANTS = {
    aten.full: 1,
    aten.full_like: 1,
    aten.new_full: 2,
    aten.fill_: 1,
    aten.scalar_tensor: 0,
    aten.lift_fresh: 0,
}
# Directories of code that is not the user's.
_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class Place(NamedTuple):
    """A file, a line, and the expression there."""

    file: str
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


class Call(NamedTuple):
    """An operator that the function called."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: Place


def user_place() -> Place:
    """The innermost expression being evaluated that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return Place("?", 0, "?")
    file = frame.f_code.co_filename
    line, end, column, end_column = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    if line is None or line != end or column is None or end_column is None:
        line = line or frame.f_lineno
        return Place(file, line, linecache.getline(file, line).strip())
    # Columns count bytes.
    text = linecache.getline(file, line).encode()[column:end_column].decode()
    return Place(file, line, text or f"line {line}")


class Inspector(TorchDispatchMode):
    """Refuses an operator, before it runs, that a cell can't have; remembers the others."""

    def __init__(self, cell: Cell, arguments: Sequence[Tensor]) -> None:
        super().__init__()
        self.cell = cell
        self.arguments = list(arguments)
        self.made: list[Tensor] = []
        self.shapes = {t.shape for t in arguments} | {arguments[0].shape[-1:], torch.Size(())}
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = user_place()
        if reason := self._refusal(func, args, kwargs):
            raise self.refuse(place, reason)
        result = func(*args, **kwargs)
        for made in (result,) if isinstance(result, Tensor) else result:
            if made.numel() and made.shape not in self.shapes:
                raise self.refuse(place, "changes the shape; a cell's numbers are one per unit")
            self.made.append(made)
        self.calls.append(Call(func, args, kwargs, place))
        return result

    def refuse(self, place: Place, reason: str) -> NoKernelError:
        return self.cell.no_kernel(f"({place.where}): `{place.text}` {reason}")

    def _refusal(self, func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
        packet = func.overloadpacket
        if packet in PRODUCTS:
            return "is a product; a cell's only products are its gates"
        if torch.Tag.nondeterministic_seeded in func.tags:
            return "draws random numbers; give them as inputs"
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        # torch wraps numbers as tensors of no dimensions.
        if any(not self._known(t) and (t.dim() or t.requires_grad) for t in tensors):
            return "uses a tensor from outside; name it in weights or inputs"
        if packet is aten._local_scalar_dense:
            return "takes a number out of a tensor; choose by torch.where"
        if (
            torch.Tag.pointwise not in func.tags
            and packet not in COPIES
            and not _unit_wise(func, args, kwargs)
        ):
            return "looks at other units"
        if packet is aten._to_copy and not _keeps_numbers(args[0], kwargs.get("dtype")):
            return f"converts to {str(kwargs['dtype']).removeprefix('torch.')}; a cell has one dtype"
        if func._schema.is_mutable and any(args[0] is t or args[0]._base is t for t in self.arguments):
            return "changes an argument in place; make a new tensor of it"
        return None

    def _known(self, t: Tensor) -> bool:
        return any(t is other for other in (*self.arguments, *self.made))


def _unit_wise(func: Any, args: Any, kwargs: Any) -> bool:
    """An operator without torch's tag gives each number what it gives that number alone."""

    def run(dim: int, at: int | None) -> tuple[Tensor, ...]:
        """On all numbers, or those at one place of the last dimension (-1) or the one before (-2)."""
        picked = (a.clone() if isinstance(a, Tensor) else a for a in args)
        if at is not None:
            picked = (_narrow(a, dim, at) for a in picked)
        result = func(*picked, **kwargs)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    shape = torch.broadcast_shapes(*(a.shape for a in args if isinstance(a, Tensor)))
    try:
        whole = [t for t in run(-1, None) if t.numel()]
        if any(t.shape != shape for t in whole):
            return False
        for dim in range(-len(shape), 0):
            for at in range(shape[dim]):
                alone = [t for t in run(dim, at) if t.numel()]
                expected = [_narrow(t, dim, at) for t in whole]
                torch.testing.assert_close(alone, expected, equal_nan=True)
    except (AssertionError, RuntimeError, IndexError):
        return False
    return True


def _narrow(a: Any, dim: int, at: int) -> Any:
    return a.narrow(dim, at, 1) if isinstance(a, Tensor) and a.dim() >= -dim else a


def _keeps_numbers(t: Tensor, dtype: torch.dtype | None) -> bool:
    """Between masks and numbers, or from a number to another type that holds it."""
    if dtype is None or dtype == torch.bool or t.dtype == torch.bool:
        return True
    return dtype in (torch.float32, torch.float64)


def inspect(cell: Cell) -> list[Call]:
    """The operators that a step of the cell calls.

    Raises:
        NoKernelError: it is no arithmetic of one unit; the sentence names the user's line.
        CellError: the function's results are no new states.
    """
    calls = _run(cell, 2, 3, torch.float32)
    _compare(cell, calls, _run(cell, 2, 5, torch.float32), "number of units")
    _compare(cell, calls, _run(cell, 1, 3, torch.float32), "batch size")
    _compare(cell, calls, _run(cell, 2, 3, torch.float64), "dtype")
    return calls


def _compare(cell: Cell, calls: list[Call], others: list[Call], what: str) -> None:
    """Refuses a function whose operators or numbers depend on the shape or dtype of its arguments."""
    ignored = COPIES - CONSTANTS.keys()
    calls, others = ([c for c in run if c.op.overloadpacket not in ignored] for run in (calls, others))
    for call, other in zip(calls, others, strict=False):
        if call.op is not other.op or _numbers(call) != _numbers(other):
            raise cell.no_kernel(f"({call.place.where}): `{call.place.text}` depends on the {what}")
    if len(calls) != len(others):
        raise cell.no_kernel(f"calls other operators for another {what}")


def _run(cell: Cell, batch: int, units: int, dtype: torch.dtype) -> list[Call]:
    generator = torch.Generator().manual_seed(0)
    values = {
        p: torch.rand((units,) if p in cell.weights else (batch, units), dtype=dtype, generator=generator)
        for p in cell.parameters
    }
    inspector = Inspector(cell, list(values.values()))
    with inspector, torch.no_grad():
        new = cell.step(values)
    for state, value in zip(cell.states, new, strict=True):
        if not inspector._known(value):
            raise cell.no_kernel(f"returns a tensor from outside for {state}; name it in weights or inputs")
        if value.shape != (batch, units) or not value.is_floating_point():
            raise cell.error(
                f"returns {value.dtype} of shape {tuple(value.shape)} for {state}, expected "
                f"{dtype} of shape {(batch, units)}, as the states are"
            )
    return inspector.calls


def _numbers(call: Call) -> list[str]:
    if (at := CONSTANTS.get(call.op.overloadpacket)) is not None:
        constant = call.args[at]
        # Rounded, since its dtype may be the arguments'.
        return [str(torch.as_tensor(constant, dtype=torch.float32).tolist())]
    values = (*call.args, *(v for _, v in sorted(call.kwargs.items())))
    return [str(v) for v in values if not isinstance(v, Tensor)]
