"""Drop-in replacements for torch.nn's recurrent modules, and layers that torch.nn lacks."""

from fastrnn.nn.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.nn.layers import GRU, LSTM, RNN, GRUResetBefore
from fastrnn.nn.recurrence import Recurrence
from fastrnn.nn.variants import CoupledLSTM, LiGRU, PeepholeLSTM

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CoupledLSTM",
    "GRUCell",
    "GRUResetBefore",
    "LSTMCell",
    "LiGRU",
    "PeepholeLSTM",
    "RNNCell",
    "Recurrence",
]
