"""Run independent work concurrently on a GPU, on side streams.

A side stream waits for all earlier work on the caller's stream, and the caller's stream waits for the side
stream at the end. The caller sees no difference, also while a CUDA graph is captured. Autograd runs the
backward of an operation on the stream of its forward, so backward is concurrent too. Gradients of leaves
are accumulated on the caller's stream, where DistributedDataParallel and captured graphs expect them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastrnn import _torch, ops

Result = TypeVar("Result")

# The side streams of each stream: callers on different streams share none.
_side_streams: dict[Any, list[torch.cuda.Stream]] = {}


def usable(x: Tensor, cell: str, T: int, B: int, H: int, projects: bool) -> bool:
    """Whether calls of a layer on x may use several streams.

    x must be on a GPU, nothing traced, no transform active, and the layer not computed by the grid driver:
    its launches occupy the whole GPU, and CUDA's documents do not promise that two of them take turns.
    FASTRNN_CUDA_STREAMS=0 in the environment keeps everything on the caller's stream.
    """
    return (
        x.is_cuda
        and not torch.compiler.is_compiling()
        and _torch.innermost_transform() is None
        and type(x) in (Tensor, nn.Parameter)
        and os.environ.get("FASTRNN_CUDA_STREAMS") != "0"
        and all(ops.cuda_driver(x, cell, T, B, H, projects, b)[0] != "grid" for b in (False, True))
    )


def _streams(x: Tensor, count: int) -> list[torch.cuda.Stream]:
    """The current stream of x's device, and count - 1 side streams of it."""
    main = torch.cuda.current_stream(x.device)
    sides = _side_streams.setdefault(main, [])
    while len(sides) < count - 1:
        sides.append(torch.cuda.Stream(x.device))
    return [main, *sides[: count - 1]]


def _run_on(
    stream: torch.cuda.Stream, function: Callable[..., Result], arguments: tuple[Any, ...]
) -> Result:
    here = _leaves_as_views(arguments)
    with torch.cuda.stream(stream):
        return function(*here)


def _leaves_as_views(arguments: Any) -> Any:
    """Views of the leaves among the arguments, so that their gradients are accumulated on this stream."""
    if isinstance(arguments, Tensor):
        needs = arguments.is_leaf and arguments.requires_grad and torch.is_grad_enabled()
        return arguments.view_as(arguments) if needs else arguments
    if type(arguments) in (tuple, list):
        return tuple(map(_leaves_as_views, arguments))
    return arguments


def _record_use(tensors: Any, stream: torch.cuda.Stream) -> None:
    """Keeps the memory of tensors, nested in any depth, from being reused until ``stream`` is done."""
    if isinstance(tensors, Tensor):
        if tensors.device == stream.device:
            tensors.record_stream(stream)
    elif isinstance(tensors, tuple | list):
        for t in tensors:
            _record_use(t, stream)


def run_concurrently(
    x: Tensor, function: Callable[..., Result], calls: list[tuple[Any, ...]]
) -> list[Result]:
    """function(*arguments) for each call: the first on x's current stream, the others on side streams.

    Tensors that the function keeps for backward must be among its arguments or results.
    """
    main, *sides = _streams(x, len(calls))
    for side in sides:
        side.wait_stream(main)
    try:
        results = [function(*calls[0])]
        for side, arguments in zip(sides, calls[1:], strict=True):
            results.append(_run_on(side, function, arguments))
    finally:
        for side in sides:
            main.wait_stream(side)
    # Without backward the waits are enough: memory freed from now on is reused after them.
    if torch.is_grad_enabled():
        for side, arguments, result in zip(sides, calls[1:], results[1:], strict=True):
            _record_use(arguments, side)
            _record_use(result, main)
    return results
