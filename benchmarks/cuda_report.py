"""A page from the rows of benchmarks/cuda.py: what failed, the ratios to torch.nn, and all times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.cuda_worker import NN

PASSES = ("inference", "forward", "backward")
Row = dict[str, Any]
Place = tuple[str, str, int, int]  # cell, dtype, H, B


def place(row: Row) -> Place:
    return row["cell"], row["dtype"], row["H"], row["B"]


def line(us: dict[str, float]) -> tuple[float, float]:
    """Microseconds of a step, and of a call beside its steps, from two numbers of steps."""
    (few, short), (many, long) = sorted((int(T), t) for T, t in us.items())
    slope = (long - short) / (many - few)
    return slope, short - few * slope


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    heads = list(heads)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def wrong(rows: list[Row]) -> set[tuple[str, Place]]:
    """Drivers and points whose results failed the check."""
    return {(r["driver"], place(r)) for r in rows if r.get("right") is False}


def failures(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        what = f"{row['driver']}, {' '.join(map(str, place(row)))}"
        if "failed" in row:
            lines.append(f"- {what}: {row['what']}: {row['failed']}")
        elif row.get("right") is False:
            lines.append(f"- {what}: wrong: error {row['error']:.2g}, torch.nn's {row['torch_error']:.2g}")
    return lines or ["None."]


def comparison(rows: list[Row]) -> list[str]:
    """The ratios of torch.nn's times to each driver's, for each number of steps."""
    theirs = {place(r): r["us"] for r in rows if r["driver"] == NN and "us" in r}
    ratios: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row["driver"] == NN or "us" not in row or place(row) not in theirs:
            continue
        for which in PASSES:
            for T, us in row["us"][which].items():
                group = (row["cell"], row["dtype"], which, row["driver"])
                ratios.setdefault(group, []).append(theirs[place(row)][which][T] / us)
    heads = ["cell", "dtype", "pass", "driver", "times", "geometric mean", "worst", "best"]
    return table(
        heads,
        (
            (
                *group,
                len(r),
                f"{math.exp(statistics.fmean(map(math.log, r))):.2f}",
                f"{min(r):.2f}",
                f"{max(r):.2f}",
            )
            for group, r in sorted(ratios.items())
        ),
    )


def times(rows: list[Row], which: str) -> list[str]:
    """A row for each point: of torch.nn and each driver us of a step + us of a call without its steps."""
    drivers = list(dict.fromkeys(r["driver"] for r in rows if "us" in r))
    drivers.sort(key=lambda driver: driver != NN)
    by_place: dict[Place, dict[str, Row]] = {}
    for row in rows:
        if "us" in row:
            by_place.setdefault(place(row), {})[row["driver"]] = row
    lines = []
    for where, of in sorted(by_place.items()):
        cells: list[Any] = [*where]
        for driver in drivers:
            slope, start = line(of[driver]["us"][which]) if driver in of else (math.nan, math.nan)
            cells.append(f"{slope:.2f} + {start:.0f}" if driver in of else "")
        total = {driver: sum(row["us"][which].values()) for driver, row in of.items()}
        ours = {driver: us for driver, us in total.items() if driver != NN}
        best = min(ours, key=lambda driver: ours[driver], default="")
        cells += [best, f"{total[NN] / ours[best]:.2f}" if best and NN in total else ""]
        lines.append(cells)
    return table(["cell", "dtype", "H", "B", *(f"{d}, us" for d in drivers), "fastest", "ratio"], lines)


def markdown(found: list[Row]) -> str:
    """The page. Times of a driver whose results were wrong at a point are left out there."""
    facts = next((r for r in found if r["what"] == "about"), {})
    rows = [r for r in found if r["what"] != "about"]
    bad = wrong(rows)
    good = [r for r in rows if (r["driver"], place(r)) not in bad]
    lines = ["# CUDA drivers beside torch.nn", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "what"]
    checked = [r for r in rows if r["what"] == "check" and r.get("served")]
    lines += [f"- checked: {len(checked)} points of drivers, {len(bad)} wrong", ""]
    lines += ["## What failed", "", *failures(rows), "", "## Ratios", "", *comparison(good)]
    for which in PASSES:
        lines += [f"## Times of {which}", "", *times(good, which)]
    return "\n".join(lines)
