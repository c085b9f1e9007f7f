"""Which driver computes a layer's call, where several can.

`torch` is torch's own kernels (torch_driver.py), `fused` this package's, which on a GPU have drivers of
their own (csrc/cuda/drivers.h). The one that FASTRNN_DRIVER names runs, or the one that was tuned for the
call (tuned.py); else this package's on a CPU, and torch's on a GPU.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fastrnn import routing, torch_driver, tuned
from fastrnn.routing import Path

SETTING = "FASTRNN_DRIVER"
NAMES = ("torch", "fused")


def _checked(name: str | None) -> str | None:
    if name and name not in NAMES:
        raise ValueError(f"{SETTING}={name} names no driver; there are: {', '.join(NAMES)}")
    return name or None


# The driver that is asked for, or None.
_asked = _checked(os.environ.get("FASTRNN_DRIVER"))
# Which of the CUDA drivers, csrc/cuda/dispatch.h reads.
if _asked is None and os.environ.get("FASTRNN_CUDA_DRIVER"):
    _asked = "fused"

# Whether there is anything to choose for calls on a CPU; apart, since reading it costs them 20 ns.
on_cpu = _asked is not None or tuned.any_for_cpu()


@contextmanager
def forced(name: str | None) -> Iterator[None]:
    """This driver serves all calls that it can, in all threads; of None, the one that is chosen."""
    global _asked
    before, _asked = _asked, _checked(name)
    refresh()
    try:
        yield
    finally:
        _asked = before
        refresh()


def refresh() -> None:
    """What was tuned counts from now on."""
    global on_cpu
    on_cpu = _asked is not None or tuned.any_for_cpu()


@functools.cache
def _path(choice: tuned.Choice) -> Path:
    path = routing.FUSED if choice.driver == "fused" else Path("torch", "torch's kernels serve this call")
    reason = f"tuned here: {choice.ratio:.2f} times as fast as the slowest driver"
    return Path(path.name, f"{path.reason}; {reason}", choice.driver)


def choose(
    path: Path,
    cell: str,
    x: Tensor,
    steps: int,
    dtype: torch.dtype,
    torch_has_it: bool,
    key: Callable[[], tuple[object, ...]],
) -> Path:
    """The driver of a call that would take this path, as a path.

    Args:
        dtype: what it computes in.
        torch_has_it: torch.nn's layers can be given the call.
        key: makes the tuned.Key of the call.
    """
    if path is not routing.FUSED and not (x.is_cuda and path is routing.NO_CUDA_KERNELS):
        return path
    if torch.compiler.is_exporting():  # what is exported runs on any device, also without Python
        return path
    why_not = torch_driver.why_not(cell, x, steps, dtype) if torch_has_it else "torch.nn has no such call"
    if _asked == "torch":
        if why_not is None:
            return Path("torch", f"{SETTING} asks for it", "torch")
        return replace(path, reason=f"{path.reason}; {SETTING} asks for torch, but {why_not}")
    if _asked is not None or why_not is not None:
        return path
    # A compiled graph serves other sizes too.
    may_be_tuned = path is routing.FUSED and not torch.compiler.is_compiling() and tuned.has_results()
    if may_be_tuned and (choice := tuned.find(key())) is not None:
        return _path(choice)
    if x.is_cuda:
        return Path("torch", "on a GPU, torch's kernels run unless another driver was faster", "torch")
    return path
