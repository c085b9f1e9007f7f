"""A cell's equations as the C++ struct that csrc/cells/cell.h describes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torch.fx import Node

from fastrnn.cells.declaration import Cell, NoKernelError
from fastrnn.cells.inspection import Call
from fastrnn.cells.operators import InexpressibleError, Writer, name_of
from fastrnn.cells.slots import choose_slots
from fastrnn.cells.tracing import Equations, trace, trace_call

# Of csrc/cells/cell.h.
MAX_GATES = 8
MAX_STATES = 8
MAX_INPUTS = 8

# Operators that write an argument once, so that its own expression may be written there.
_INLINING = {"add", "sub", "mul", "div", "neg", "sigmoid", "tanh", "relu", "exp", "where"}


@dataclass(frozen=True)
class Printed:
    """A cell as C++.

    Attributes:
        text: a struct.
        kept: what forward leaves in the slots, as expressions of torch's graph.
    """

    text: str
    kept: tuple[str, ...]


def print_cell(cell: Cell, name: str = "Declared") -> Printed:
    """The cell's C++, a struct of this name.

    Raises:
        NoKernelError: it has none; the sentence says why, naming the user's line if that is the reason.
        CellError: the function's results are no new states.
    """
    for count, most, what in (
        (len(cell.gates), MAX_GATES, "gates"),
        (len(cell.states), MAX_STATES, "states"),
        (len(cell.weights) + len(cell.inputs), MAX_INPUTS, "weights and inputs"),
    ):
        if count > most:
            raise cell.no_kernel(f"has {count} {what}; compiled cells have {most} at most")
    equations, calls = trace(cell)
    try:
        return _Printer(cell, equations).print(name)
    except InexpressibleError:
        raise _culprit(cell, calls) from None


def _culprit(cell: Cell, calls: list[Call]) -> NoKernelError:
    """Which of the function's operators has no C++, or whose derivative has none."""
    for call in calls:
        writer = Writer(defaultdict(float), {})
        try:
            for node in trace_call(call).nodes:
                if node.op == "call_function":
                    writer.expression(node)
                writer.names[node] = "v"
        except InexpressibleError:
            what = f"calls {call.op.overloadpacket.__name__}, which has no C++ form"
            return cell.no_kernel(f"({call.place.where}): `{call.place.text}` {what}")
    return cell.no_kernel("has a derivative without a C++ form")


class _Printer:
    def __init__(self, cell: Cell, equations: Equations) -> None:
        self.cell = cell
        self.equations = equations
        self.nodes = {name: node for node, name in equations.placeholders.items()}
        # Slot g receives the input's part of gate g, and the recurrent part too or one of the slots behind.
        whole = [gate.parts[0] for gate in cell.gates]
        apart = [gate.parts[1] for gate in cell.gates if len(gate.parts) == 2]
        self.parts = [*whole, *apart]
        self.h_slot = [self.parts.index(gate.parts[-1]) for gate in cell.gates]
        self.kept = choose_slots(equations, frozenset(self.nodes[p] for p in self.parts))

    def print(self, name: str) -> Printed:
        cell, line = self.cell, "\n    "
        own, given = len(cell.states) - 1, len(cell.weights) + len(cell.inputs)
        gates = len(cell.gates)
        kept = str(bool(self.kept)).lower()
        c, e = max(own, 1), max(given, 1)
        unused = "[[maybe_unused]]"
        before = f"{unused} const V (&c_prev)[{c}], {unused} const V (&e)[{e}]"
        text = f"""struct {name} {{
  static constexpr int gates = {gates}, slots = {len(self.parts)};
  static constexpr int own_states = {own}, unit_weights = {len(cell.weights)};
  static constexpr int step_inputs = {len(cell.inputs)};
  static constexpr int x_slot[gates] = {{{", ".join(map(str, range(gates)))}}};
  static constexpr int h_slot[gates] = {{{", ".join(map(str, self.h_slot))}}};
  static constexpr bool has_c = own_states > 0, keeps_slots = {kept}, projects = false;

  template <class V>
  static FASTRNN_INLINE void forward(V (&s)[slots], {unused} V h_prev,
                                     {before},
                                     V& h, {unused} V (&c)[{c}]) {{
    using K {unused} = typename Lanes<V>::Scalar;
    {line.join(self.forward())}
  }}

  template <class V>
  static FASTRNN_INLINE void backward({unused} const V (&s)[slots], {unused} V h,
                                      {unused} V h_prev, {unused} const V (&c)[{c}],
                                      {before},
                                      {unused} V dh, {unused} const V (&dc)[{c}],
                                      V (&d)[slots], V& dh_prev, {unused} V (&dc_prev)[{c}],
                                      {unused} V (&de)[{e}]) {{
    using K {unused} = typename Lanes<V>::Scalar;
    {line.join(self.backward())}
  }}
}};
"""
        return Printed(text, tuple(n.name for n in self.kept))

    def forward(self) -> list[str]:
        count = len(self.parts)
        names = self.given() | {self.nodes[p]: f"pre[{i}]" for i, p in enumerate(self.parts)}
        lines = [f"const V pre[] = {{{', '.join(f's[{i}]' for i in range(count))}}};"]
        lines += self.statements([*self.equations.new, *self.kept], names)
        lines += [f"{to} = {names[n]};" for to, n in zip(self.states(""), self.equations.new, strict=True)]
        return lines + [f"s[{i}] = {names[n]};" for i, n in enumerate(self.kept)]

    def backward(self) -> list[str]:
        cell, new = self.cell, self.states("")
        names = self.given() | dict(zip(self.equations.new, new, strict=True))
        names |= {n: f"s[{i}]" for i, n in enumerate(self.kept)}
        names |= {self.nodes[f"d{s}"]: f"d{to}" for s, to in zip(cell.states, new, strict=True)}
        lines = self.statements(self.equations.gradients, names)
        gradients = dict(zip(cell.parameters, self.equations.gradients, strict=True))
        to = {p: f"d[{i}]" for i, p in enumerate(self.parts)}
        to |= {s: f"d{name}" for s, name in zip(cell.states, self.states("_prev"), strict=True)}
        to |= {p: f"de[{i}]" for i, p in enumerate((*cell.weights, *cell.inputs))}
        return lines + [f"{name} = {names[gradients[p]]};" for p, name in to.items()]

    def states(self, which: str) -> list[str]:
        return [f"h{which}", *(f"c{which}[{i}]" for i in range(len(self.cell.states) - 1))]

    def given(self) -> dict[Node, str]:
        """Names of what both forward and backward are given."""
        cell = self.cell
        names = {self.nodes[s]: name for s, name in zip(cell.states, self.states("_prev"), strict=True)}
        return names | {self.nodes[p]: f"e[{i}]" for i, p in enumerate((*cell.weights, *cell.inputs))}

    def statements(self, wanted: Iterable[Node], names: dict[Node, str]) -> list[str]:
        """What computes the wanted nodes, whose names it adds to `names`."""
        writer = Writer(self.equations.constants, names)
        wanted, lines = list(wanted), []
        needed = self.equations.needed(wanted, names)
        readers = Counter(n for reader in needed for n in reader.all_input_nodes)
        for node in needed:
            if node.op == "get_attr":
                names[node] = writer.number(node)
                continue
            expression = writer.expression(node)
            if node not in wanted and readers[node] == 1 and _writes_once(_only_reader(node, needed)):
                names[node] = f"({expression})"
            else:
                names[node] = f"v{len(names)}"
                lines.append(f"const auto {names[node]} = {expression};")
        return lines


def _only_reader(node: Node, needed: list[Node]) -> Node:
    return next(reader for reader in needed if node in reader.all_input_nodes)


def _writes_once(reader: Node) -> bool:
    return reader.op == "call_function" and name_of(reader) in _INLINING
