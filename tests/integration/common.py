"""Pairs of one of torch.nn's modules and ours, with the same weights, and how they are compared."""

from __future__ import annotations

import copy
import importlib
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn

KINDS = ("LSTM", "GRU", "RNN")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def library(name: str) -> Any:
    """A library of requirements.txt; a test that wants one which is absent is skipped, or fails where
    FASTRNN_TEST_LIBRARIES=required says that all are installed."""
    if os.environ.get("FASTRNN_TEST_LIBRARIES") == "required":
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed")


def pair(kind: str, *args: Any, device: str = "cpu", **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """torch.nn's module and ours, with the same weights."""
    theirs = getattr(nn, kind)(*args, device=device, **kwargs)
    ours = getattr(fastrnn, kind)(*args, device=device, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a module's result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors(v)]
    return [t for v in value if v is not None for t in tensors(v)]


def loss_of(value: Any) -> Tensor:
    """A scalar in which every element of a result counts differently."""
    total = torch.zeros(())
    for t in tensors(value):
        weights = torch.linspace(-1, 1, t.numel(), dtype=t.dtype, device=t.device).view(t.shape)
        total = total.to(t) + (t * weights).sum()
    return total


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def assert_same(ours: Any, theirs: Any, scale: float = 1.0) -> None:
    """Equal as two orders of summation are in this dtype."""
    a, b = tensors(ours), tensors(theirs)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        epsilon = torch.finfo(x.dtype).eps
        largest = y.abs().max().clamp_min(1).item() if y.numel() else 1.0
        torch.testing.assert_close(x, y, rtol=0, atol=scale * 100 * epsilon * largest)


def twice(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Two copies of a model, the second one accelerated."""
    plain, fast = copy.deepcopy(module), copy.deepcopy(module)
    return plain, fastrnn.accelerate(fast)[0]
