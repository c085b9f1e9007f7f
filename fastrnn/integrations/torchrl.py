"""torchrl's LSTMModule and GRUModule on this package's layers, with `is_init` as the layer's ``reset``.

torchrl cuts a batch of rollouts where an episode begins, pads the pieces to a batch of their own, and joins
the results again. A layer with ``reset`` takes the batch as it is.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchrl.modules import GRUModule, LSTMModule

from fastrnn.convert import accelerate
from fastrnn.nn.base import Recurrent

Model = TypeVar("Model", bound=nn.Module)


def use_reset(model: Model) -> Model:
    """Converts every LSTMModule and GRUModule in a model, and the torch.nn layers inside.

    Results, gradients, parameters and state_dict stay the same. Only calls on sequences change, under
    ``set_recurrent_mode(True)``. In bidirectional layers, and for recorded states that are not zero at the
    start of an episode, torchrl still cuts the batch, with this package's layer inside.

    Args:
        model: any module, also an LSTMModule or GRUModule itself. It is changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: the model contains no LSTMModule or GRUModule.

    Example:
        >>> from torchrl.modules import GRUModule
        >>> from fastrnn.integrations.torchrl import use_reset
        >>> policy = use_reset(GRUModule(3, 4, in_key="observation", out_key="features"))
    """
    found = False
    module: Any
    for module in model.modules():
        for original, twin in ((LSTMModule, ResetLSTMModule), (GRUModule, ResetGRUModule)):
            if type(module) in (original, twin):
                module.__class__ = twin
                # The backend at which torchrl hands is_init on instead of cutting the batch.
                module.recurrent_backend = "scan"
                found = True
    if not found:
        raise ValueError("there is no LSTMModule or GRUModule of torchrl in this model")
    return accelerate(model)[0]


class ResetLSTMModule(LSTMModule):
    """What use_reset() makes of an LSTMModule."""

    def _lstm_scan_with_resets(
        self, input: Tensor, hidden0_in: Tensor, hidden1_in: Tensor, hidden: Any, is_init: Tensor
    ) -> Any:
        if not reset_serves(self.lstm, is_init, hidden0_in, hidden1_in):
            return self._lstm_pad_with_resets(input, hidden0_in, hidden1_in, is_init)
        y, h, c = run(self.lstm, input, hidden, is_init)
        return y, h, c


class ResetGRUModule(GRUModule):
    """What use_reset() makes of a GRUModule."""

    def _gru_scan_with_resets(self, input: Tensor, hidden_in: Tensor, hidden: Any, is_init: Tensor) -> Any:
        if not reset_serves(self.gru, is_init, hidden_in):
            return self._gru_pad_with_resets(input, hidden_in, is_init)
        y, h = run(self.gru, input, hidden, is_init)
        return y, h


def reset_serves(layer: nn.Module, is_init: Tensor, *states: Tensor) -> bool:
    """Episodes begin with a state of zero, and the layer has ``reset`` and one direction.

    Args:
        is_init: [B, T].
        states: recorded before every step, [B, T, layers, P or H].
    """
    if not isinstance(layer, Recurrent) or layer.bidirectional:
        return False
    if any(s.requires_grad for s in states):
        return False
    begins = is_init[:, 1:]  # a row's first state is given to the layer as it is
    return not any(s[:, 1:][begins].any() for s in states)


def run(layer: Any, input: Tensor, state: Any, is_init: Tensor) -> list[Tensor]:
    """The output [B, T, P], and each state at episodes' last steps, zero elsewhere, [B, T, layers, ..].

    Args:
        state: initial state as the layer takes it.
    """
    reset = is_init.clone()
    reset[:, 0] = False
    y, _, steps = layer(input, state, reset=reset, states=True)
    ends = torch.cat((reset[:, 1:], torch.ones_like(reset[:, :1])), 1)[..., None, None]
    by_state = zip(*(s if isinstance(s, tuple) else (s,) for s in steps), strict=True)
    return [y, *(torch.where(ends, torch.stack(of_layers, 2), 0) for of_layers in by_state)]
