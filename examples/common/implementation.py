"""Whose recurrent layers an example uses: torch.nn's or fastrnn's. The one word that changes."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from torch import nn

from common.errors import InputError


def layers(impl: str) -> ModuleType:
    """The module to take LSTM, GRU and RNN from: ``torch.nn`` or ``fastrnn``."""
    if impl == "torch":
        return nn
    try:
        return importlib.import_module("fastrnn")
    except ImportError as problem:
        raise InputError(f"fastrnn can't be imported ({problem}); --impl torch runs without.") from None


def chosen(option: str) -> list[str]:
    """The implementations ``--impl`` asks for, each checked to be there."""
    if option == "auto":
        spec = importlib.util.find_spec("fastrnn")
        # A mere folder of that name on the path has a spec too, but no origin.
        option = "both" if spec is not None and spec.origin else "torch"
    impls = ["torch", "fastrnn"] if option == "both" else [option]
    for impl in impls:
        layers(impl)
    return impls
