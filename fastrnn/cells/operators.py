"""torch's element-wise operators as C++ on V: a number or a SIMD vector of numbers (csrc/cells/math.h)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

_FUNCTIONS = """relu sigmoid tanh exp exp2 expm1 log log1p log2 log10 sqrt abs sign floor ceil trunc round
erf erfc sin cos tan asin acos atan sinh cosh asinh acosh atanh maximum minimum atan2 hypot pow fmod
remainder"""
_TWO_ARGUMENTS = ("maximum", "minimum", "atan2", "hypot", "pow", "fmod", "remainder")
# Expressions of numbers; functions are those of csrc/cells/math.h and csrc/cells/functions.h.
NUMBERS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "reciprocal": "K(1) / {0}",
    "rsqrt": "K(1) / sqrt({0})",
    "sgn": "sign({0})",
    **dict.fromkeys(
        ("hardshrink_backward", "softshrink_backward"), "({1} >= -{2}) & ({1} <= {2}) ? V{{}} : {0}"
    ),
    **{f: f"{f}({{0}}, {{1}})" if f in _TWO_ARGUMENTS else f"{f}({{0}})" for f in _FUNCTIONS.split()},
}
COMPARISONS = {
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "isnan": "{0} != {0}",
    "isinf": "abs({0}) == K(INFINITY)",
}
# Of masks; torch adds and multiplies them too.
LOGIC = {
    **dict.fromkeys(("bitwise_and", "logical_and", "mul", "minimum"), "{0} & {1}"),
    **dict.fromkeys(("bitwise_or", "logical_or", "add", "maximum"), "{0} | {1}"),
    **dict.fromkeys(("bitwise_xor", "logical_xor"), "{0} ^ {1}"),
    **dict.fromkeys(("bitwise_not", "logical_not"), "{0} == 0"),
}
# Operators whose result is one of their arguments, and which.
_FIRST_ARGUMENT = "clone detach alias view expand lift_fresh_copy _to_copy scalar_tensor"
SAME_AS = {
    **dict.fromkeys(_FIRST_ARGUMENT.split(), 0),
    **dict.fromkeys(("full", "full_like", "copy"), 1),
}
EMPTY = ("empty", "empty_like", "empty_permuted", "_efficientzerotensor")

_WITHOUT_EFFECT = ("dtype", "layout", "device", "pin_memory", "memory_format", "implicit")

# Of a vector, in additions; of every other operator one.
_COSTS = {"sigmoid": 12, "tanh": 15, "exp": 10, "log": 15, "div": 4, "reciprocal": 4, "sqrt": 5, "rsqrt": 9}
_PLAIN = {"add", "sub", "mul", "neg", "relu", "maximum", "minimum", "abs", "sign", "sgn"}


class InexpressibleError(Exception):
    """There is no C++ for a node."""


def name_of(node: Node) -> str:
    """An operator's name, without its overload."""
    target: Any = node.target
    return getattr(target, "overloadpacket", target).__name__


def is_mask(node: Node) -> bool:
    return node.meta["val"].dtype == torch.bool


def cost(node: Node) -> float:
    """What it takes to compute a node again."""
    if node.op != "call_function":
        return 0
    name = name_of(node)
    if name in SAME_AS or name in EMPTY:
        return 0
    if name in _PLAIN or name in COMPARISONS or name in LOGIC or name in ("where", "clamp"):
        return 1
    return _COSTS.get(name, 40)


class Writer:
    """Writes nodes as expressions of what they are computed from.

    Attributes:
        names: the C++ name or expression of every node written so far.
    """

    def __init__(self, constants: dict[str, float], names: dict[Node, str]) -> None:
        self.constants = constants
        self.names = names

    def number(self, argument: Any) -> str:
        if isinstance(argument, Node):
            if argument.op == "get_attr":
                return self.number(self.constants[argument.name])
            name = self.names[argument]
            return f"({name} ? V{{}} + K(1) : V{{}})" if is_mask(argument) else name
        value = float(argument)
        if math.isnan(value):
            return "(V{} + K(NAN))"
        if math.isinf(value):
            return f"(V{{}} + K({'-' if value < 0 else ''}INFINITY))"
        return f"(V{{}} + K({value!r}))"

    def mask(self, argument: Any) -> str:
        if isinstance(argument, Node) and is_mask(argument):
            return self.names[argument]
        return f"({self.number(argument)} != K(0))"

    def expression(self, node: Node) -> str:
        """The node's C++.

        Raises:
            InexpressibleError: there is none.
        """
        name = name_of(node)
        args: Any = node.args
        options: Any = {k: v for k, v in node.kwargs.items() if k not in _WITHOUT_EFFECT and v is not None}
        as_kind = self.mask if is_mask(node) else self.number
        if name in SAME_AS:
            return as_kind(args[SAME_AS[name]])
        if name in EMPTY:
            return "V{}"
        if name == "where" and len(args) == 3:
            return f"{self.mask(args[0])} ? {as_kind(args[1])} : {as_kind(args[2])}"
        if name == "clamp":
            return self._clamp(*args, **options)
        if options:
            return self._with_option(name, args, **options)
        if name == "pow" and isinstance(args[1], (int, float)) and args[1] in (2, 3):
            return " * ".join([self.number(args[0])] * int(args[1]))
        of_masks, of_numbers = (LOGIC, COMPARISONS) if is_mask(node) else ({}, NUMBERS)
        for table, kind in ((of_masks, self.mask), (of_numbers, self.number)):
            if name in table:
                return table[name].format(*map(kind, args))
        raise InexpressibleError

    def _clamp(self, x: Node, min: Any = None, max: Any = None) -> str:
        text = self.number(x)
        if min is not None:
            text = f"Lanes<V>::at_least({text}, {self.number(min)})"
        if max is not None:
            text = f"Lanes<V>::at_most({text}, {self.number(max)})"
        return text

    def _with_option(self, name: str, args: Any, **options: Any) -> str:
        if name in ("add", "sub") and options.keys() == {"alpha"}:
            a, b = map(self.number, args)
            return f"{a} {'+' if name == 'add' else '-'} {self.number(options['alpha'])} * {b}"
        if name == "div" and options.keys() == {"rounding_mode"}:
            a, b = map(self.number, args)
            return f"{options['rounding_mode']}({a} / {b})"
        raise InexpressibleError
