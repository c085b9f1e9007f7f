"""Which numbers of a step forward leaves for backward."""

from __future__ import annotations

from torch.fx import Node

from fastrnn.cells.operators import cost, is_mask
from fastrnn.cells.tracing import Equations


def choose_slots(equations: Equations, parts: frozenset[Node]) -> list[Node]:
    """The nodes that forward keeps, no more than the gates have parts, so that backward repeats little.

    Backward knows the states before and after the step, weights and inputs, and has lost the gates' parts,
    which are in the slots until forward overwrites them. The search begins with keeping these parts, and
    takes the best exchange, removal or addition of one node as long as one helps.
    """
    forward = equations.needed(equations.new, ())
    numbers = {n for n in forward if n.op == "call_function" and not is_mask(n)}
    candidates = [n for n in equations.needed(equations.gradients, ()) if n in parts or n in numbers]

    def price(kept: frozenset[Node]) -> float:
        again = equations.needed(equations.gradients, kept | {*equations.new})
        return 2 * len(kept) + 1e9 * len(parts.intersection(again)) + sum(map(cost, again))

    kept, lowest = parts, price(parts)
    while True:
        fewer = [kept, *(kept - {n} for n in kept)]
        options = {*fewer, *(f | {n} for f in fewer for n in candidates)}
        priced = [(price(o), sorted(n.name for n in o), o) for o in options if len(o) <= len(parts)]
        best, _, option = min(priced, key=lambda p: p[:2])
        if best >= lowest:
            return [n for n in equations.graph.nodes if n in kept]
        kept, lowest = option, best
