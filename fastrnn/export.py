"""Exported programs for tools that know torch's own operators only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrnn import ops, reference
from fastrnn.sequence import Sequence

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Replaces this package's operators in a program of torch.export by aten's, a few for each step.

    For OpenVINO and other tools that read exported programs without this package. The number of steps
    becomes a constant of the program; the batch may stay dynamic. ONNX needs
    none of this: torch.onnx.export gives ONNX's own LSTM, GRU and RNN.

    Args:
        program: of torch.export.export.

    Returns:
        Another program with the same parameters, inputs and outputs, without operators of this package.

    Raises:
        RuntimeError: the number of steps is dynamic, a sequence is packed, or a layer is prepacked.

    Example:
        >>> import torch, fastrnn, fastrnn.export
        >>> program = torch.export.export(fastrnn.GRU(3, 4).eval(), (torch.randn(5, 2, 3),))
        >>> program = fastrnn.export.decompose(program)
        >>> any("fastrnn" in str(node.target) for node in program.graph.nodes)
        False
    """
    for node in program.graph.nodes:
        if node.target is torch.ops.fastrnn.forward_prepacked.default:
            raise RuntimeError("a prepacked layer has no aten operators: export the model before prepack()")
        if node.target is ops.forward_op:
            _check(node)
    table: Any = {ops.forward_op: _forward}
    return program.run_decompositions(table)


def _check(node: torch.fx.Node) -> None:
    x, batch_sizes = node.args[1], node.args[9]
    if batch_sizes is not None:
        raise RuntimeError("decompose takes no packed sequences: export with a padded batch and lengths")
    shape = x.meta["val"].shape  # type: ignore[union-attr]
    if len(shape) == 3 and not isinstance(shape[0], int):
        raise RuntimeError(
            f"got a dynamic number of steps ({shape[0]}), expected a fixed one; export with a fixed length"
        )


def _forward(
    cell: str, x: Tensor, h0: Tensor, c0: Tensor | None, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None,
    b_hh: Tensor | None, w_hr: Tensor | None, batch_sizes: Tensor | None, lengths: Tensor | None,
    reset: Tensor | None, reverse: bool, keep: int, precision: int = 0, unit_weights: Tensor | None = None,
    step_inputs: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    weights = (w_ih, w_hh, b_ih, b_hh, w_hr)
    y, h_n, c_n, c = reference.layer(
        cell, x, h0, c0, *weights, Sequence(batch_sizes, lengths, reset, reverse), unit_weights, step_inputs
    )
    nothing = x.new_empty(0)
    return y, h_n, nothing if c_n is None else c_n, nothing if c is None else c, nothing
