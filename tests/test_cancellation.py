"""Losses whose terms cancel over the batch: gradients of weights are sums of large terms of both signs.

torch.nn adds the batch step by step, so that its partial sums stay small. Ours do too, however many
threads share the work.
"""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from torch import Tensor

T = 50

# Weights of a loss over the batch: [B] numbers whose sum is about zero.
LOSSES = {
    "ramp": lambda B: torch.linspace(-1, 1, B),
    "halves": lambda B: torch.where(torch.arange(B) < B // 2, -1.0, 1.0),
    "pairs": lambda B: 1.0 - 2.0 * (torch.arange(B) % 2),
    "advantages": lambda B: (w := torch.randn(B, generator=torch.Generator().manual_seed(1))) - w.mean(),
}

# Hidden size and batch: threads share the units in the last one, the batch in the others.
SIZES = {"tiny": (7, 20), "narrow": (16, 64), "small": (64, 32), "odd": (129, 17), "units": (200, 6)}

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def gradients(layer: Any, weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(2)
    x = torch.randn(T, len(weights), layer.input_size).to(dtype)
    loss = (layer(x)[0] * weights.to(dtype).view(1, -1, 1)).sum()
    return list(torch.autograd.grad(loss, list(layer.parameters())))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_weights_of_both_signs(cell: str, size: str, loss: str, dtype: torch.dtype) -> None:
    """The rule of exactness, with every number of threads."""
    H, B = SIZES[size]
    ulps = 4 if dtype != torch.float64 else 400  # torch's own error in float64 cannot be seen
    for count in (1, 2, 4, 16) if dtype == torch.float32 else (16,):

        def draw(seed: int, count: int = count) -> list[support.Error]:
            torch.manual_seed(seed)
            torchs, ours = support.twins(cell, 3, H, dtype=dtype)
            exact = gradients(support.in_float64(torchs), LOSSES[loss](B), torch.float64)
            by_torch = gradients(torchs, LOSSES[loss](B), dtype)
            with support.threads(count):
                mine = gradients(ours, LOSSES[loss](B), dtype)
            names = [name for name, _ in torchs.named_parameters()]
            return support.errors(names, exact, by_torch, mine, dtype, ulps)

        support.check_rule(f"{cell} {size} {loss}, {count} threads", dtype, draw)


@pytest.mark.parametrize("flags", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_independent_of_the_number_of_threads(cell: str, flags: dict[str, Any]) -> None:
    """Threads that share the batch give the bits of one thread."""
    layer, weights = support.ours(cell, 24, 64, **flags), LOSSES["ramp"](64)
    results = []
    for count in (1, 2, 4, 16):
        with support.threads(count):
            results.append(gradients(layer, weights, torch.float32))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
