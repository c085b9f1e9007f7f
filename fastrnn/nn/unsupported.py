"""Clear errors and warnings for tools of torch that don't support these modules."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations


class Limits(nn.Module):
    """Mixed into this package's layers and cells."""

    def __prepare_scriptable__(self) -> nn.Module:
        """torch.nn's module on the same parameters, for torch.jit.script to compile in place of this one.

        torch.jit.script also puts it into the model; ``fastrnn.accelerate(model)`` converts it back.
        """
        if not _has_twin(self):
            raise RuntimeError(
                f"{_name(self)} can't be compiled by TorchScript: torch.nn has no such module"
            )
        cls = getattr(nn, type_before_parametrizations(self).__name__)
        twin: nn.Module = cls.__new__(cls)
        twin.__dict__.update(self.__dict__)
        if isinstance(twin, nn.RNNBase):
            twin._init_flat_weights()
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        # torch.ao.quantization sets this on every module before it looks for those it can replace, and
        # leaves modules of a type that it doesn't know without a word.
        if name == "qconfig" and "qconfig" not in self.__dict__:
            advice = ": call fastrnn.restore(model) first to have it quantized" if _has_twin(self) else ""
            warnings.warn(f"torch.ao.quantization leaves {_name(self)} as it is{advice}", stacklevel=2)
        super().__setattr__(name, value)


def _name(module: nn.Module) -> str:
    cls = type_before_parametrizations(module)
    return f"fastrnn.{cls.__name__}" if cls.__module__.startswith("fastrnn.") else cls.__qualname__


def _has_twin(module: nn.Module) -> bool:
    """fastrnn.restore knows a class of torch.nn's for it."""
    cls = type_before_parametrizations(module)
    return cls.__module__.startswith("fastrnn.") and hasattr(nn, cls.__name__)
