"""LSTMCell, GRUCell and RNNCell: torch.nn's, with this package's step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import functional, routing
from fastrnn.nn.base import State, pair
from fastrnn.nn.unsupported import Limits

_DOC = """:class:`torch.nn.{name}` on fused kernels: same arguments, parameters, results and errors.

    Example:
        >>> import torch, fastrnn
        >>> cell = fastrnn.{name}(10, 20)
        >>> state = cell(torch.randn(3, 10))
    """


class RecurrentCell(Limits, nn.RNNCellBase):
    """Mixed in before one of torch.nn's cells, gives it this package's forward."""

    @property
    def cell(self) -> str:
        """The name of this module's cell in the registry."""
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        path = self._path(input)
        if path.name == "torch":
            return super().forward(input, hx)
        state = self._zeros(input) if hx is None else self._split_state(hx)
        if state is None:
            return super().forward(input, hx)
        if path.name == "fused" and not torch.compiler.is_compiling():
            # The kernels check what they are given. What they refuse is torch.nn's to refuse in its own
            # words, and a call without a mistake is not kept waiting for checks in Python.
            try:
                return self._step(functional.fused_layer, input, state)
            except ValueError:
                return super().forward(input, hx)
        if not self._fits(input, state):
            return super().forward(input, hx)
        return self._step(functional.LAYERS[path.name], input, state)

    def _path(self, input: Tensor) -> routing.Path:
        if not isinstance(input, Tensor) or input.dim() not in (1, 2):
            return routing.MISFIT
        if torch._C._is_any_autocast_enabled():
            return routing.AUTOCAST
        return routing.choose(input)

    def _step(self, run: functional.LayerFunction, input: Tensor, state: State) -> Any:
        h0, c0 = state
        if input.dim() == 2:
            _, h, c, _ = run(self.cell, input, h0, c0, self._weights())
            return self._join_state(h, c)
        c0 = None if c0 is None else c0.unsqueeze(0)
        _, h, c, _ = run(self.cell, input.unsqueeze(0), h0.unsqueeze(0), c0, self._weights())
        return self._join_state(h.squeeze(0), None if c0 is None or c is None else c.squeeze(0))

    def _weights(self) -> functional.LayerWeights:
        own = self._parameters
        try:
            # A module finds its attributes slowly, and these are asked for at every step.
            return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"], None  # type: ignore
        except KeyError:  # replaced: by a parametrization, by pruning
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None

    def _fits(self, input: Tensor, state: State | None) -> bool:
        """Sizes, dtypes and devices are as the kernels expect them."""
        if state is None:
            return False
        dtype, device = self._like()
        if input.shape[-1] != self.input_size or input.dtype != dtype or input.device != device:
            return False
        shape = (*input.shape[:-1], self.hidden_size)
        return all(
            s is None or (s.shape == shape and s.dtype == input.dtype and s.device == input.device)
            for s in state
        )

    def _like(self) -> tuple[torch.dtype, torch.device]:
        """What input must be."""
        weight = self.weight_ih
        return weight.dtype, weight.device

    def _zeros(self, input: Tensor) -> State:
        return input.new_zeros((*input.shape[:-1], self.hidden_size)), None

    def _split_state(self, hx: Any) -> State | None:
        """hx as h0 and c0, or None where it is not what this cell takes."""
        return (hx, None) if isinstance(hx, Tensor) else None

    def _join_state(self, h: Tensor, c: Tensor | None) -> Any:
        return h


class LSTMCell(RecurrentCell, nn.LSTMCell):
    __doc__ = _DOC.format(name="LSTMCell")

    @property
    def cell(self) -> str:
        return "lstm"

    def _zeros(self, input: Tensor) -> State:
        zeros, _ = super()._zeros(input)
        return zeros, zeros

    def _split_state(self, hx: Any) -> State | None:
        return pair(hx)

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

    def _path(self, input: Tensor) -> routing.Path:
        # An unknown nonlinearity is torch.nn's to refuse, at the first call.
        return super()._path(input) if self.nonlinearity in ("tanh", "relu") else routing.MISFIT
