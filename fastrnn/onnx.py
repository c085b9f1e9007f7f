"""torch.onnx.export of this package's layers: the op becomes ONNX's LSTM, GRU or RNN operator.

No call is needed: when the exporter (``dynamo=True``, the default) loads its own translations, ours is
added. ONNX has no operator for a projected LSTM, resets inside a sequence, packed batches or c of every
step; exporting a model that uses them raises an error that says so.
"""

from collections.abc import Callable
from typing import Any

from fastrnn import _torch, ops

# ONNX's order of gates, as positions in torch's: i, o, f, c of i, f, g, o; z, r, h of r, z, n.
GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}


def translation() -> Callable[..., Any]:
    """The function that torch.onnx.export calls for ``torch.ops.fastrnn.forward``; needs onnxscript.

    For a ``custom_translation_table`` of your own.
    """
    from fastrnn._onnx_translation import fastrnn_forward

    return fastrnn_forward


def install() -> None:
    """Adds our translation to the exporter's own, and our layers' parameters, when it is imported."""
    from fastrnn.nn.base import Recurrent

    _torch.add_onnx_translation(ops.forward_op, translation)
    _torch.keep_onnx_defaults_out(Recurrent, ("lengths", "reset", "states"))
