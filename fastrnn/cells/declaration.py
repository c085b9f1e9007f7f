"""The decorator that makes a cell of a function, and what the function's signature says."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, overload

from torch import Tensor

Step = Callable[..., Any]


class CellError(ValueError):
    """A function that is no cell, and why."""


class NoKernelError(CellError):
    """A cell that can't be compiled, and why; the reference runs it."""


class Gate(NamedTuple):
    """A gate's name and the parameters it is passed as: one, or the input's and the recurrent part."""

    name: str
    parts: tuple[str, ...]


class Cell:
    """A recurrent cell: one step of a hidden unit, declared by :func:`cell`.

    Calling it calls the function.

    Attributes:
        function: the function.
        states: names of the states; the first is h, the layer's output.
        weights: names of the learned vectors, one number per unit.
        inputs: names of what is given for every unit and step.
        gates: the gates in the order of their rows in the layer's weights.
    """

    def __init__(
        self, function: Step, states: Iterable[str], weights: Iterable[str], inputs: Iterable[str]
    ) -> None:
        self.function = function
        self.states, self.weights, self.inputs = tuple(states), tuple(weights), tuple(inputs)
        # A functools.partial is called as its function is, other callable objects as their class.
        named = function if hasattr(function, "__name__") else getattr(function, "func", type(function))
        self.__name__ = named.__name__
        self.__qualname__ = named.__qualname__
        self.__module__ = named.__module__
        self.__doc__ = named.__doc__
        self.parameters = self._parameters()
        self.gates = self._gates()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def step(self, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """New states from the parameters' values by name.

        Raises:
            CellError: the function returns something else than a tensor for every state.
        """
        result = self.function(*(values[p] for p in self.parameters))
        new = (result,) if isinstance(result, Tensor) else result
        if not isinstance(new, (tuple, list)) or len(new) != len(self.states):
            got = f"{len(new)} values" if isinstance(new, (tuple, list)) else f"a {type(new).__name__}"
            raise self.error(f"returns {got}; return the new {', '.join(self.states)}")
        for state, value in zip(self.states, new, strict=True):
            if not isinstance(value, Tensor):
                raise self.error(f"returns a {type(value).__name__} for {state}; return a tensor")
        return tuple(new)

    def error(self, what: str) -> CellError:
        return CellError(f"{self.__name__} {what}")

    def no_kernel(self, what: str) -> NoKernelError:
        return NoKernelError(f"{self.__name__} {what}")

    def _parameters(self) -> tuple[str, ...]:
        names = []
        for p in inspect.signature(self.function).parameters.values():
            if p.kind is p.KEYWORD_ONLY and p.default is not p.empty:
                continue  # a constant, as functools.partial leaves it
            if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY):
                raise self.error(f"takes {p}; name every gate, state, weight and input as a parameter")
            if p.default is not p.empty:
                raise self.error(f"gives {p.name} a default; write the number into the function")
            names.append(p.name)
        declared = (*self.states, *self.weights, *self.inputs)
        if not self.states:
            raise self.error("has no state; name at least one in states")
        for name in declared:
            if name not in names:
                raise self.error(f"has no parameter {name!r}, which states, weights or inputs name")
            if declared.count(name) > 1:
                raise self.error(f"names {name!r} twice in states, weights and inputs")
        return tuple(names)

    def _gates(self) -> tuple[Gate, ...]:
        parts = [p for p in self.parameters if p not in (*self.states, *self.weights, *self.inputs)]
        gates: dict[str, Gate] = {}
        for part in parts:
            name = part[:-2] if part.endswith(("_x", "_h")) else part
            if name == part:
                gate = Gate(part, (part,))
            else:
                gate = Gate(name, (f"{name}_x", f"{name}_h"))
                for other in gate.parts:
                    if other not in parts:
                        raise self.error(f"has {part} but no {other}; a gate has one part or both")
            if gates.setdefault(name, gate) != gate:
                raise self.error(f"has a gate {name} both whole and in two parts")
        if not gates:
            raise self.error("has no gate; every parameter is a state, weight or input")
        return tuple(gates.values())

    # A cell is what its function is: the same object after a copy, found by name where it can be.
    def __reduce__(self) -> Any:
        found: Any = sys.modules.get(self.__module__)
        for name in self.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is self:
            return self.__qualname__
        return Cell, (self.function, self.states, self.weights, self.inputs)

    def __copy__(self) -> Cell:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Cell:
        return self

    def __repr__(self) -> str:
        return f"<cell {self.__qualname__}({', '.join(self.parameters)})>"


@overload
def cell(function: Step) -> Cell: ...
@overload
def cell(
    *,
    states: str | Iterable[str] = "h",
    weights: str | Iterable[str] = (),
    inputs: str | Iterable[str] = (),
) -> Callable[[Step], Cell]: ...
def cell(
    function: Step | None = None,
    *,
    states: str | Iterable[str] = "h",
    weights: str | Iterable[str] = (),
    inputs: str | Iterable[str] = (),
) -> Cell | Callable[[Step], Cell]:
    """Declares a recurrent cell: one step of a hidden unit, as a function of tensors.

    The function takes gates, states, weights and inputs as parameters, in any order, and returns the new
    states. It computes every unit from that unit's numbers alone, with torch's element-wise operators and
    functions; :class:`fastrnn.Recurrence` makes a layer of it, differentiated and compiled. It may be a
    method, a callable object or a functools.partial; keyword-only parameters with defaults are constants.

    What ``states``, ``weights`` and ``inputs`` don't name is a gate: ``x w_ih' + b_ih + h w_hh' + b_hh``,
    H rows of the layer's weights each, in the order of the signature. A pair ``n_x``, ``n_h`` is one gate
    in two parts, ``x w_ih' + b_ih`` and ``h w_hh' + b_hh``, which the function combines itself.

    Args:
        states: names of the states, a string or a list. The first is h: the layer's output, which ``w_hh``
            multiplies.
        weights: names of learned vectors of one number per unit.
        inputs: names of numbers that a call of the layer gives for every unit and step.

    Returns:
        A :class:`fastrnn.cells.Cell`.

    Raises:
        CellError: the signature is not a cell's: it has no gate, has a default or lacks a declared name.

    Example:
        >>> import torch, fastrnn
        >>> @fastrnn.cell(states="h c", weights="p_i p_f p_o")
        ... def peephole(i, f, g, o, h, c, p_i, p_f, p_o):
        ...     i, f = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c)
        ...     c = f * c + i * torch.tanh(g)
        ...     return torch.sigmoid(o + p_o * c) * torch.tanh(c), c
        >>> " ".join(gate.name for gate in peephole.gates)
        'i f g o'
    """

    def names(given: str | Iterable[str]) -> Iterable[str]:
        return given.split() if isinstance(given, str) else given

    def declare(function: Step) -> Cell:
        return Cell(function, names(states), names(weights), names(inputs))

    return declare if function is None else declare(function)
