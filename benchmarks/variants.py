"""Cells of the literature: python -m benchmarks.variants times each against its equations as a torch loop.

The loop computes the input's products of all steps at once, as one who knows torch would write it. Both are
timed in turns in one process on the same weights; the shortest of many times counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastrnn
from benchmarks.timing import interleave
from fastrnn.cells import Cell

SHAPES = ((50, 8, 256), (50, 1, 64))  # T, B, H; the input is as wide as h
LAYERS: dict[str, Callable[[int], Any]] = {
    "PeepholeLSTM": lambda H: fastrnn.PeepholeLSTM(H, H),
    "CoupledLSTM": lambda H: fastrnn.CoupledLSTM(H, H),
    "LiGRU": lambda H: fastrnn.LiGRU(H, H),
}
SECONDS = 2.5  # for a row


def loop(layer: fastrnn.Recurrence, x: Tensor) -> Tensor:
    """A layer whose gates have one part each, step by step."""
    cell: Cell = layer.cell
    w_hh, b_hh = layer.weight_hh_l0, layer.bias_hh_l0
    own = {name: getattr(layer, f"{name}_l0") for name in cell.weights}
    states = {name: x.new_zeros(x.shape[1], layer.hidden_size) for name in cell.states}
    steps, ys = torch.nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + b_hh), []
    for step in steps:
        gates = torch.addmm(step, states[cell.states[0]], w_hh.T).chunk(len(cell.gates), -1)
        values = dict(zip((gate.name for gate in cell.gates), gates, strict=True)) | states | own
        new = cell(*(values[p] for p in cell.parameters))
        states = dict(zip(cell.states, (new,) if isinstance(new, Tensor) else new, strict=True))
        ys.append(states[cell.states[0]])
    return torch.stack(ys)


def row(name: str, T: int, B: int, H: int, seconds: float = SECONDS) -> str:
    """Times of training and inference: the layer, its loop, and an LSTM of this size."""
    layer, lstm, x = LAYERS[name](H), fastrnn.LSTM(H, H), torch.randn(T, B, H)
    torch.testing.assert_close(layer(x)[0], loop(layer, x), rtol=1e-3, atol=1e-4)
    calls = {"ours": lambda: layer(x)[0], "loop": lambda: loop(layer, x), "lstm": lambda: lstm(x)[0]}
    training = {name: lambda c=call: c().sum().backward() for name, call in calls.items()}  # type: ignore[misc]
    columns = [f"{name:13} H{H} B{B} T{T}".ljust(28)]
    for timed, gradients in ((training, True), (calls, False)):
        with torch.set_grad_enabled(gradients):
            times = interleave(timed, seconds=seconds)
        ours, theirs, built_in = (1e6 * times[name].minimum for name in calls)
        columns.append(f"{ours:8.0f} {theirs:8.0f} {theirs / ours:6.1f}x {built_in:8.0f}")
    return " |".join(columns)


if __name__ == "__main__":
    head = f"{'us':>8} {'loop':>8} {'ratio':>7} {'LSTM':>8}"
    print(f"{'':28} |{head} |{head}")
    for shape in SHAPES:
        for name in LAYERS:
            print(row(name, *shape), flush=True)
