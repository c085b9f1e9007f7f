"""The translation of torch.ops.fastrnn.forward to ONNX's operators. Importing it needs onnxscript."""

from typing import Any

from onnxscript import BOOL, FLOAT, INT64
from onnxscript import opset18 as op

from fastrnn.onnx import GATE_ORDER

_LACKS = "ONNX's recurrent operators have no "


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
    precision: int = 0,
    unit_weights: FLOAT | None = None,
    step_inputs: FLOAT | None = None,
) -> Any:
    if cell not in GATE_ORDER:
        raise ValueError(f"{_LACKS}cell {cell}: export with torch.export, then fastrnn.export.decompose")
    for name, value in (("projection", w_hr), ("packed batches", batch_sizes), ("resets", reset)):
        if value is not None:
            raise ValueError(f"{_LACKS}{name}")
    hidden = w_hh.shape[1]
    one_step = len(x.shape) == 2
    bias = None
    if b_ih is not None:
        bias = _first_axis(op.Concat(_reordered(cell, b_ih), _reordered(cell, b_hh), axis=0))
    inputs = [
        _first_axis(x) if one_step else x,
        _first_axis(_reordered(cell, w_ih)),
        _first_axis(_reordered(cell, w_hh)),
        bias,
        None if lengths is None else op.Cast(lengths, to=6),  # int32
        _first_axis(h0),
    ]
    options = {"hidden_size": hidden, "direction": "reverse" if reverse else "forward"}
    # Of c at every step and of what backward needs there is nothing; a zero stands for it.
    nothing = op.Constant(value_floats=[0.0])
    c_n = nothing
    if cell == "lstm":
        y, h_n, c_n = op.LSTM(*inputs, _first_axis(c0), **options)
        c_n = _without_axis(c_n, 0)
    elif cell == "gru":
        y, h_n = op.GRU(*inputs, linear_before_reset=1, **options)
    else:
        activation = "Relu" if cell == "rnn_relu" else "Tanh"
        y, h_n = op.RNN(*inputs, activations=[activation], **options)
    y = _without_axis(y, 1)  # the direction's, which here is one
    return _without_axis(y, 0) if one_step else y, _without_axis(h_n, 0), c_n, nothing, nothing


def _reordered(cell: str, weight: Any) -> Any:
    order = GATE_ORDER[cell]
    if len(order) == 1:
        return weight
    hidden = weight.shape[0] // len(order)
    return op.Concat(*(_rows(weight, i * hidden, (i + 1) * hidden) for i in order), axis=0)


def _rows(weight: Any, start: int, end: int) -> Any:
    # The exporter's optimizer folds a Slice of a constant, but not a Split.
    return op.Slice(weight, *(op.Constant(value_ints=[i]) for i in (start, end, 0)))


def _first_axis(value: Any) -> Any:
    return op.Unsqueeze(value, op.Constant(value_ints=[0]))


def _without_axis(value: Any, axis: int) -> Any:
    return op.Squeeze(value, op.Constant(value_ints=[axis]))
