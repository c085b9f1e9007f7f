"""LSTMCell, GRUCell and RNNCell: torch.nn's, with this package's step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import _torch, functional, routing
from fastrnn.nn.base import State, pair
from fastrnn.nn.unsupported import Limits

_DOC = """`torch.nn.{name}` on fused kernels: same arguments, parameters, results and errors.

    Example:
        >>> import torch, fastrnn
        >>> cell = fastrnn.{name}(10, 20)
        >>> state = cell(torch.randn(3, 10))
    """


class RecurrentCell(Limits, nn.RNNCellBase):
    """Mixin that gives one of torch.nn's cells the forward of this package."""

    @property
    def cell(self) -> str:
        """The name of this module's cell in the registry."""
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        state, path = self._plan(input, hx)
        if state is None:
            return self._by_torch(input, hx)
        try:
            return self._step(self._layer_function(path), input, state)
        except ValueError:  # of the kernels, for arguments that do not fit
            return self._by_torch(input, hx)
        except NotImplementedError:
            if all(t is None or t.layout is torch.strided for t in (input, *state)):
                raise
            return self._by_torch(input, hx)  # some cells of torch.nn take a sparse input

    def _plan(self, input: Any, hx: Any, check: bool = False) -> tuple[State | None, routing.Path]:
        """The state and the path that serves the call; no state if torch.nn serves it.

        Sizes, dtypes and devices are checked here only if the kernels do not check them, or with ``check``:
        checking twice would slow down every call.
        """
        path = self._path(input)
        if path.name == "torch":
            return None, path
        state = self._zeros(input) if hx is None else self._split_state(hx)
        unchecked = path.name != "fused" or torch.compiler.is_compiling()
        if state is None or ((check or unchecked) and not self._fits(input, state)):
            return None, routing.MISFIT
        return state, path

    def _path(self, input: Any) -> routing.Path:
        if not isinstance(input, Tensor) or input.dim() not in (1, 2):
            return routing.MISFIT
        if _torch.autocast_enabled():
            return routing.AUTOCAST
        return routing.choose(input)

    def _layer_function(self, path: routing.Path) -> functional.LayerFunction:
        return functional.LAYERS[path.name]

    def _by_torch(self, input: Any, hx: Any) -> Any:
        """torch.nn's forward, or its error."""
        if isinstance(input, Tensor):
            for state in self._given_states(hx):
                # torch.nn broadcasts such a state or reads out of bounds.
                if isinstance(state, Tensor) and {state.dim(), input.dim()} == {1, 2}:
                    raise RuntimeError(
                        f"got a {state.dim()}-D hx for {input.dim()}-D input, expected {input.dim()}-D; "
                        f"pass input [batch, {self.input_size}] with hx [batch, {self.hidden_size}], or "
                        f"input [{self.input_size}] with hx [{self.hidden_size}]"
                    )
        return super().forward(input, hx)

    def _given_states(self, hx: Any) -> Iterable[Any]:
        return (hx,)

    def _step(self, layer: functional.LayerFunction, input: Tensor, state: State) -> Any:
        h0, c0 = state
        if input.dim() == 2:
            _, h, c, _ = layer(self.cell, input, h0, c0, self._weights())
            return self._join_state(h, c)
        c0 = None if c0 is None else c0.unsqueeze(0)
        _, h, c, _ = layer(self.cell, input.unsqueeze(0), h0.unsqueeze(0), c0, self._weights())
        return self._join_state(h.squeeze(0), None if c0 is None or c is None else c.squeeze(0))

    def _weights(self) -> functional.LayerWeights:
        own = self._parameters
        try:
            # Attribute access on a module is slow, and this runs at every step.
            return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"], None  # type: ignore
        except KeyError:  # replaced: by a parametrization, by pruning
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None

    def _fits(self, input: Tensor, state: State) -> bool:
        """The kernels serve these sizes, dtypes and devices."""
        dtype, device = self._like()
        if input.shape[-1] != self.input_size or input.dtype != dtype or input.device != device:
            return False
        shape = (*input.shape[:-1], self.hidden_size)
        return all(
            s is None or (s.shape == shape and s.dtype == input.dtype and s.device == input.device)
            for s in state
        )

    def _like(self) -> tuple[torch.dtype, torch.device]:
        """The dtype and device that the input must have."""
        weight = self.weight_ih
        return weight.dtype, weight.device

    def _zeros(self, input: Tensor) -> State:
        return input.new_zeros((*input.shape[:-1], self.hidden_size)), None

    def _split_state(self, hx: Any) -> State | None:
        """hx as h0 and c0, or None if hx is no state of this cell."""
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

    def _given_states(self, hx: Any) -> Iterable[Any]:
        # torch.nn takes a stack of two states for a pair.
        return hx if isinstance(hx, (tuple, list)) or (isinstance(hx, Tensor) and hx.dim() > 0) else ()

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

    def _path(self, input: Any) -> routing.Path:
        # torch.nn refuses an unknown nonlinearity at the first call.
        return super()._path(input) if self.nonlinearity in ("tanh", "relu") else routing.MISFIT
