"""The plots of a result: a heat map of ratios, and time against T."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import colors, ticker
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.report import NAMES, machine_line
from benchmarks.results import Result, Row, geometric_mean

mpl.use("Agg")

# Columns of the heat map: suite, pass, dtype, title.
_COLUMNS = (
    ("grid", "inference", "float32", "float32 inference"),
    ("grid", "training", "float32", "float32 training"),
    ("grid", "inference", "bfloat16", "bfloat16 inference"),
    ("grid", "training", "bfloat16", "bfloat16 training"),
    ("high", "inference", "float32", '"high" inference'),
)
# The color scale is in log2 of the ratio, white at 1.
_SCALE = colors.TwoSlopeNorm(vmin=-1, vcenter=0, vmax=4)


def draw(result: Result, stem: Path) -> dict[str, Path]:
    """Writes `stem`-ratio.png and `stem`-length.png if the result has their rows; returns title -> file."""
    plots = {
        "Ratio to torch.nn over H and B": (ratios, "ratio"),
        "Time against T": (against_length, "length"),
    }
    written = {}
    for title, (plot, name) in plots.items():
        path = stem.with_name(f"{stem.name}-{name}.png")
        if plot(result, path):
            written[title] = path
    return written


def ratios(result: Result, path: Path) -> bool:
    cells = [cell for cell in NAMES if any(result.group(s, cell, p, d) for s, p, d, _ in _COLUMNS)]
    columns = [c for c in _COLUMNS if any(result.group(c[0], cell, *c[1:3]) for cell in cells)]
    if not cells:
        return False
    figure, grid = plt.subplots(
        len(cells),
        len(columns),
        figsize=(0.6 + 2.3 * len(columns), 0.7 + 2.5 * len(cells)),
        squeeze=False,
        layout="constrained",
    )
    for axes_of_cell, cell in zip(grid, cells, strict=True):
        for axes, (suite, pass_, dtype, title) in zip(axes_of_cell, columns, strict=True):
            if rows := result.group(suite, cell, pass_, dtype):
                _heat_map(axes, rows, f"{NAMES[cell]} {title}")
            else:
                axes.axis("off")
    figure.suptitle(f"Times faster than torch.nn\n{machine_line(result)}", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _heat_map(axes: Axes, rows: list[Row], title: str) -> None:
    hidden = sorted({row.case.H for row in rows})
    batch = sorted({row.case.B for row in rows})
    values = np.full((len(hidden), len(batch)), np.nan)
    for row in rows:
        values[hidden.index(row.case.H), batch.index(row.case.B)] = row.ratio
    shades = np.clip(np.log2(values), _SCALE.vmin, _SCALE.vmax)
    axes.imshow(shades, cmap="RdBu", norm=_SCALE, aspect="auto")
    for i, j in np.argwhere(~np.isnan(values)):
        ink = "white" if abs(_SCALE(shades[i, j]) - 0.5) > 0.33 else "black"
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_title(f"{title}: {geometric_mean(row.ratio for row in rows):.2f}", fontsize=8)
    axes.set_xticks(range(len(batch)), [f"B={b}" for b in batch], fontsize=7)
    axes.set_yticks(range(len(hidden)), [f"H={h}" for h in hidden], fontsize=7)
    axes.tick_params(length=0)


def against_length(result: Result, path: Path) -> bool:
    passes = [
        p
        for p in ("inference", "training")
        if any(r.case.suite == "length" and r.case.pass_ == p for r in result.rows)
    ]
    if not passes:
        return False
    figure, grid = plt.subplots(
        1, len(passes), figsize=(4.2 * len(passes), 3.4), squeeze=False, layout="constrained"
    )
    for axes, pass_ in zip(grid[0], passes, strict=True):
        for color, cell in zip(("tab:blue", "tab:orange"), ("lstm", "gru"), strict=True):
            rows = sorted(result.group("length", cell, pass_, "float32"), key=lambda row: row.case.T)
            for library, style in (("torch.nn", "--"), ("fastrnn", "-")):
                times = [row.times[library].minimum * 1e6 for row in rows]
                label = f"{library} {NAMES[cell]}"
                axes.plot([row.case.T for row in rows], times, style, color=color, marker=".", label=label)
        axes.set(
            xscale="log", yscale="log", xlabel="T", ylabel="microseconds", title=f"{pass_}, H=256, B=8"
        )
        lengths = sorted({row.case.T for row in result.rows if row.case.suite == "length"})
        axes.set_xticks(lengths, [str(T) for T in lengths])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.grid(alpha=0.3)
    grid[0][0].legend(fontsize=8)
    figure.suptitle(machine_line(result), fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
