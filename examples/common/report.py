"""The output of an example: tables, results against expectations, equality and the speed ratio."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from common import distributed
from common.checkpoint import write_atomically
from common.training import Run, first_difference, speed_ratio

ROUNDING = 1e-3  # relative difference of the first losses that float32 rounding explains


def say(text: str = "") -> None:
    """Prints, in the first process only."""
    if distributed.rank() == 0:
        print(text, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text columns, the first aligned left and the others right; floats with four digits.

    >>> print(table(("layer", "error"), [("LSTM", 0.12345), ("GRU", 7)]))
    layer   error
    LSTM   0.1235
    GRU         7
    """
    cells = [list(header)] + [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first, *rest = zip(row, widths, strict=True)
        columns = [first[0].ljust(first[1])] + [cell.rjust(width) for cell, width in rest]
        lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


class Report:
    """Collects an example's figures and expectations, prints them at the end and writes them as JSON."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        self.path: Path = args.out / f"{name}.json"
        self.figures: dict[str, object] = {
            "quick": args.quick,
            "impls": args.impls,
            "seed": args.seed,
            "processes": args.world.size,
        }
        self._lines: list[str] = []
        self.missed = False

    def expect(
        self, what: str, value: float, *, least: float | None = None, most: float | None = None
    ) -> None:
        """Adds a result and its bound."""
        bound = f"at least {least:.4g}" if least is not None else f"at most {most:.4g}"
        reached = value >= least if least is not None else value <= most
        self.missed |= not reached
        self.figures[what] = value
        verdict = "reached" if reached else "MISSED"
        self._lines.append(f"  {what}: {value:.4g}, expected {bound}: {verdict}")

    def same_in_both(self, what: str, values: Sequence[float], noise: float) -> None:
        """Adds that the implementations' results differ no more than with another seed."""
        if len(values) > 1:
            spread = max(values) - min(values)
            self.expect(f"difference in {what} between torch and fastrnn", spread, most=noise)

    def same_start(self, runs: list[Run]) -> None:
        """Adds that the implementations' first losses agree within rounding."""
        if len(runs) > 1:
            what = "relative difference of the first losses"
            self.expect(what, first_difference(runs), most=ROUNDING)

    def finish(self, runs: list[Run]) -> int:
        """Prints results and speeds and writes the figures; returns the exit code.

        It is 1 if an expectation was missed, but 0 under torchrun, which would restart all processes.
        """
        say("\nResult")
        say("\n".join(self._lines))
        for run in runs:
            self.figures[f"{run.impl} tokens/s"] = run.speed
        speeds = ", ".join(f"{run.impl} {run.speed:,.0f} tokens/s" for run in runs)
        ratio = speed_ratio(runs)
        if runs and not runs[0].losses:
            say("  no speed: there was no step left to train")
        elif runs and ratio is None:
            say(f"  speed in training: {speeds} (no ratio: only one implementation ran)")
        elif ratio is not None:
            self.figures["speed ratio"] = ratio
            say(f"  speed in training: {speeds}; fastrnn is {ratio:.2f} times as fast")
        text = json.dumps(self.figures, indent=2) + "\n"
        write_atomically(self.path, lambda temporary: Path(temporary).write_text(text))
        say(f"  figures in {self.path}")
        return 1 if self.missed and not dist.is_torchelastic_launched() else 0
