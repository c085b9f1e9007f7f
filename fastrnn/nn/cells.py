"""LSTMCell, GRUCell and RNNCell: torch.nn's, with this package's step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import functional, paths
from fastrnn.nn.base import State

_DOC = """:class:`torch.nn.{name}` on fused kernels: same arguments, parameters, results and errors.

    Example:
        >>> import torch, fastrnn
        >>> cell = fastrnn.{name}(10, 20)
        >>> state = cell(torch.randn(3, 10))
    """


class RecurrentCell(nn.RNNCellBase):
    """Mixed in before one of torch.nn's cells, gives it this package's forward."""

    @property
    def cell(self) -> str:
        """The name of this module's cell in the registry."""
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        state = self._state(input, hx)
        if state is None:
            return super().forward(input, hx)
        path = paths.choose(input)
        if path.name == "torch":
            return super().forward(input, hx)
        run = functional.reference_layer if path.name == "reference" else functional.fused_layer
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None)
        h0, c0 = state
        if input.dim() == 2:
            _, h, c, _ = run(self.cell, input, h0, c0, weights)
        else:
            c0 = None if c0 is None else c0.unsqueeze(0)
            _, h, c, _ = run(self.cell, input.unsqueeze(0), h0.unsqueeze(0), c0, weights)
            h, c = h.squeeze(0), None if c0 is None or c is None else c.squeeze(0)
        return self._join_state(h, c)

    def _state(self, input: Tensor, hx: Any) -> State | None:
        """The initial state, zeros where none is given; or None where torch.nn must deal with the call."""
        if not isinstance(input, Tensor) or input.dim() not in (1, 2):
            return None
        weight = self.weight_ih
        if (
            input.shape[-1] != self.input_size
            or input.dtype != weight.dtype
            or input.device != weight.device
            or torch._C._is_any_autocast_enabled()
        ):
            return None
        shape = (*input.shape[:-1], self.hidden_size)
        if hx is None:
            return self._zeros(input, shape)
        state = self._split_state(hx)
        for s in state:
            if s is not None and (
                s.shape != shape or s.dtype != input.dtype or s.device != input.device
            ):
                return None
        return state

    def _zeros(self, input: Tensor, shape: tuple[int, ...]) -> State:
        return input.new_zeros(shape), None

    def _split_state(self, hx: Any) -> State:
        return hx, None

    def _join_state(self, h: Tensor, c: Tensor | None) -> Any:
        return h


class LSTMCell(RecurrentCell, nn.LSTMCell):
    __doc__ = _DOC.format(name="LSTMCell")

    @property
    def cell(self) -> str:
        return "lstm"

    def _zeros(self, input: Tensor, shape: tuple[int, ...]) -> State:
        zeros = input.new_zeros(shape)
        return zeros, zeros

    def _split_state(self, hx: Any) -> State:
        return hx[0], hx[1]

    def _join_state(self, h: Tensor, c: Tensor | None) -> Any:
        return h, c


class GRUCell(RecurrentCell, nn.GRUCell):
    __doc__ = _DOC.format(name="GRUCell")

    @property
    def cell(self) -> str:
        return "gru"


class RNNCell(RecurrentCell, nn.RNNCell):
    __doc__ = _DOC.format(name="RNNCell")

    @property
    def cell(self) -> str:
        return "rnn_tanh" if self.nonlinearity == "tanh" else "rnn_relu"

    def _state(self, input: Tensor, hx: Any) -> State | None:
        # An unknown nonlinearity is torch.nn's to refuse, at the first call.
        return super()._state(input, hx) if self.nonlinearity in ("tanh", "relu") else None
