"""A result as Markdown."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from benchmarks.machine import bytes_text
from benchmarks.quiet import MAX_OTHERS, Look
from benchmarks.results import Result, Row, geometric_mean, worst
from benchmarks.shapes import deepbench, deepbench_all

NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
_SUITES = {
    "grid": "",
    "high": ', `set_float32_matmul_precision("high")`',
    "step": ", one step (T=1) of the layer with a state",
    "cell": ", one step of the Cell with a state",
    "stacked": ", 2 layers, bidirectional",
    "length": ", time against T",
    "deepbench": ", DeepBench's shapes",
    "peers": ", next to other libraries",
    "int8": ", int8 next to other libraries",
    "stream": ", one step after another (`fastrnn.stream`) next to other libraries",
}
NEXT_TO_OTHERS = ("peers", "int8", "stream")
_DISTURBED = "\u2020"


def title(group: tuple[str, str, str, str]) -> str:
    suite, cell, pass_, dtype = group
    return f"{NAMES[cell]} {pass_}, {dtype}{_SUITES[suite]}"


def microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def table(header: list[str], lines: list[list[str]], left: int = 1) -> str:
    """Aligns the first `left` columns to the left and the others to the right."""
    align = ["left"] * left + ["right"] * (len(header) - left)
    return str(tabulate(lines, header, tablefmt="github", colalign=align, disable_numparse=True))


def warning(looks: tuple[Look, Look], others: float) -> str:
    """A warning if the machine was too busy, else an empty string."""
    when = zip(("Before", "After"), looks, strict=True)
    said = [f"{name} the run {look}." for name, look in when if look.busy]
    if others > MAX_OTHERS:
        said.append(f"Over the run, other programs used {others:.2f} cores on average.")
    if not said:
        return ""
    return " ".join(["**THE MACHINE WAS TOO BUSY: do not trust these figures.**", *said])


def markdown(result: Result, plots: dict[str, Path]) -> str:
    """The whole report. plots: title -> file in the same folder."""
    parts = ["# fastrnn against torch.nn", machine_line(result)]
    parts += [f"> {text}" for text in [warning(result.looks, result.others), *result.notes] if text]
    parts += [_machine_table(result), _how_to_read(result)]
    parts += ["## Geometric means", summary_table(result)]
    parts += [f"![{name}]({path.name})" for name, path in plots.items()]
    parts += ["## Every shape"]
    for group in result.groups():
        rows = result.group(*group)
        parts += [
            f"### {title(group)}",
            _peers_table(rows) if group[0] in NEXT_TO_OTHERS else _table(rows, result),
        ]
        if group[0] == "deepbench":
            parts.append(_left_out(*group[1:3]))
    return "\n\n".join(part for part in parts if part) + "\n"


def machine_line(result: Result) -> str:
    facts = result.machine
    return (
        f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores, {facts['target']} kernels, "
        f"torch {facts['torch']}, fastrnn {facts['fastrnn']}, {result.date[:10]}"
    )


def _machine_table(result: Result) -> str:
    facts, peaks = result.machine, result.peaks
    lines = [[name, str(value)] for name, value in facts.items() if name != "caches"]
    lines.append(
        ["caches", ", ".join(f"{name} {bytes_text(size)}" for name, size in facts["caches"].items())]
    )
    lines += [[f"{dtype} products, peak", f"{rate:.0f} GFLOP/s"] for dtype, rate in peaks.gflops.items()]
    if peaks.l2_read is not None:
        lines.append(["L2 reads, peak", f"{peaks.l2_read:.0f} GB/s"])
    if trips := sorted(row.round_trip for row in result.rows if row.round_trip is not None):
        far = sum(trip > 2 * trips[0] for trip in trips)
        extent = f"{trips[0]:.0f} to {trips[-1]:.0f} ns"
        seen = f"{extent}, over twice the minimum before {far} of {len(trips)} cases"
        lines.append(["a cache line to another core and back", seen])
    lines.append(
        [
            "cores used by other programs",
            f"{result.others:.2f} on average, over {result.minutes:.1f} minutes",
        ]
    )
    return table(["machine", ""], lines, left=2)


def _how_to_read(result: Result) -> str:
    disturbed = f" {_DISTURBED} marks rows measured while other programs used over {MAX_OTHERS} cores."
    return (
        "torch.nn and fastrnn take turns in one process with the same weights. A time is the minimum over "
        "the rounds (the JSON file has the medians). The ratio is torch.nn's time divided by fastrnn's: "
        "more is better. I = H. A training step is forward and backward to the input and all parameters, "
        "without an optimizer. GFLOP/s counts only the matrix products; the share of peak is relative to "
        "this machine's fastest product in the same dtype, measured just before. The L2 bound, for batch "
        "1, is the time to read w_hh from the L2 caches at each step plus the input projection at peak."
        + (disturbed if any(is_disturbed(row) for row in result.rows) else "")
    )


def is_disturbed(row: Row) -> bool:
    return row.others > MAX_OTHERS


def summary_table(result: Result) -> str:
    lines = []
    for group in result.groups():
        rows = result.group(*group)
        low = worst(rows)
        lines.append(
            [title(group), *mean_and_worst(rows), low.case.shape, f"{max(r.ratio for r in rows):.2f}"]
        )
    return table(["", "geometric mean", "worst", "at", "best"], lines)


def mean_and_worst(rows: list[Row]) -> tuple[str, str]:
    return f"{geometric_mean(row.ratio for row in rows):.2f}", f"{worst(rows).ratio:.2f}"


def _table(rows: list[Row], result: Result) -> str:
    has_l2 = any(row.share_of_l2(result.peaks) is not None for row in rows)
    header = ["shape", "torch.nn us", "fastrnn us", "ratio", "GFLOP/s", "of peak"]
    lines = [
        [
            row.case.shape + (f" {_DISTURBED}" if is_disturbed(row) else ""),
            microseconds(row.times["torch.nn"].minimum),
            microseconds(row.seconds),
            f"{row.ratio:.2f}",
            f"{row.gflops:.1f}",
            f"{row.share_of_peak(result.peaks):.0%}",
        ]
        + ([_percent(row.share_of_l2(result.peaks))] if has_l2 else [])
        for row in rows
    ]
    header += ["of L2 bound"] if has_l2 else []
    return table(header, lines + _closing(rows, len(header), 3))


def _peers_table(rows: list[Row]) -> str:
    """Times of all libraries, and the ratio of each to fastrnn."""
    names = [name for name in rows[0].times if name != "fastrnn"]
    header = [
        "shape",
        "fastrnn us",
        *(f"{name} us" for name in names),
        *(f"ratio to {name}" for name in names),
    ]
    lines = [
        [
            row.case.shape + (f" {_DISTURBED}" if is_disturbed(row) else ""),
            *(microseconds(row.times[name].minimum) for name in ("fastrnn", *names)),
            *(f"{row.ratio_to(name):.2f}" for name in names),
        ]
        for row in rows
    ]
    blank = [""] * (1 + len(names))
    means = [f"{geometric_mean(row.ratio_to(name) for row in rows):.2f}" for name in names]
    lows = [f"{min(row.ratio_to(name) for row in rows):.2f}" for name in names]
    return table(header, [*lines, ["geometric mean", *blank, *means], ["worst", *blank, *lows]])


def _closing(rows: list[Row], width: int, column: int) -> list[list[str]]:
    """The last two lines of a table, with the figure in the given column."""
    mean, low = mean_and_worst(rows)
    closing = [["geometric mean", mean], [f"worst: {worst(rows).case.shape}", low]]
    return [[name, *[""] * (column - 1), figure, *[""] * (width - column - 1)] for name, figure in closing]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _left_out(cell: str, pass_: str) -> str:
    """Which of DeepBench's shapes are not measured."""
    measured = set(deepbench())
    left = [
        case.shape
        for case in deepbench_all()
        if (case.cell, case.pass_) == (cell, pass_) and case not in measured
    ]
    if not left:
        return ""
    return f"Left out as too large, over a second a call by the rule in shapes.py: {', '.join(left)}."
