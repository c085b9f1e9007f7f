"""Which implementation would run a module on given arguments, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import _torch, ops, routing
from fastrnn._build import build_info
from fastrnn.nn.base import Recurrent
from fastrnn.nn.cells import RecurrentCell


@dataclass(frozen=True)
class Explanation:
    """The answer of `explain`; printing it gives one line.

    Attributes:
        path: "fused", "reference" or "torch" (see fastrnn/routing.py).
        reason: why.
        target: the CPU target whose kernels would run, or None.
        dtype: what would be computed in, or None where torch.nn decides.
        driver: the driver of the CUDA kernels that would run, or None.
        backward_driver: likewise, for backward.
    """

    path: str
    reason: str
    target: str | None = None
    dtype: torch.dtype | None = None
    driver: str | None = None
    backward_driver: str | None = None

    def __str__(self) -> str:
        on = f" on {self.target}" if self.target else ""
        if self.driver:
            on = f" by the {self.driver} driver"
            if self.backward_driver != self.driver:
                on += f" ({self.backward_driver} backward)"
        in_dtype = f" in {str(self.dtype).removeprefix('torch.')}" if self.dtype else ""
        return f"{self.path}{on}{in_dtype}: {self.reason}"


def explain(module: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """Which path ``module(*args, **kwargs)`` would take here and now, and the reason.

    Nothing is computed. Arguments that torch.nn would refuse are explained too: the path is "torch",
    whose error they would raise.

    Raises:
        TypeError: the module is not one of fastrnn's.

    Example:
        >>> import torch, fastrnn
        >>> fastrnn.explain(fastrnn.GRU(3, 4), torch.zeros(5, 1, 3)).path
        'fused'
    """
    if isinstance(module, Recurrent):
        return _explain_layer(module, *args, **kwargs)
    if isinstance(module, RecurrentCell):
        return _explain_cell(module, *args, **kwargs)
    raise TypeError(
        f"explain takes a module of fastrnn, not a {type(module).__module__}.{type(module).__qualname__}"
    )


def _explain_layer(
    module: Recurrent,
    input: Any,
    hx: Any = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    states: bool = False,
) -> Explanation:
    call, path = module._plan(input, hx, lengths, reset, states)
    if call is None:
        return Explanation(path.name, path.reason)
    return _explanation(path, module, call.x, call.steps, call.batch, module._computes_in(call))


def _explain_cell(module: RecurrentCell, input: Any, hx: Any = None) -> Explanation:
    state, path = module._plan(input, hx, check=True)
    if state is None:
        return Explanation(path.name, path.reason)
    batch = input.shape[0] if input.dim() == 2 else 1
    return _explanation(path, module, input, 1, batch, module._like()[0])


def _explanation(
    path: routing.Path, module: Recurrent | RecurrentCell, x: Tensor, T: int, B: int, dtype: torch.dtype
) -> Explanation:
    if path.name != "fused":
        return Explanation(path.name, path.reason, None, None if path.name == "torch" else dtype)
    if x.device.type == "cpu":
        return Explanation(path.name, path.reason, build_info()["cpu_target"], dtype)
    if x.device.type != "cuda":
        return Explanation(path.name, path.reason, None, dtype)
    problem = (module.cell, T, B, module.hidden_size, getattr(module, "proj_size", 0) > 0)
    with _torch.without_transforms():  # this is no computation to be transformed
        like = torch.empty(0, dtype=dtype, device=x.device)
        (driver, reason), (other, why_other) = (ops.cuda_driver(like, *problem, b) for b in (False, True))
    if other != driver:
        reason += f"; backward: {why_other}"
    return Explanation(path.name, f"{path.reason}; {reason}", None, dtype, driver, other)
