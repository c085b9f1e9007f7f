"""Recurrent layers of the literature, declared in Python, with CPU kernels that come with the package."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fastrnn.cells.declaration import Cell, cell
from fastrnn.nn.recurrence import Recurrence


@cell(states="h c", weights="p_i p_f p_o")
def peephole_lstm(
    i: Tensor,
    f: Tensor,
    g: Tensor,
    o: Tensor,
    h: Tensor,
    c: Tensor,
    p_i: Tensor,
    p_f: Tensor,
    p_o: Tensor,
) -> tuple[Tensor, Tensor]:
    i, f = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


@cell(states="h c")
def coupled_lstm(i: Tensor, g: Tensor, o: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i = torch.sigmoid(i)
    c = (1 - i) * c + i * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell
def ligru(z: Tensor, n: Tensor, h: Tensor) -> Tensor:
    z = torch.sigmoid(z)
    return z * h + (1 - z) * torch.relu(n)


# Cells whose kernels the compiled part has, by the names that its registry gives them.
GENERATED = {c.__name__: c for c in (peephole_lstm, coupled_lstm, ligru)}


class _Variant(Recurrence):
    """A Recurrence of a fixed cell."""

    of: ClassVar[Cell]

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(self.of, input_size, hidden_size, *args, **kwargs)

    def extra_repr(self) -> str:
        return super().extra_repr().removeprefix(f"{self.cell.__name__}, ")


class PeepholeLSTM(_Variant):
    """An LSTM with gates that see the cell state (Gers and Schmidhuber 2000; Graves 2013, eqs. 7-11).

    i = sigmoid(. + p_i c), f = sigmoid(. + p_f c), g = tanh(.), c' = f c + i g, o = sigmoid(. + p_o c'),
    h' = o tanh(c'), where . is ``x w_ih' + b_ih + h w_hh' + b_hh`` of the gate.

    Arguments, and those and the results of a call, are :class:`fastrnn.Recurrence`'s without ``cell``.

    ``weight_ih_l0`` [4 * H, I] and ``weight_hh_l0`` [4 * H, H] have the gates in torch.nn.LSTM's order
    i, f, g, o; ``p_i_l0``, ``p_f_l0`` and ``p_o_l0`` are [H].

    Example:
        >>> import torch, fastrnn
        >>> output, (h_n, c_n) = fastrnn.PeepholeLSTM(10, 20)(torch.randn(5, 3, 10))
        >>> output.shape
        torch.Size([5, 3, 20])
    """

    of = peephole_lstm


class CoupledLSTM(_Variant):
    """An LSTM with coupled gates: the forget gate is 1 - i (CIFG in Greff et al. 2017).

    i = sigmoid(.), g = tanh(.), o = sigmoid(.), c' = (1 - i) c + i g, h' = o tanh(c'), where . is
    ``x w_ih' + b_ih + h w_hh' + b_hh`` of the gate. Three quarters of an LSTM's weights and products.

    Arguments, and those and the results of a call, are :class:`fastrnn.Recurrence`'s without ``cell``.

    ``weight_ih_l0`` [3 * H, I] and ``weight_hh_l0`` [3 * H, H] have the gates in the order i, g, o.

    Example:
        >>> import torch, fastrnn
        >>> output, (h_n, c_n) = fastrnn.CoupledLSTM(10, 20)(torch.randn(5, 3, 10))
        >>> output.shape
        torch.Size([5, 3, 20])
    """

    of = coupled_lstm


class LiGRU(_Variant):
    """The light gated recurrent unit (Ravanelli et al. 2018), without its batch normalization.

    z = sigmoid(.), n = relu(.), h' = z h + (1 - z) n, where . is ``x w_ih' + b_ih + h w_hh' + b_hh`` of
    the gate. Two thirds of a GRU's weights and products. The paper normalizes ``x w_ih'`` over the batch,
    which keeps the unbounded states small; without it, long sequences may need small initial weights.

    Arguments, and those and the results of a call, are :class:`fastrnn.Recurrence`'s without ``cell``.

    ``weight_ih_l0`` [2 * H, I] and ``weight_hh_l0`` [2 * H, H] have the gates in the order z, n.

    Example:
        >>> import torch, fastrnn
        >>> output, h_n = fastrnn.LiGRU(10, 20)(torch.randn(5, 3, 10))
        >>> output.shape
        torch.Size([5, 3, 20])
    """

    of = ligru
