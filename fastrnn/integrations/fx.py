"""torch.fx.symbolic_trace records this package's layers and cells as one node, as it does torch.nn's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from fastrnn._imports import after_import
from fastrnn.nn.base import Recurrent
from fastrnn.nn.cells import RecurrentCell


def _make_leaves(tracer: type[Any]) -> None:
    """Tracers know torch.nn's leaves by the name of their Python module, which ours cannot have."""
    is_leaf_module = tracer.is_leaf_module

    def is_leaf_or_ours(self: Any, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, Recurrent | RecurrentCell)
        return ours or is_leaf_module(self, m, module_qualified_name)

    tracer.is_leaf_module = is_leaf_or_ours


def _symbolic(module: ModuleType) -> None:
    _make_leaves(module.Tracer)


def _quantization(module: ModuleType) -> None:
    _make_leaves(module.QuantizationTracer)


def install() -> None:
    """Changes torch.fx.Tracer, and torch.ao's, which does not ask it, once they are imported."""
    after_import("torch.fx._symbolic_trace", _symbolic)
    after_import("torch.ao.quantization.fx.tracer", _quantization)
