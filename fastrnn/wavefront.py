"""Layers of a stack at the same time on a GPU, each one chunk of steps behind the one below it.

Chunk k of layer l follows chunk k of layer l - 1 and chunk k - 1 of layer l, so as many layers run at once
as there are chunks to go round, each on a stream of its own. No GPU has measured it: it is off unless
FASTRNN_CUDA_WAVEFRONT in the environment says in how many chunks sequences are to be cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import streams

LayerResult = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def chunks_for(x: Tensor) -> int:
    """In how many chunks x [T, B, I] is to be cut; 0 or 1 where layers run one after another."""
    if not streams.usable(x):
        return 0
    setting = os.environ.get("FASTRNN_CUDA_WAVEFRONT", "0")
    if not setting.isdecimal():
        raise ValueError(f"FASTRNN_CUDA_WAVEFRONT must be a number of chunks, not {setting!r}")
    return min(int(setting), x.shape[0])


def recurrent(
    layer: Callable[..., LayerResult],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Any],
    lengths: Tensor | None,
    reset: Tensor | None,
    keep: int,
    states: bool,
    chunks: int,
) -> tuple[Tensor, Tensor, Tensor | None, list[tuple[Tensor, Tensor | None]]]:
    """As functional.recurrent in one direction, with x [T, B, I] cut along T into ``chunks`` parts.

    ``layer`` is functional.fused_layer of a cell.
    """
    T, count = x.shape[0], len(weights)
    size = -(-T // chunks)
    parts = list(x.split(size))  # of the input of the layer that comes to them next
    masks = [
        (
            None if lengths is None else (lengths - t).clamp(0, size),
            None if reset is None else reset[t : t + size],
        )
        for t in range(0, T, size)
    ]
    state = [(h0[i], None if c0 is None else c0[i]) for i in range(count)]
    done: list[list[LayerResult]] = [[] for _ in range(count)]
    lanes = streams.lanes(x, count) if streams.usable(x) else None
    try:
        for wave in range(len(parts) + count - 1):
            # Upper layers first: what they wait for is what the layer below did in the wave before.
            for i in reversed(range(max(0, wave - len(parts) + 1), min(count, wave + 1))):
                k = wave - i
                arguments = (parts[k], *state[i], weights[i], None, *masks[k], False, keep, states)
                if lanes and i > 0:
                    lanes[i].wait_stream(lanes[i - 1])
                    result = streams.on(lanes[i], layer, arguments)
                    streams.share(arguments, lanes[i])
                else:
                    result = layer(*arguments)
                done[i].append(result)
                parts[k], h, c, _ = result
                state[i] = h, None if c0 is None else c
    finally:
        if lanes:
            for side in lanes[1:]:
                lanes[0].wait_stream(side)
    if lanes:
        streams.share(done, lanes[0])
    h_n = torch.stack([h for h, _ in state])
    c_n = None if c0 is None else torch.stack([c for _, c in state if c is not None])
    return torch.cat(parts), h_n, c_n, [_every_step(results, c0) for results in done] if states else []


def _every_step(chunks: list[LayerResult], c0: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """h and c after every step of a layer, of which there are the results of each chunk."""
    h = torch.cat([y for y, _, _, _ in chunks])
    return h, None if c0 is None else torch.cat([c for _, _, _, c in chunks if c is not None])
