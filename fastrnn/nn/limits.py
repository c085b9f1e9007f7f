"""What these modules can't be given to, said in one sentence where it is tried."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations


class Limits(nn.Module):
    """Mixed into this package's layers and cells."""

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script asks this of every module it is about to compile."""
        raise RuntimeError(
            f"fastrnn.{_name(self)} can't be compiled by TorchScript: call fastrnn.restore(model) "
            "first, which makes it torch.nn's again with the same parameters"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # torch.ao.quantization sets this on every module before it looks for those it can replace, and
        # leaves modules of a type that it doesn't know without a word.
        if name == "qconfig" and "qconfig" not in self.__dict__:
            warnings.warn(
                f"torch.ao.quantization leaves fastrnn.{_name(self)} as it is: call "
                "fastrnn.restore(model) first to have it quantized",
                stacklevel=2,
            )
        super().__setattr__(name, value)


def _name(module: nn.Module) -> str:
    return type_before_parametrizations(module).__name__
