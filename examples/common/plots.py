"""Plots, written as PNG files without a display."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from common.checkpoint import write_atomically
from common.training import Run


def save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=80))
    plt.close(figure)


def losses(runs: Sequence[Run], path: Path, title: str) -> None:
    """The loss of each run over its own seconds of training, smoothed over 1% of the steps."""
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for run in runs:
        width = max(1, len(run.losses) // 100)
        sums = list(accumulate(run.losses, initial=0.0))
        smooth = [(b - a) / width for a, b in zip(sums, sums[width:], strict=False)]
        clock = list(accumulate(run.seconds))[width - 1 :]
        axes.plot(clock, smooth, label=run.impl, linewidth=1)
    axes.set(xlabel="seconds of training", ylabel="loss", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path)


def confusion(matrix: Tensor, names: Sequence[str], path: Path, title: str) -> None:
    """A confusion matrix [classes, classes], each row as shares of its truth."""
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    figure, axes = plt.subplots(figsize=(7, 6.3))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="truth", title=title)
    figure.colorbar(image, fraction=0.046)
    save(figure, path)
