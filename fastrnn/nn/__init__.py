"""Drop-in replacements for torch.nn's recurrent modules."""

from fastrnn.nn.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.nn.layers import GRU, LSTM, RNN, GRUResetBefore
from fastrnn.nn.recurrence import Recurrence

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "GRUResetBefore", "LSTMCell", "RNNCell", "Recurrence"]
