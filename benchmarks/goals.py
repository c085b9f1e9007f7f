"""What the layers are to reach, and whether a result has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import Result, Row, geometric_mean, worst
from benchmarks.shapes import every

# A ratio within it of 1.0 is as good as 1.0.
NOISE = 0.03


@dataclass(frozen=True)
class Goal:
    """For one group of rows: a geometric mean of ratios to torch.nn, and what no row may be under."""

    suite: str
    cell: str
    pass_: str
    dtype: str
    mean: float | None
    least: float
    only_large: bool = False  # B >= 8 and H >= 256

    def covers(self, row: Row) -> bool:
        case = row.case
        is_group = case.group == (self.suite, self.cell, self.pass_, self.dtype)
        return is_group and (not self.only_large or (case.B >= 8 and case.H >= 256))


GOALS = (
    Goal("grid", "lstm", "inference", "float32", 1.8, 1.0),
    Goal("grid", "gru", "inference", "float32", 3.0, 1.0),
    Goal("grid", "lstm", "training", "float32", 1.45, 1.0),
    Goal("grid", "gru", "training", "float32", 2.8, 1.0),
    Goal("grid", "lstm", "inference", "bfloat16", 2.2, 1.0),
    Goal("grid", "gru", "inference", "bfloat16", 6.0, 1.0),
    Goal("grid", "lstm", "training", "bfloat16", 1.6, 1.0),
    Goal("grid", "gru", "training", "bfloat16", 3.0, 1.0),
    Goal("high", "lstm", "inference", "float32", 2.2, 1.5, only_large=True),
    Goal("high", "gru", "inference", "float32", 2.6, 1.5, only_large=True),
    Goal("step", "lstm", "inference", "float32", 6.0, 1.5),
    Goal("step", "gru", "inference", "float32", None, 1.5),
    Goal("cell", "lstm", "inference", "float32", 2.0, 1.5),
    Goal("cell", "gru", "inference", "float32", 2.0, 1.5),
    Goal("stacked", "lstm", "inference", "float32", 1.8, 1.0),
    Goal("stacked", "gru", "inference", "float32", 3.0, 1.0),
)


@dataclass(frozen=True)
class Verdict:
    """A goal beside what was measured.

    Attributes:
        what: the figure, in words.
        wanted, got: it.
        where: the row that it is of, for a least figure.
        rows: how many rows of how many there are.
    """

    what: str
    goal: Goal | None
    wanted: float
    got: float
    where: str
    rows: tuple[int, int]

    @property
    def is_met(self) -> bool:
        noise = NOISE if self.wanted == 1.0 and self.goal is not None else 0.0
        return self.got >= self.wanted - noise


def verdicts(result: Result) -> list[Verdict]:
    """Of the goals of which any row was measured."""
    found = []
    for goal in GOALS:
        rows = [row for row in result.rows if goal.covers(row)]
        if not rows:
            continue
        count = len(rows), sum(goal.covers(Row(case, {}, 0.0)) for case in every())
        if goal.mean is not None:
            mean = geometric_mean(row.ratio for row in rows)
            found.append(Verdict("geometric mean", goal, goal.mean, mean, "", count))
        low = worst(rows)
        found.append(Verdict("worst", goal, goal.least, low.ratio, low.case.shape, count))
    return found + _share_verdicts(result)


def _share_verdicts(result: Result) -> list[Verdict]:
    peaks = result.peaks

    def is_large(row: Row, pass_: str) -> bool:
        case = row.case
        return (case.suite == "grid" and case.cell in ("lstm", "gru") and case.dtype == "float32") and (
            case.pass_ == pass_ and case.B == 64 and case.H >= 512
        )

    def is_small(row: Row) -> bool:
        return row.case.suite == "grid" and row.case.cell in ("lstm", "gru") and row.case.dtype == "float32"

    kinds: list[tuple[str, float, Callable[[Row], float | None]]] = [
        (
            "share of the sgemm peak, inference, B=64, H>=512",
            0.95,
            lambda row: row.share_of_peak(peaks) if is_large(row, "inference") else None,
        ),
        (
            "share of the sgemm peak, training, B=64, H>=512",
            0.85,
            lambda row: row.share_of_peak(peaks) if is_large(row, "training") else None,
        ),
        (
            "share of the L2 bound, inference, B=1, w_hh in the L2 caches",
            0.8,
            lambda row: row.share_of_l2(peaks) if is_small(row) else None,
        ),
    ]
    found = []
    for what, wanted, share in kinds:
        shares = [(value, row) for row in result.rows if (value := share(row)) is not None]
        if shares:
            got, row = min(shares, key=lambda pair: pair[0])
            where = f"{row.case.cell.upper()} {row.case.shape}"
            found.append(Verdict(what, None, wanted, got, where, (len(shares), len(shares))))
    return found
