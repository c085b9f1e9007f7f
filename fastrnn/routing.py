"""Which implementation serves a call, and why.

fused      the kernels of this package
reference  plain torch operators, step by step, for calls without kernels
torch      torch.nn's own implementation, including its errors for bad input
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrnn import _torch, ops

KERNEL_DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
KERNEL_DEVICES = {"cpu", "meta", *(["cuda"] if ops.BUILT_WITH_CUDA else [])}


@dataclass(frozen=True)
class Path:
    """An implementation and the reason for its choice."""

    name: str
    reason: str
    driver: str | None = None  # where there is a choice of drivers (drivers.py), the one that was chosen


FUSED = Path("fused", "kernels serve this device and dtype")
FUSED_TRANSFORM = Path("fused", FUSED.reason)  # a transform that kernels have a rule for is active
TRANSFORM = Path("reference", "a torch.func transform is active that kernels have no rule for")
FORWARD_AD = Path("reference", "forward-mode AD is active, and kernels have no forward derivative")
TRACING = Path("torch", "torch.jit is tracing")
PER_SAMPLE = Path("torch", "the weights collect per-sample gradients, by torch's operators only")
AUTOCAST = Path("torch", "autocast is active, which torch.nn's cells follow")
MISFIT = Path("torch", "the arguments do not fit this module; torch.nn says how")
NO_CUDA_KERNELS = Path("torch", "this build has no kernels for cuda")
NO_KERNEL = Path("reference", "this cell has no kernels, and torch.nn does not know it")


def by_reference(path: Path) -> Path:
    """In place of a path to torch.nn that torch.nn can't take, since lengths, reset or states are given."""
    return Path("reference", f"{path.reason}, and torch.nn has no lengths, reset or states")


def choose(x: Tensor, cell: str | None = None) -> Path:
    """The path for a fitting input x [T, B, I] or [rows, I], by dtype, device and active transforms."""
    if cell is not None and cell not in ops.CELLS:
        return NO_KERNEL
    if not torch.compiler.is_compiling():
        if _torch.forward_ad_active():
            return FORWARD_AD
        if _torch.innermost_transform() is not None:
            has_kernels = x.dtype in KERNEL_DTYPES and x.device.type in KERNEL_DEVICES
            return FUSED_TRANSFORM if has_kernels and _torch.first_order_transforms() else TRANSFORM
        if _torch.tracing():
            return TRACING
    if x.dtype not in KERNEL_DTYPES:
        return Path("reference", f"there are no kernels for {x.dtype}")
    if not x.is_cpu and x.device.type not in KERNEL_DEVICES:
        if x.is_cuda:
            return NO_CUDA_KERNELS
        return Path("torch", f"this build has no kernels for {x.device.type}")
    return FUSED


# What autocast casts: floating point, but not float64.
_CAST_BY_AUTOCAST = frozenset((torch.float32, torch.bfloat16, torch.float16))


def autocast_casts(*dtypes: torch.dtype) -> bool:
    """Autocast is active and casts a layer's tensors of these dtypes to one."""
    return _torch.autocast_enabled() and _CAST_BY_AUTOCAST.issuperset(dtypes)


def torch_uses_onednn(cell: str, x: Tensor, packed: bool, projected: bool) -> bool:
    """torch.nn runs such a layer by one operator of oneDNN, not by one for each product and gate."""
    return (
        cell == "lstm"
        and x.is_cpu
        and x.dtype in (torch.float32, torch.bfloat16)
        and not packed
        and not projected
    )


def _torch_uses_operators(cell: str, x: Tensor, packed: bool, projected: bool) -> bool:
    if not x.is_cpu or cell not in ("lstm", "gru"):
        return False
    return not torch_uses_onednn(cell, x, packed, projected)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast is off for a type of device."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def autocast_dtype(cell: str, x: Tensor, packed: bool, projected: bool) -> torch.dtype | None:
    """The dtype in which autocast computes a layer with input x, or None if it leaves the layer alone.

    As in torch.nn: on a CPU, RNN and LSTM follow autocast; GRU and a packed or projected LSTM, whose
    products alone do, are left alone; float64 stays float64.
    """
    device = x.device.type
    if x.dtype not in _CAST_BY_AUTOCAST or _torch_uses_operators(cell, x, packed, projected):
        return None
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def autocast_results(
    cell: str, x: Tensor, packed: bool, projected: bool, state: torch.dtype
) -> tuple[torch.dtype, torch.dtype] | None:
    """The dtypes of h and c of a layer left alone by autocast, or None if they are as computed.

    torch.nn then casts the layer's products only, and joins them with the state.
    """
    if x.dtype not in _CAST_BY_AUTOCAST or not _torch_uses_operators(cell, x, packed, projected):
        return None
    if not torch.is_autocast_enabled("cpu"):
        return None
    of_products = torch.get_autocast_dtype("cpu")
    joined = torch.promote_types(state, of_products)
    return of_products if projected else joined, joined
