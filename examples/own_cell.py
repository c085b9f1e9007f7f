"""A cell of your own where the known ones fall short: what is in the blood after doses at odd hours.

A patient takes doses at irregular times; each decays by half in a few hours. From the doses and the
hours between them, a layer is to tell the concentration just after each dose: the sum of what is left of
all. An LSTM with peepholes gets the hours as a feature and has to learn the decay from examples. Three
lines declare a cell whose state decays over the hours by a learned rate, which is the law itself: it takes
fewer parameters, and holds for sequences longer than those it was trained on.

  python examples/own_cell.py
  python examples/own_cell.py --steps 1000 --seed 1
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import fastrnn

HALF_LIFE = 4.0  # hours
HIDDEN, BATCH, T, LONGER = 16, 32, 30, 150


@fastrnn.cell(weights="rate", inputs="hours")
def decaying(dose_x, dose_h, h, rate, hours):
    """What was there decays over the hours since the last dose; then the new dose, w_ih x, adds to it."""
    return torch.exp(-F.softplus(rate) * hours) * h + dose_x


def patients(count: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Doses and hours since the last, [steps, count], and the concentration after each dose."""
    doses, hours = torch.rand(steps, count), -torch.log(torch.rand(steps, count)).clamp(max=5.0) * 3
    concentration, after = torch.zeros(count), []
    for dose, passed in zip(doses, hours, strict=True):
        concentration = concentration * 0.5 ** (passed / HALF_LIFE) + dose
        after.append(concentration)
    return doses, hours, torch.stack(after)


class Known(nn.Module):
    """A layer that comes with the package; the hours are a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.output = fastrnn.PeepholeLSTM(2, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, doses: Tensor, hours: Tensor) -> Tensor:
        return self.output(self.rnn(torch.stack((doses, hours / HALF_LIFE), -1))[0]).squeeze(-1)


class Own(nn.Module):
    """The declared cell; the hours are its step input, the same for every unit."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.output = fastrnn.Recurrence(decaying, 1, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, doses: Tensor, hours: Tensor) -> Tensor:
        return self.output(self.rnn(doses.unsqueeze(-1), hours=hours.unsqueeze(-1))[0]).squeeze(-1)


def train(model: nn.Module, steps: int, seed: int) -> float:
    """Trains the model; returns the seconds."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    start = time.perf_counter()
    for _ in range(steps):
        doses, hours, target = patients(BATCH, T)
        loss = F.mse_loss(model(doses, hours), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def error(model: nn.Module, steps: int) -> float:
    """Root mean square error, of new patients."""
    torch.manual_seed(1234)
    doses, hours, target = patients(500, steps)
    return float(F.mse_loss(model(doses, hours), target).sqrt())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    makers: dict[str, Callable[[], nn.Module]] = {"PeepholeLSTM": Known, "decaying (own)": Own}
    errors = {}
    print(f"{'':16} {'parameters':>10} {'seconds':>8} {f'error, T={T}':>13} {f'T={LONGER}':>8}")
    for name, make in makers.items():
        torch.manual_seed(options.seed)
        model = make()
        seconds = train(model, options.steps, options.seed)
        errors[name] = error(model, T), error(model, LONGER)
        count = sum(p.numel() for p in model.parameters())
        print(f"{name:16} {count:10} {seconds:8.1f} {errors[name][0]:13.4f} {errors[name][1]:8.4f}")
    if errors["decaying (own)"][0] > 0.5 * errors["PeepholeLSTM"][0]:
        print("expected: the error of the declared cell is less than half of the LSTM's", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
