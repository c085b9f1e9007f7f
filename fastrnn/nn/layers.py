"""LSTM, GRU and RNN: torch.nn's, with this package's forward."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar, overload

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn.nn.base import Recurrent, State, pair

Hx = TypeVar("Hx")  # a state of all layers, or of every step of one
PackedHx = TypeVar("PackedHx")  # of every step of one layer, for packed input


class LayerCall(Protocol[Hx, PackedHx]):
    """The types of ``layer(input, ...)``, which torch.nn.Module leaves open."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Hx | None = None,
        *,
        lengths: Tensor | list[int] | None = None,
        reset: Tensor | None = None,
        states: Literal[False] = False,
    ) -> tuple[Tensor, Hx]: ...
    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Hx | None = None,
        *,
        lengths: Tensor | list[int] | None = None,
        reset: Tensor | None = None,
        states: Literal[True],
    ) -> tuple[Tensor, Hx, list[Hx]]: ...
    @overload
    def __call__(
        self, input: PackedSequence, hx: Hx | None = None, *, states: Literal[False] = False
    ) -> tuple[PackedSequence, Hx]: ...
    @overload
    def __call__(
        self, input: PackedSequence, hx: Hx | None = None, *, states: Literal[True]
    ) -> tuple[PackedSequence, Hx, list[PackedHx]]: ...


CallOfLSTM = LayerCall[tuple[Tensor, Tensor], tuple[PackedSequence, PackedSequence]]
CallOfOthers = LayerCall[Tensor, PackedSequence]

_DOC = """`torch.nn.{name}` on fused kernels: same arguments, parameters, results and errors.

    Args:
        memory: what forward keeps for backward. "full" keeps the gates of every step; "lean" keeps only
            h{and_c} and computes the gates again, for long sequences.
        *args, **kwargs: those of `torch.nn.{name}`.

    ``forward(input, hx=None, *, lengths=None, reset=None, states=False)`` takes and returns what
    torch.nn's does, and:

        lengths: int [B] on the input's device, or a list, from 0 to T in any order. Sequence b ends after
            ``lengths[b]`` steps, in both directions: its output is zero beyond, its last state is that of
            its own end, and the input beyond is ignored, NaN too. The last state of a sequence of length
            zero is its initial state.
        reset: bool [T, B], or [B, T] with ``batch_first``. Where ``reset[t, b]`` is set, the state of
            sequence b is zero before step t, as at the start of an episode.
        states: return a third value, a list with the state after every step of each layer: {steps},
            differentiable and laid out as the output.

    Example:
        >>> import torch, fastrnn
        >>> layer = fastrnn.{name}(10, 20, num_layers=2)
        >>> output, state = layer(torch.randn(5, 3, 10))
        >>> output.shape
        torch.Size([5, 3, 20])
    """


class LSTM(Recurrent, nn.LSTM):
    __doc__ = _DOC.format(name="LSTM", and_c=" and c", steps="(h, c)")
    __call__: CallOfLSTM

    def _split_state(self, hx: Any) -> State | None:
        return pair(hx)

    def _join_state(self, h_n: Tensor, c_n: Tensor | None) -> Any:
        return h_n, c_n


class GRU(Recurrent, nn.GRU):
    __doc__ = _DOC.format(name="GRU", and_c="", steps="h")
    __call__: CallOfOthers


class RNN(Recurrent, nn.RNN):
    __doc__ = _DOC.format(name="RNN", and_c="", steps="h")
    __call__: CallOfOthers


class GRUResetBefore(Recurrent, nn.GRU):
    """A GRU with the reset gate before the recurrent product, as first published and in older Keras:

        n = tanh(x w_in' + b_in + (r h) w_hn' + b_hn),   where torch.nn.GRU has r (h w_hn' + b_hn)

    Arguments, parameters and the layout of weights are those of `torch.nn.GRU`; the results differ. For
    weights trained that way (Keras ``reset_after=False``, ONNX ``linear_before_reset=0``). It has no
    fused kernel: it runs step by step on torch's operators.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014.

    Example:
        >>> import torch, fastrnn
        >>> layer = fastrnn.GRUResetBefore(10, 20)
        >>> output, h_n = layer(torch.randn(5, 3, 10))
    """

    __call__: CallOfOthers

    @property
    def cell(self) -> str:
        return "gru_reset_before"
