"""Drop-in replacements for torch.nn's LSTM, GRU and RNN with fused kernels: change one word.

Example:
    >>> import torch, fastrnn
    >>> layer = fastrnn.LSTM(8, 16)
    >>> output, (h_n, c_n) = layer(torch.randn(5, 2, 8))
    >>> isinstance(layer, torch.nn.LSTM)
    True
"""

from fastrnn import _forks, integrations, interop, onnx
from fastrnn._build import build_info
from fastrnn._version import __version__ as __version__
from fastrnn.cells import cell
from fastrnn.convert import Report, accelerate, patched, restore
from fastrnn.explain import Explanation, ModelExplanation, explain
from fastrnn.nn import (
    GRU,
    LSTM,
    RNN,
    CoupledLSTM,
    GRUCell,
    GRUResetBefore,
    LiGRU,
    LSTMCell,
    PeepholeLSTM,
    Recurrence,
    RNNCell,
)
from fastrnn.prepack import prepack
from fastrnn.stream import Stream, stream
from fastrnn.tuning import Tuned, Tuning, tune

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CoupledLSTM",
    "Explanation",
    "GRUCell",
    "GRUResetBefore",
    "LSTMCell",
    "LiGRU",
    "ModelExplanation",
    "PeepholeLSTM",
    "RNNCell",
    "Recurrence",
    "Report",
    "Stream",
    "Tuned",
    "Tuning",
    "accelerate",
    "build_info",
    "cell",
    "explain",
    "interop",
    "patched",
    "prepack",
    "restore",
    "stream",
    "tune",
]

_forks.watch()
integrations.install()
onnx.install()
