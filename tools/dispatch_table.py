"""Writes csrc/cuda/measured.h: where a driver was measured to be faster than the step driver and torch.nn.

Reads the .jsonl files that benchmarks/cuda.py wrote on a GPU; of one shape in several files the last
counts. A driver wins at a hidden size and batch if its results were right there and it took at least 5
percent less time than both at every number of steps measured; of several the fastest does. A row is a
rectangle of neighboring points that one driver won, and it holds between them too.

Example:
    python tools/dispatch_table.py benchmarks/results/2026-12-01-gpu-check.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.cuda_report import place, wrong
from benchmarks.cuda_worker import NN

HEADER = Path(__file__).resolve().parent.parent / "csrc/cuda/measured.h"
TYPES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "float32"}
LEAST_GAIN = 1.05


@dataclass(frozen=True)
class Problem:
    """What a row of the table is about, beside sizes."""

    arch: int
    cell: str
    dtype: str
    backward: bool


@dataclass(frozen=True)
class Win:
    """A driver's least advantage over the step driver and torch.nn in a range of measured sizes."""

    driver: str
    ratio: float
    step_us: float
    us: float
    T: int
    H: int
    B: int
    fewest: int  # steps that were measured


Times = dict[str, float]  # microseconds by driver
Points = dict[tuple[int, int], dict[int, Times]]  # (H, B) -> T -> times


def read(results: Iterable[list[dict[str, Any]]]) -> dict[Problem, Points]:
    """Times by problem and size, of drivers whose results were right."""
    whole: dict[tuple[Problem, int, int, int], Times] = {}
    for about, *rows in results:
        if "arch" not in about:
            raise ValueError(f"figures of {about.get('device')}, which is no GPU, choose no driver")
        bad = wrong(rows)
        for row in rows:
            if "us" not in row or row["dtype"] not in TYPES or (row["driver"], place(row)) in bad:
                continue
            for which, of_steps in row["us"].items():
                if which == "inference":
                    continue
                problem = Problem(about["arch"], row["cell"], row["dtype"], which == "backward")
                for T, us in of_steps.items():
                    times = whole.setdefault((problem, row["H"], row["B"], int(T)), {})
                    times[row["driver"]] = us
    found: dict[Problem, Points] = {}
    for (problem, H, B, T), times in whole.items():
        found.setdefault(problem, {}).setdefault((H, B), {})[T] = times
    return found


def winner(point: dict[int, Times]) -> Win | None:
    """The driver to take at one size, from its times at every number of steps."""
    wins = []
    for driver in {who for times in point.values() for who in times} - {"step", NN}:
        ratios = [
            (min(times["step"], times[NN]) / times[driver], T)
            if {driver, "step", NN} <= times.keys()
            else (0.0, T)
            for T, times in point.items()
        ]
        ratio, T = min(ratios)
        if ratio >= LEAST_GAIN:
            wins.append(Win(driver, ratio, point[T]["step"], point[T][driver], T, 0, 0, min(point)))
    return max(wins, key=lambda win: (win.ratio, win.driver), default=None)


def rectangles(points: Points) -> list[tuple[range, range, Win]]:
    """The largest rectangles of neighboring points with one winner: H, B, and the least win inside."""
    hidden, batch = sorted({H for H, _ in points}), sorted({B for _, B in points})
    won = {
        (i, j): replace(win, H=H, B=B)
        for i, H in enumerate(hidden)
        for j, B in enumerate(batch)
        if (H, B) in points and (win := winner(points[H, B]))
    }
    found: list[tuple[range, range, str]] = []
    # Larger ones first, so that what they contain is seen to be contained.
    spans = [(a, b) for a in range(len(hidden)) for b in range(a, len(hidden))]
    bands = [(a, b) for a in range(len(batch)) for b in range(a, len(batch))]
    every = [(range(i, j + 1), range(k, m + 1)) for i, j in spans for k, m in bands]
    for rows, columns in sorted(every, key=lambda r: -len(r[0]) * len(r[1])):
        drivers = {won[i, j].driver if (i, j) in won else None for i in rows for j in columns}
        if len(drivers) != 1 or None in drivers:
            continue
        if not any(set(rows) <= set(r) and set(columns) <= set(c) for r, c, _ in found):
            found.append((rows, columns, drivers.pop()))
    table = []
    for rows, columns, _ in found:
        inside = [won[i, j] for i in rows for j in columns]
        least = replace(min(inside, key=lambda w: w.ratio), fewest=max(w.fewest for w in inside))
        table.append(
            (
                range(hidden[rows[0]], hidden[rows[-1]] + 1),
                range(batch[columns[0]], batch[columns[-1]] + 1),
                least,
            )
        )
    return sorted(table, key=lambda entry: (entry[0].start, entry[1].start))


def render(results: list[list[dict[str, Any]]]) -> str:
    """The header's text."""
    lines: list[str] = []
    for problem, points in sorted(read(results).items(), key=lambda item: repr(item[0])):
        key = f"{problem.arch}, CellId::{problem.cell}, Type::{TYPES[problem.dtype]}, "
        key += "Pass::backward" if problem.backward else "Pass::forward"
        for hidden, batch, win in rectangles(points):
            sizes = f"{hidden.start}, {hidden.stop - 1}, {batch.start}, {batch.stop - 1}"
            lines += [
                f"    // H {win.H}, B {win.B}, T {win.T}: step {win.step_us:.0f} us, {win.us:.0f} us",
                f'    {{"{win.driver}", {key}, {win.fewest}, {sizes}, {win.ratio:.2f}}},',
            ]
    count = sum(line.startswith("    {") for line in lines)
    abouts = [rows[0] for rows in results]
    sources = [f"// {a['date']}, {a['device']}, torch {a['torch']}" for a in abouts]
    body = ["inline constexpr std::array<Measured, 0> measured{};"]
    if count:
        body = [f"inline constexpr std::array<Measured, {count}> measured{{{{", *lines, "}};"]
    return "\n".join(
        [
            "// Written by tools/dispatch_table.py from what benchmarks/cuda.py measured; not by hand.",
            "#pragma once",
            "",
            "#include <array>",
            "",
            '#include "cuda/problem.h"',
            "",
            "namespace fastrnn::cuda {",
            "",
            "// clang-format off",
            *(sources or ["// No GPU has measured a driver yet."]),
            *body,
            "// clang-format on",
            "",
            "}  // namespace fastrnn::cuda",
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", nargs="+", type=Path, help="what benchmarks/cuda.py wrote, the latest last"
    )
    parser.add_argument("--to", type=Path, default=HEADER)
    args = parser.parse_args(arguments)
    try:
        text = render([[json.loads(row) for row in path.read_text().splitlines()] for path in args.results])
    except (OSError, ValueError, KeyError) as error:
        print(f"dispatch_table: {error}", file=sys.stderr)
        return 1
    args.to.write_text(text)
    print(f"{text.count('Pass::')} rows written to {args.to}; they count from the next build on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
