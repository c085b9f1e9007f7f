"""Measured rows, the figures derived from them, and their file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peaks import Peaks
from benchmarks.quiet import Look
from benchmarks.shapes import Case
from benchmarks.timing import Times

KIND = "fastrnn cpu layers"
FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """The measurement of one case.

    Attributes:
        times: library -> seconds a call.
        others: cores that other programs used during it.
        round_trip: ns for a cache line to another core and back, just before; see peaks.round_trip.
    """

    case: Case
    times: dict[str, Times]
    others: float
    round_trip: float | None = None

    @property
    def seconds(self) -> float:
        return self.times["fastrnn"].minimum

    @property
    def ratio(self) -> float:
        """torch.nn's time over fastrnn's. Of the minima, since other programs only add time."""
        return self.ratio_to("torch.nn")

    @property
    def ratio_of_medians(self) -> float:
        return self.times["torch.nn"].median / self.times["fastrnn"].median

    def ratio_to(self, library: str) -> float:
        return self.times[library].minimum / self.seconds

    @property
    def gflops(self) -> float:
        return self.case.flops / self.seconds / 1e9

    def share_of_peak(self, peaks: Peaks) -> float:
        """GFLOP/s relative to the peak of this machine's matrix products in the same dtype."""
        return self.gflops / peaks.gflops[self.case.dtype]

    def share_of_l2(self, peaks: Peaks) -> float | None:
        """Speed relative to the bound of the L2 caches; None unless batch is 1 and w_hh fits them.

        The bound is the time to read w_hh at every step, plus the input projection of all steps as one
        product at peak.
        """
        case = self.case
        if peaks.l2_read is None or peaks.l2_bytes is None:
            return None
        is_bound_by_reads = (
            case.B == 1 and case.pass_ == "inference" and case.layers == 1 and case.T > 1
        ) and case.recurrent_bytes <= peaks.l2_bytes
        if not is_bound_by_reads:
            return None
        reads = case.T * case.recurrent_bytes / (peaks.l2_read * 1e9)
        return (reads + case.projection_flops / (peaks.gflops[case.dtype] * 1e9)) / self.seconds


@dataclass(frozen=True)
class Result:
    """A run.

    Attributes:
        complete: every case of every suite, at the default time.
        looks: how busy the machine was before and after.
        others: cores that other programs used, on average over the run.
        notes: remarks for the reader.
    """

    date: str
    complete: bool
    machine: dict[str, Any]
    peaks: Peaks
    looks: tuple[Look, Look]
    others: float
    minutes: float
    rows: list[Row]
    notes: list[str]

    def group(self, *group: str) -> list[Row]:
        return [row for row in self.rows if row.case.group == group]

    def groups(self) -> list[tuple[str, str, str, str]]:
        return list(dict.fromkeys(row.case.group for row in self.rows))


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs))


def worst(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.ratio)


def save(result: Result, path: Path) -> None:
    """Writes JSON with one row a line, so that a diff of two results shows the rows that changed."""
    data = {"kind": KIND, **asdict(result)}
    del data["rows"]
    head = json.dumps(data, indent=1).removesuffix("\n}")
    rows = ",\n".join(f"  {json.dumps(_row_data(row, result.peaks))}" for row in result.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n')


def _row_data(row: Row, peaks: Peaks) -> dict[str, Any]:
    """The row with its derived figures, for readers of the file."""
    return {
        "id": row.case.id,
        **asdict(row),
        "ratio": round(row.ratio, 4),
        "ratio_of_medians": round(row.ratio_of_medians, 4),
        "gflops": round(row.gflops, 3),
        "share_of_peak": round(row.share_of_peak(peaks), 4),
        "share_of_l2": None if (share := row.share_of_l2(peaks)) is None else round(share, 4),
    }


def load(path: Path) -> Result:
    data = json.loads(path.read_text())
    if data.pop("kind", None) != KIND:
        raise ValueError(f"{path} is not a result of `python -m benchmarks`")
    data["peaks"] = Peaks(**data["peaks"])
    data["looks"] = tuple(Look(**look) for look in data["looks"])
    data["rows"] = [
        Row(
            Case(**row["case"]),
            {name: Times(**times) for name, times in row["times"].items()},
            row["others"],
            row.get("round_trip"),
        )
        for row in data["rows"]
    ]
    return Result(**data)


def newest(folder: Path) -> Path:
    """The file of the newest complete result in the folder.

    Raises:
        FileNotFoundError: the folder has none.
    """
    dates = {}
    for path in folder.glob("*.json"):
        data = json.loads(path.read_text())
        if isinstance(data, dict) and data.get("kind") == KIND and data["complete"]:
            dates[path] = data["date"]
    if not dates:
        raise FileNotFoundError(f"no complete result in {folder}: run `python -m benchmarks` first")
    return max(dates, key=lambda path: dates[path])
