"""Lets torch.compile trace this package's layers.

Dynamo refuses every instance of nn.LSTM, nn.GRU and nn.RNN unless ``torch._dynamo.config.allow_rnn`` is
set, since it cannot trace torch's own kernels well; ours are subclasses, and it traces them as any other
module. Setting the option would change how torch's own layers compile in the same program. So it is set
only while Dynamo looks at a module of ours: once Dynamo is imported, the function that decides is wrapped.
Importing Dynamo takes a second, so this waits for someone else to do it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from fastrnn._imports import after_import

_BUILDER = "torch._dynamo.variables.builder"


def allow_our_layers(builder: ModuleType) -> None:
    """Wraps VariableBuilder.wrap_module so that our layers pass."""
    from fastrnn.nn.base import Recurrent

    wrap_module = builder.VariableBuilder.wrap_module

    def wrap_module_or_ours(self: Any, value: Any) -> Any:
        if not isinstance(value, Recurrent):
            return wrap_module(self, value)
        with torch._dynamo.config.patch(allow_rnn=True):
            return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap_module_or_ours


def install() -> None:
    """Now if Dynamo is there, else as soon as it is."""
    after_import(_BUILDER, allow_our_layers)
