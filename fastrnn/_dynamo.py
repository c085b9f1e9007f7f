"""Lets torch.compile trace this package's layers.

Dynamo refuses every instance of nn.LSTM, nn.GRU and nn.RNN unless ``torch._dynamo.config.allow_rnn`` is
set, since it cannot trace torch's own kernels well; ours are subclasses, and it traces them as any other
module. Setting the option would change how torch's own layers compile in the same program. So it is set
only while Dynamo looks at a module of ours: once Dynamo is imported, the function that decides is wrapped.
Importing Dynamo takes a second, so a finder waits for someone else to do it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

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


class _WaitForDynamo(MetaPathFinder):
    """Finds Dynamo's builder as usual, and has it changed right after it is executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        allow_our_layers(module)


def install() -> None:
    """Now if Dynamo is there, else as soon as it is."""
    if _BUILDER in sys.modules:
        allow_our_layers(sys.modules[_BUILDER])
    else:
        sys.meta_path.insert(0, _WaitForDynamo())
