"""LSTM, GRU and RNN: torch.nn's, with this package's forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastrnn.nn.base import Recurrent, State

_DOC = """:class:`torch.nn.{name}` on fused kernels: same arguments, parameters, results and errors.

    Args:
        memory: what is kept between forward and backward. "full" keeps the gates of every step; "lean"
            keeps only h{and_c} and computes the gates again, for long sequences.
        *args, **kwargs: those of :class:`torch.nn.{name}`.

    ``forward(input, hx=None, *, lengths=None, reset=None)`` takes and returns what torch.nn's does, and:

        lengths: int64 [B] on the input's device, in any order. Sequence b ends after ``lengths[b]``
            steps: its output is zero beyond, its last state that of its own end, in both directions.
        reset: bool [T, B], or [B, T] with ``batch_first``. The state is zero before step t of
            sequence b where ``reset[t, b]`` is set, as at the start of an episode.

    Example:
        >>> import torch, fastrnn
        >>> layer = fastrnn.{name}(10, 20, num_layers=2)
        >>> output, state = layer(torch.randn(5, 3, 10))
        >>> output.shape
        torch.Size([5, 3, 20])
    """


class LSTM(Recurrent, nn.LSTM):
    __doc__ = _DOC.format(name="LSTM", and_c=" and c")

    def _split_state(self, hx: Any) -> State:
        return hx[0], hx[1]

    def _join_state(self, h_n: Tensor, c_n: Tensor | None) -> Any:
        return h_n, c_n


class GRU(Recurrent, nn.GRU):
    __doc__ = _DOC.format(name="GRU", and_c="")


class RNN(Recurrent, nn.RNN):
    __doc__ = _DOC.format(name="RNN", and_c="")
