"""Which implementation serves a call, and why.

fused      the kernels of this package
reference  plain torch operators, step by step: what has no kernel but must work all the same
torch      torch.nn's own implementation, its errors for bad input included
"""

from __future__ import annotations

from dataclasses import dataclass

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


FUSED = Path("fused", "kernels serve this device and dtype")
TRANSFORM = Path("reference", "a torch.func transform is active that kernels have no rule for")
FORWARD_AD = Path("reference", "forward-mode AD is active, and kernels have no forward derivative")
TRACING = Path("torch", "torch.jit is tracing")
PER_SAMPLE = Path("torch", "the weights collect per-sample gradients, by torch's operators only")
AUTOCAST = Path("torch", "autocast is active, which torch.nn's cells follow")
MISFIT = Path("torch", "the arguments do not fit this module; torch.nn says how")
NO_KERNEL = Path("reference", "this cell has no kernels, and torch.nn does not know it")
REFERENCE = Path(
    "reference", "lengths, reset and states have no kernel here, and torch.nn does not know them"
)


def choose(x: Tensor, cell: str | None = None) -> Path:
    """The path for well-formed input x [T, B, I] or [rows, I], by what is true of it and around it."""
    if cell is not None and cell not in ops.CELLS:
        return NO_KERNEL
    if not torch.compiler.is_compiling():
        if _torch.forward_ad_active():
            return FORWARD_AD
        if _torch.innermost_transform() is not None:
            has_kernels = x.dtype in KERNEL_DTYPES and x.device.type in KERNEL_DEVICES
            return FUSED if has_kernels and _torch.first_order_transforms() else TRANSFORM
        if _torch.tracing():
            return TRACING
    if x.dtype not in KERNEL_DTYPES:
        return Path("reference", f"there are no kernels for {x.dtype}")
    if not x.is_cpu and x.device.type not in KERNEL_DEVICES:
        return Path("torch", f"this build has no kernels for {x.device.type}")
    return FUSED


def autocast_dtype(cell: str, device_type: str) -> torch.dtype | None:
    """The dtype that autocast computes this cell in, or None where it leaves it alone.

    As torch does on a CPU: LSTM and RNN follow autocast, GRU does not.
    """
    if cell == "gru" and device_type == "cpu":
        return None
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def autocast_result(cell: str, device_type: str, state: torch.dtype) -> torch.dtype | None:
    """The dtype of the results of a layer left alone by autocast, or None where it is as computed.

    Inside torch's GRU on a CPU autocast casts the products, which the state is then joined with.
    """
    if cell != "gru" or device_type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return None
    return torch.promote_types(state, torch.get_autocast_dtype("cpu"))
