"""Trains a model with one implementation, or with both side by side.

Both start from the same weights. Each batch trains both, one after the other, with the same random numbers.
A difference in loss is therefore a difference in arithmetic. The ratio of times compares adjacent steps,
which a busy machine disturbs least.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.distributed import World
from common.implementation import layers

WARM_UP = 3  # steps left out of speeds: first calls allocate and pack


@dataclass
class Run:
    """One implementation's model in training, with its measurements."""

    impl: str
    model: nn.Module
    forward: nn.Module  # the model, or DistributedDataParallel around it; called in training
    optimizer: torch.optim.Optimizer
    lr: float
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each step
    items: list[int] = field(default_factory=list)  # tokens of each step, on all processes
    norms: list[float] = field(default_factory=list)  # of the gradient, before clipping
    state: Any = None  # the hidden state passed from batch to batch, if any

    @property
    def speed(self) -> float:
        """Tokens per second, the median over the steps after the first few; 0 without any."""
        pairs = list(zip(self.items, self.seconds, strict=True))
        pairs = pairs[WARM_UP:] or pairs
        return statistics.median(items / seconds for items, seconds in pairs) if pairs else 0.0

    def saved(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def start(
    impls: Iterable[str],
    build: Callable[[ModuleType], nn.Module],
    world: World,
    seed: int,
    lr: float,
    weight_decay: float = 0.0,
) -> list[Run]:
    """One run for each implementation, all from the initial weights of the first."""
    runs: list[Run] = []
    for impl in impls:
        torch.manual_seed(seed)
        model = build(layers(impl)).to(world.device)
        if runs:
            model.load_state_dict(runs[0].model.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
        runs.append(Run(impl, model, world.wrap(model), optimizer, lr))
    return runs


def fit(
    runs: list[Run],
    batches: Iterable[Any],
    loss_of: Callable[[Run, Any], tuple[Tensor, int]],
    world: World,
    *,
    steps: int,
    title: str,
    clip: float = 1.0,
    schedule: Callable[[int], float] | None = None,
    after_step: Callable[[int], None] | None = None,
    first_step: int = 0,
) -> None:
    """Train every run on every batch.

    Args:
        loss_of: (run, batch) -> (mean loss, number of tokens in the batch of this process).
        clip: a gradient with a larger norm is scaled down to this norm.
        schedule: factor of the learning rate at a share (0 to 1) of the ``steps``.
        after_step: called with the number of finished steps.
        first_step: number of finished steps when training is resumed.
    """
    for run in runs:
        run.model.train()
    bar = tqdm(total=steps, initial=first_step, desc=title, disable=world.rank > 0, mininterval=0.5)
    for step, batch in enumerate(batches, start=first_step):
        factor = schedule(step / steps) if schedule else 1.0
        # The second run finds the batch in the cache: alternate.
        turn = runs if step % 2 == 0 else runs[::-1]
        numbers = _random_state(world)
        for run in turn:
            _set_random_state(world, numbers)
            for group in run.optimizer.param_groups:
                group["lr"] = run.lr * factor
            _step(run, batch, loss_of, world, clip)
        bar.set_postfix({run.impl: f"{run.losses[-1]:.3f}" for run in runs}, refresh=False)
        bar.update()
        if after_step:
            after_step(step + 1)
    bar.close()
    for run in runs:
        run.model.eval()


def _step(run: Run, batch: Any, loss_of: Callable, world: World, clip: float) -> None:
    begin = _now(world)
    run.optimizer.zero_grad(set_to_none=True)
    loss, items = loss_of(run, batch)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), clip)
    run.optimizer.step()
    run.losses.append(loss.item())
    run.seconds.append(_now(world) - begin)
    run.items.append(items * world.size)
    run.norms.append(norm.item())


def _random_state(world: World) -> list[Tensor]:
    on_gpu = world.device.type == "cuda"
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(world.device)] if on_gpu else [])


def _set_random_state(world: World, numbers: list[Tensor]) -> None:
    torch.set_rng_state(numbers[0])
    if len(numbers) > 1:
        torch.cuda.set_rng_state(numbers[1], world.device)


def _now(world: World) -> float:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()


def cooling(share: float) -> float:
    """A schedule: the full rate for half of the steps, then a linear decay to a tenth."""
    return min(1.0, 1.9 - 1.8 * share)


def speed_ratio(runs: list[Run]) -> float | None:
    """How many times faster the second run's steps were, as the median over steps; None without any."""
    if len(runs) < 2:
        return None
    pairs = list(zip(runs[0].seconds, runs[1].seconds, strict=True))
    pairs = pairs[WARM_UP:] or pairs
    return statistics.median(first / second for first, second in pairs) if pairs else None


def first_difference(runs: list[Run], steps: int = 5) -> float:
    """The largest relative difference between the two runs' losses in the first few steps.

    Later they drift apart, because training amplifies rounding errors.
    """
    pairs = list(zip(runs[0].losses, runs[1].losses, strict=True))[:steps]
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
