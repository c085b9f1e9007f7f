"""Declared cells of this process: how operators and the reference find one by its name.

A compiled cell is loaded once, however many modules and declarations have its equations, and stays loaded,
since an operator may be running it.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import threading
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastrnn import ops, reference
from fastrnn.cells.compiler import CompilerError, compile_shared_object
from fastrnn.cells.declaration import Cell, CellError, NoKernelError


class Registered(NamedTuple):
    """The name of a declared cell, and why it has no kernels, or None."""

    name: str
    no_kernels: str | None


_lock = threading.Lock()
_registered: WeakKeyDictionary[Cell, Registered] = WeakKeyDictionary()
_loaded: dict[str, ctypes.CDLL] = {}
_numbers = itertools.count()


def register(cell: Cell) -> Registered:
    """Compiles the cell, or finds out why that can't be, once in a process. Not for tracers to look into.

    Raises:
        CellError: the function is no cell.
    """
    with _lock:
        if cell not in _registered:
            _registered[cell] = _register(cell)
        return _registered[cell]


def _register(cell: Cell) -> Registered:
    reason = None
    try:
        name = _load(cell)
    except (NoKernelError, CompilerError) as error:
        reason = str(error)
    except CellError:
        raise
    except Exception as error:  # the user's function's, or torch's
        first_line = (str(error).strip() or "no message").splitlines()[0]
        reason = f"{cell.__name__} can't be traced: {type(error).__name__}: {first_line}"
    if reason is not None:
        name = f"{cell.__name__}_{next(_numbers)}"
    reference.DECLARED[name] = reference_step(cell, copies=reason is not None)
    return Registered(name, reason)


def _load(cell: Cell) -> str:
    from fastrnn.nn.variants import GENERATED  # which declares cells by this package

    if GENERATED.get(cell.__name__) is cell:
        ops.load_cell(cell.__name__, 0)
        return cell.__name__
    from fastrnn.cells.printing import print_cell  # brings torch's tracer

    text = plugin_text(print_cell(cell).text)
    name = f"{cell.__name__}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in _loaded:
        library = ctypes.CDLL(str(compile_shared_object(cell.__name__, text)))
        ops.load_cell(name, ctypes.addressof(ctypes.c_char.in_dll(library, "fastrnn_cell")))
        _loaded[name] = library
    return name


def plugin_text(struct: str) -> str:
    """The source of a shared object with the cell's kernels for the instruction set in use."""
    return f"""#ifdef FASTRNN_PLUGIN  // compiled for the target that includes this file again
{struct}
#else
#define FASTRNN_PLUGIN "cell.cpp"
#include "cpu/isa/targets/{torch.ops.fastrnn.cpu_target()}.cpp"
#endif
"""


def reference_step(cell: Cell, copies: bool = False) -> reference.DeclaredCell:
    """The cell's function in the form that the reference's loop over time calls.

    With ``copies``, it may change its arguments in place.
    """

    def step(
        x_part: Tensor,
        h_part: Tensor,
        h: Tensor,
        c: Tensor | None,
        unit_weights: Tensor | None,
        step_inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        count = len(cell.gates)
        values = {cell.states[0]: h}
        for gate, x, recurrent in zip(
            cell.gates, x_part.chunk(count, -1), h_part.chunk(count, -1), strict=True
        ):
            parts = (x, recurrent) if len(gate.parts) == 2 else (x + recurrent,)
            values.update(zip(gate.parts, parts, strict=True))
        for names, t in ((cell.states[1:], c), (cell.weights, unit_weights), (cell.inputs, step_inputs)):
            if t is not None:
                values.update(zip(names, t.chunk(len(names), -1), strict=True))
        if copies:
            values = {name: t.clone() for name, t in values.items()}
        new = cell.step(values)
        return new[0], None if len(new) == 1 else _join(new[1:])

    return step


def _join(states: Any) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states, -1)
