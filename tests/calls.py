"""One small call of every operator, right and wrong, and how the memory of the process grows over many."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastrnn  # noqa: F401  registers the operators

fast = torch.ops.fastrnn
T, B, I, H, P = 2, 3, 4, 8, 5


def _layer(x: Tensor | None = None, projected: bool = False) -> list[Tensor | None]:
    """x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr of an LSTM, new ones at each call."""
    size = P if projected else H
    x = torch.ones(T, B, I) if x is None else x
    h0, w_hr = torch.ones(B, size), torch.ones(P, H) if projected else None
    weights = torch.ones(4 * H, I), torch.ones(4 * H, size), torch.ones(4 * H), torch.ones(4 * H)
    return [x, h0, torch.ones(B, H), *weights, w_hr]


def _forward(
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    x: Tensor | None = None,
    cell: str = "lstm",
    projected: bool = False,
) -> object:
    return fast.forward(cell, *_layer(x, projected), batch_sizes, lengths, reset, False, 2)


def _backward(dy: Tensor | None = None) -> object:
    x, h0, c0, *weights = _layer()
    y, h_n, c_n, c, slots = fast.forward("lstm", x, h0, c0, *weights, None, None, None, False, 2)
    given = torch.ones(T, B, H) if dy is None else dy
    arguments = [given, h_n, c_n, None, x, h0, c0, *weights, None, None, None]
    return fast.backward("lstm", *arguments, False, y, c, slots, [True, True])


def _prepack(weights: str) -> Tensor:
    return fast.prepack("lstm", torch.ones(4 * H, I), torch.ones(4 * H, H), None, weights)


def _prepacked(weights: str, hidden_size: int = H) -> object:
    x, h0, c0, _, _, b_ih, b_hh, _ = _layer()
    panels = _prepack(weights)
    return fast.forward_prepacked(
        "lstm", x, h0, c0, panels, b_ih, b_hh, hidden_size, weights, None, None, None, False, 0
    )


def _stream(turn: int = 0, state: tuple[int, ...] = (2, 2, B * H)) -> object:
    biases = [torch.ones(4 * H), torch.ones(4 * H)]
    return fast.stream(
        "lstm", torch.ones(B, I), torch.zeros(state), turn, [_prepack("own")], biases, H, H, "own"
    )


# Each makes its arguments anew, so that a reference kept to one shows as memory.
CALLS: dict[str, Callable[[], object]] = {
    "forward": _forward,
    "forward-projected": lambda: _forward(projected=True),
    "forward-packed": lambda: _forward(batch_sizes=torch.tensor([3, 2]), x=torch.ones(5, I)),
    "forward-lengths-reset": lambda: _forward(
        lengths=torch.tensor([2, 1, 2]), reset=torch.zeros(T, B, dtype=torch.bool)
    ),
    "backward": _backward,
    "prepack": lambda: _prepack("own"),
    "forward_prepacked": lambda: _prepacked("own"),
    "forward_prepacked-int8": lambda: _prepacked("int8"),
    "stream": _stream,
}

# What each op refuses, early and late in its checks.
WRONG_CALLS: dict[str, Callable[[], object]] = {
    "forward-cell": lambda: _forward(cell="no such cell"),
    "forward-input": lambda: _forward(x=torch.ones(T, B, I + 1)),
    "forward-dtype": lambda: _forward(x=torch.ones(T, B, I, dtype=torch.float64)),
    "forward-lengths": lambda: _forward(lengths=torch.tensor([2, 1])),
    "forward-reset": lambda: _forward(reset=torch.zeros(T, B + 1, dtype=torch.bool)),
    "forward-packed": lambda: _forward(batch_sizes=torch.tensor([3, 4]), x=torch.ones(7, I)),
    "backward": lambda: _backward(dy=torch.ones(T, B, H + 1)),
    "prepack": lambda: _prepack("no such weights"),
    "forward_prepacked": lambda: _prepacked("own", hidden_size=H + 1),
    "stream": lambda: _stream(state=(1,)),
}


def refused(call: Callable[[], object]) -> None:
    """Makes a wrong call."""
    try:
        call()
    except (RuntimeError, ValueError):
        return
    raise AssertionError("a wrong call was accepted")


def growth(call: Callable[[], object], count: int) -> int:
    """Bytes of resident memory that `count` calls add, after a thousand others."""
    for _ in range(1000):
        call()
    before = _resident()
    for _ in range(count):
        call()
    return _resident() - before


def _resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
