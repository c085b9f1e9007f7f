"""torch.onnx.export of this package's layers: the op becomes ONNX's LSTM, GRU or RNN operator.

Nothing need be called: once the exporter (``dynamo=True``, which is the default) loads its own
translations, ours is added to them. ONNX has no operator for a projected LSTM, for resets inside a
sequence, for packed batches and for c of every step; exporting a model that uses them says so.
"""

from collections.abc import Callable
from typing import Any

from fastrnn import _torch, ops

# ONNX's order of gates, as positions in torch's: i, o, f, c of i, f, g, o; z, r, h of r, z, n.
GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}

_LACKS = "ONNX's recurrent operators have no "


def translation() -> Callable[..., Any]:
    """The function that torch.onnx.export calls for ``torch.ops.fastrnn.forward``; needs onnxscript.

    For a ``custom_translation_table`` of one's own; see the module's description.
    """
    from onnxscript import BOOL, FLOAT, INT64
    from onnxscript import opset18 as op

    def reordered(cell: str, weight: Any) -> Any:
        order = GATE_ORDER[cell]
        if len(order) == 1:
            return weight
        hidden = weight.shape[0] // len(order)
        return op.Concat(*(rows(weight, i * hidden, (i + 1) * hidden) for i in order), axis=0)

    def rows(weight: Any, start: int, end: int) -> Any:
        # The exporter's optimizer folds a Slice of a constant, but not a Split.
        return op.Slice(weight, *(op.Constant(value_ints=[i]) for i in (start, end, 0)))

    def first_axis(value: Any) -> Any:
        return op.Unsqueeze(value, op.Constant(value_ints=[0]))

    def without_axis(value: Any, axis: int) -> Any:
        return op.Squeeze(value, op.Constant(value_ints=[axis]))

    def fastrnn_forward(
        cell: str,
        x: FLOAT,
        h0: FLOAT,
        c0: FLOAT | None,
        w_ih: FLOAT,
        w_hh: FLOAT,
        b_ih: FLOAT | None,
        b_hh: FLOAT | None,
        w_hr: FLOAT | None,
        batch_sizes: INT64 | None,
        lengths: INT64 | None,
        reset: BOOL | None,
        reverse: bool,
        keep: int,
    ) -> Any:
        for name, value in (("projection", w_hr), ("packed batches", batch_sizes), ("resets", reset)):
            if value is not None:
                raise ValueError(f"{_LACKS}{name}")
        hidden = w_hh.shape[1]
        one_step = len(x.shape) == 2
        bias = None
        if b_ih is not None:
            bias = first_axis(op.Concat(reordered(cell, b_ih), reordered(cell, b_hh), axis=0))
        inputs = [
            first_axis(x) if one_step else x,
            first_axis(reordered(cell, w_ih)),
            first_axis(reordered(cell, w_hh)),
            bias,
            None if lengths is None else op.Cast(lengths, to=6),  # int32
            first_axis(h0),
        ]
        options = {"hidden_size": hidden, "direction": "reverse" if reverse else "forward"}
        # Of c at every step and of what backward needs there is nothing; a zero stands for it.
        nothing = op.Constant(value_floats=[0.0])
        c_n = nothing
        if cell == "lstm":
            y, h_n, c_n = op.LSTM(*inputs, first_axis(c0), **options)
            c_n = without_axis(c_n, 0)
        elif cell == "gru":
            y, h_n = op.GRU(*inputs, linear_before_reset=1, **options)
        else:
            activation = "Relu" if cell == "rnn_relu" else "Tanh"
            y, h_n = op.RNN(*inputs, activations=[activation], **options)
        y = without_axis(y, 1)  # the direction's, which here is one
        return without_axis(y, 0) if one_step else y, without_axis(h_n, 0), c_n, nothing, nothing

    return fastrnn_forward


def install() -> None:
    """Adds our translation to the exporter's own, and our layers' parameters, when it is imported."""
    from fastrnn.nn.base import Recurrent

    _torch.add_onnx_translation(ops.forward_op, translation)
    _torch.keep_onnx_defaults_out(Recurrent, ("lengths", "reset", "states"))
