"""A cell's function as one graph of forward and backward, by torch's own tracer and derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fastrnn.cells.declaration import Cell
from fastrnn.cells.inspection import Call, inspect

aten = torch.ops.aten
Result = TypeVar("Result")

# Beside torch's core decompositions: what those leave whole.
_DECOMPOSED = """elu elu_backward gelu gelu_backward hardshrink hardtanh hardtanh_backward hardsigmoid
hardswish leaky_relu leaky_relu_backward log_sigmoid_forward log_sigmoid_backward logit mish silu softplus
softshrink threshold logaddexp addcmul addcdiv lerp nan_to_num xlogy sinc square special_entr celu selu frac
relu6 rsub"""


@dataclass(frozen=True)
class Equations:
    """A cell's step and its derivative.

    Attributes:
        graph: from the function's parameters and the gradients of the new states to the new states and the
            gradients of the parameters.
        constants: the numbers behind the graph's get_attr nodes.
        placeholders: every placeholder's name: a parameter, or d and a state for a gradient.
        new: the new states.
        gradients: of the parameters.
    """

    graph: Graph
    constants: dict[str, float]
    placeholders: dict[Node, str]
    new: tuple[Node, ...]
    gradients: tuple[Node, ...]

    def needed(self, wanted: Iterable[Node], known: Iterable[Node]) -> list[Node]:
        """The nodes that the wanted ones are computed from, in order, down to the known ones."""
        known, found, stack = set(known), set(), list(wanted)
        while stack:
            node = stack.pop()
            if node not in found and node not in known:
                found.add(node)
                stack += node.all_input_nodes
        return [n for n in self.graph.nodes if n in found]


def trace(cell: Cell) -> tuple[Equations, list[Call]]:
    """The cell's equations, and the operators that its function calls.

    Raises:
        NoKernelError: the function is no arithmetic of one unit.
        CellError: the function's results are no new states.
    """
    calls = undisturbed(inspect, cell)
    count = len(cell.parameters)

    def joint(*given: Tensor) -> tuple[Tensor, ...]:
        def step(*values: Tensor) -> tuple[Tensor, ...]:
            return cell.step(dict(zip(cell.parameters, values, strict=True)))

        states, derivative, *_ = torch.func.vjp(step, *given[:count])
        return (*states, *derivative(given[count:]))

    traced = undisturbed(_trace, joint, count + len(cell.states))
    names = [*cell.parameters, *(f"d{s}" for s in cell.states)]
    results: Any = traced.graph.output_node().args[0]
    states = len(cell.states)
    return (
        Equations(
            traced.graph,
            _constants(cell, traced),
            dict(zip(traced.graph.find_nodes(op="placeholder"), names, strict=True)),
            tuple(results[:states]),
            tuple(results[states:]),
        ),
        calls,
    )


def undisturbed(function: Callable[..., Result], *args: Any) -> Result:
    """function(*args) where no grad mode, autocast, default device or transform around the caller matters.

    All of these belong to a thread, so it runs in one of its own.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()


def trace_call(call: Call) -> Graph:
    """The graph of one of the function's operators and its derivative."""
    return undisturbed(_trace_call, call)


def _trace(joint: Callable[..., Any], count: int) -> GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    # One row, since functions may ask for both dimensions; float64, in which no constant is rounded.
    like = [torch.zeros(1, 3, dtype=torch.float64) for _ in range(count)]
    # An autograd.Function can't be made functional before it is differentiated. Derivatives of clamp and
    # others work in place.
    differentiated = make_fx(joint)(*like)
    traced = make_fx(torch.func.functionalize(differentiated), decomposition_table=_decompositions())(*like)
    _merge_equal(traced.graph)
    traced.graph.eliminate_dead_code()
    return traced


def _merge_equal(graph: Graph) -> None:
    """One node for what is computed twice."""
    first: dict[Any, Node] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        same = first.setdefault((node.target, str(node.args), str(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _trace_call(call: Call) -> Graph:
    at = [i for i, a in enumerate(call.args) if isinstance(a, Tensor) and a.is_floating_point()]

    def joint(*given: Tensor) -> tuple[Tensor, ...]:
        def operator(*values: Tensor) -> Tensor:
            args = list(call.args)
            for i, value in zip(at, values, strict=True):
                args[i] = value
            result = call.op(*args, **call.kwargs)
            return result if isinstance(result, Tensor) else result[0]

        result = operator(*given)
        if not result.is_floating_point():
            return (result,)
        result, derivative, *_ = torch.func.vjp(operator, *given)
        return (result, *derivative(torch.ones_like(result)))

    return _trace(joint, len(at)).graph


@cache
def _decompositions() -> dict[Any, Any]:
    from torch._decomp import core_aten_decompositions, get_decompositions

    table = dict(core_aten_decompositions().items())
    packets = [getattr(aten, name) for name in _DECOMPOSED.split()]
    return table | get_decompositions(packets)


def _constants(cell: Cell, traced: GraphModule) -> dict[str, float]:
    constants = {}
    for node in traced.graph.find_nodes(op="get_attr"):
        value = getattr(traced, node.target)
        if not isinstance(value, Tensor) or value.dim():
            raise cell.no_kernel("uses a tensor from outside; name it in weights or inputs")
        constants[node.name] = float(value)
    return constants
