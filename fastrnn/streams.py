"""Work side by side on a GPU: streams beside the one that the caller is on.

What runs beside starts after all that the caller's stream has been given so far, and that stream waits for
it in the end. So for the caller it is as if his own stream had done everything, also while a CUDA graph is
captured. Autograd computes the derivative of an operation on the stream that the operation ran on, so
backward runs side by side too; the gradients of leaves come back to the caller's stream, where others
(DistributedDataParallel, a captured graph) expect them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")

# Streams that stand beside another one, always the same: two callers on two streams get in nobody's way.
_beside: dict[Any, list[torch.cuda.Stream]] = {}


def usable(x: Tensor) -> bool:
    """Whether calls on x may use several streams: x is on a GPU, nothing is traced and no transform active.

    FASTRNN_CUDA_STREAMS=0 in the environment keeps everything on the caller's stream.
    """
    return (
        x.is_cuda
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and type(x) in (Tensor, nn.Parameter)
        and os.environ.get("FASTRNN_CUDA_STREAMS") != "0"
    )


def lanes(x: Tensor, count: int) -> list[torch.cuda.Stream]:
    """The current stream of x's device, and count - 1 that stand beside it."""
    main = torch.cuda.current_stream(x.device)
    beside = _beside.setdefault(main, [])
    while len(beside) < count - 1:
        beside.append(torch.cuda.Stream(x.device))
    return [main, *beside[: count - 1]]


def on(stream: torch.cuda.Stream, function: Callable[..., Result], arguments: Sequence[Any]) -> Result:
    """function(*arguments), done by ``stream``."""
    here = _leaves_as_views(arguments)
    with torch.cuda.stream(stream):
        return function(*here)


def _leaves_as_views(arguments: Any) -> Any:
    """Arguments whose leaves have their gradients on the current stream, wherever they are used."""
    if isinstance(arguments, Tensor):
        needs = arguments.is_leaf and arguments.requires_grad and torch.is_grad_enabled()
        return arguments.view_as(arguments) if needs else arguments
    if isinstance(arguments, tuple | list):
        return tuple(map(_leaves_as_views, arguments))
    return arguments


def share(tensors: Any, stream: torch.cuda.Stream) -> None:
    """Keeps the memory of tensors, in lists of any depth, from everyone else until ``stream`` is done."""
    if isinstance(tensors, Tensor):
        if tensors.device == stream.device:
            tensors.record_stream(stream)
    elif isinstance(tensors, tuple | list):
        for t in tensors:
            share(t, stream)


def side_by_side(
    x: Tensor, function: Callable[..., Result], calls: Sequence[Sequence[Any]]
) -> list[Result]:
    """function(*arguments) for each of the calls: the first on x's current stream, the others beside it.

    Tensors that the function keeps for backward must be among its arguments or results.
    """
    main, *beside = lanes(x, len(calls))
    for side in beside:
        side.wait_stream(main)
    try:
        results = [function(*calls[0])]
        for side, arguments in zip(beside, calls[1:], strict=True):
            results.append(on(side, function, arguments))
    finally:
        for side in beside:
            main.wait_stream(side)
    # Without backward the waits are enough: what is freed from now on is used again after them.
    if torch.is_grad_enabled():
        for side, arguments, result in zip(beside, calls[1:], results[1:], strict=True):
            share(arguments, side)
            share(result, main)
    return results
