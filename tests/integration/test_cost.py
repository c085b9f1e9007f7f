"""What lengths and reset cost: nothing where they are absent, little where they are given."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from benchmarks.timing import interleave

from .common import KINDS

T, B, H = 50, 32, 128
BOUND = 1.05


class Operators(TorchDispatchMode):
    """Names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_no_operator_is_added(kind: str) -> None:
    """The kernel itself takes the masks: with them nothing else runs, without them nothing is made up."""
    layer, x = getattr(fastrnn, kind)(4, 5), torch.randn(6, 3, 4)
    masks = {"lengths": torch.tensor([6, 2, 4]), "reset": torch.zeros(6, 3, dtype=torch.bool)}
    names = []
    for kwargs in ({}, masks):
        with torch.no_grad(), Operators() as operators:
            layer(x, **kwargs)
        names.append([n for n in operators.names if not n.endswith(("unsqueeze", "select"))])
    count = 2 if kind == "LSTM" else 1
    assert names == [["aten::new_zeros"] * count + ["fastrnn::forward"]] * 2


def training(layer: torch.nn.Module, x: torch.Tensor, **masks: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        layer.zero_grad()
        layer(x, **masks)[0].sum().backward()

    return step


def inference(layer: torch.nn.Module, x: torch.Tensor, **masks: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            layer(x, **masks)

    return call


@pytest.mark.parametrize("way", [inference, training])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_reset_cost_under_5_percent(kind: str, way: Callable[..., Callable[[], None]]) -> None:
    """Measured in turns, round after round until a ratio is seen that is not too large.

    What else the machine does can only lengthen a time, so that the shortest of all rounds are compared; or
    the middle of the rounds' own ratios, since one lucky time without masks would spoil all later rounds.
    """
    rounds: list[dict[str, float]] = []
    ratios: dict[str, float] = {}
    kept = []  # so that each round's tensors lie elsewhere, which alone can make some percent
    for _ in range(10):
        layer, x = getattr(fastrnn, kind)(H, H), torch.randn(T, B, H)
        calls = {
            "absent": way(layer, x),
            "lengths, all T": way(layer, x, lengths=torch.full((B,), T)),
            "lengths": way(layer, x, lengths=torch.randint(T // 2, T + 1, (B,))),
            "reset": way(layer, x, reset=torch.rand(T, B) < 0.02),
        }
        kept.append(calls)
        rounds.append({name: times.minimum for name, times in interleave(calls, seconds=0.3).items()})
        shortest = {name: min(r[name] for r in rounds) for name in calls}
        for name in calls:
            middle = statistics.median(r[name] / r["absent"] for r in rounds)
            ratios[name] = min(shortest[name] / shortest["absent"], middle)
        if max(ratios.values()) < BOUND:
            return
    pytest.fail(", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
