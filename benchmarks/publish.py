"""Write the newest complete result into README.md and docs/performance.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import (
    NAMES,
    NEXT_TO_OTHERS,
    machine_line,
    mean_and_worst,
    summary_table,
    table,
    warning,
)
from benchmarks.results import Result, Row, geometric_mean, load, newest
from benchmarks.shapes import BATCH

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs/performance.md")

# A page marks each block as <!-- bench:NAME --> ... <!-- bench:end -->.
_BLOCK = re.compile(r"<!-- bench:(?!end)(\w+) -->\n(.*?)<!-- bench:end -->", re.DOTALL)
_PASSES = ("inference", "training")
_COLUMNS = [(cell, pass_) for cell in ("lstm", "gru") for pass_ in _PASSES]


def publish(pages: tuple[Path, ...], folder: Path) -> Path:
    """Rewrites the marked blocks of all pages from the newest complete result; returns its file.

    Raises:
        FileNotFoundError: the folder has no complete result.
        ValueError: a page has no marked block, or one with an unknown name.
    """
    source = newest(folder)
    result = load(source)
    written = {page: _with_blocks(page, result, source) for page in pages}
    for page, text in written.items():
        page.write_text(text)
    return source


def _with_blocks(page: Path, result: Result, source: Path) -> str:
    files = os.path.relpath(source.with_suffix(""), page.parent)

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in _BLOCKS:
            raise ValueError(f"{page} has a block bench:{name}, expected one of {', '.join(_BLOCKS)}")
        return f"<!-- bench:{name} -->\n\n{_BLOCKS[name](result, files)}\n\n<!-- bench:end -->"

    text, count = _BLOCK.subn(block, page.read_text())
    if not count:
        raise ValueError(f"{page} has no block to write: mark one with <!-- bench:NAME --> and bench:end")
    return text


def gains(result: Result, files: str) -> str:
    """Three lines: the float32 grid of each cell as geometric mean, lowest and highest; and the machine."""
    lines = []
    for cell, name in NAMES.items():
        rows = [result.group("grid", cell, pass_, "float32") for pass_ in _PASSES]
        lines.append([f"`{name}`", *(_mean_and_range(group) for group in rows)])
    return _joined(
        table(["torch.nn's time divided by fastrnn's, float32", *_PASSES], lines),
        f"Measured on {machine_line(result)}.",
    )


def speed(result: Result, files: str) -> str:
    """The short table: geometric means by batch size, and of the other suites."""
    lines = [
        [f"float32, B={B}", *_means(result, "grid", "float32", lambda row, B=B: row.case.B == B)]
        for B in BATCH
    ]
    lines += [
        ["bfloat16", *_means(result, "grid", "bfloat16")],
        ["float32, one step (T=1)", *_means(result, "step", "float32")],
        ["float32, 2 layers, bidirectional", *_means(result, "stacked", "float32")],
    ]
    header = ["geometric mean of the ratios", *(f"{NAMES[cell]} {pass_}" for cell, pass_ in _COLUMNS)]
    return _joined(
        f"torch.nn's time divided by fastrnn's, on {machine_line(result)}:",
        warning(result.looks, result.others),
        table(header, lines),
        others(result),
    )


def others(result: Result) -> str:
    """Geometric mean and worst ratio to each other library; empty for what a suite does not measure."""
    kinds = {"peers": "", "int8": ", fastrnn in int8", "stream": ", one step after another"}
    lines = []
    for suite in NEXT_TO_OTHERS:
        groups = [result.group(suite, cell, "inference", "float32") for cell in ("lstm", "gru")]
        names = dict.fromkeys(name for rows in groups for row in rows for name in row.times)
        lines += [
            [f"{name}{kinds[suite]}", *(_mean_and_range_to(rows, name) for rows in groups)]
            for name in names
            if not name.startswith(("fastrnn", "torch.nn"))
        ]
    header = ["other library's time divided by fastrnn's: geometric mean, range", "LSTM", "GRU"]
    return table(header, lines)


def _mean_and_range_to(rows: list[Row], library: str) -> str:
    """Of prepacked weights, if they were measured: such libraries pack the weights beforehand, too."""
    ratios = [
        row.times[library].minimum / row.times.get("fastrnn prepacked", row.times["fastrnn"]).minimum
        for row in rows
        if library in row.times
    ]
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def full(result: Result, files: str) -> str:
    """The float32 grid, the plots, and a line for each suite. files: the result's, without extension."""
    groups = {column: result.group("grid", *column, "float32") for column in _COLUMNS}
    header = ["ratio to torch.nn", *(f"{NAMES[cell]} {pass_}" for cell, pass_ in _COLUMNS)]
    shapes = [row.case.shape for row in groups[_COLUMNS[0]]]
    ratios = [{row.case.shape: f"{row.ratio:.2f}" for row in rows} for rows in groups.values()]
    lines = [[shape, *(found[shape] for found in ratios)] for shape in shapes]
    means, lows = zip(*(mean_and_worst(rows) for rows in groups.values()), strict=True)
    lines += [["**geometric mean**", *means], ["**worst**", *lows]]
    return _joined(
        f"Measured on {machine_line(result)}.",
        warning(result.looks, result.others),
        table(header, lines),
        f"![Ratio to torch.nn over H and B]({files}-ratio.png)",
        f"A row is a suite of shapes; [the whole report]({files}.md) has every shape.",
        summary_table(result),
        f"![Time against T]({files}-length.png)",
    )


_BLOCKS: dict[str, Callable[[Result, str], str]] = {"gains": gains, "speed": speed, "full": full}


def _mean_and_range(rows: list[Row]) -> str:
    ratios = [row.ratio for row in rows]
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _means(
    result: Result, suite: str, dtype: str, keep: Callable[[Row], bool] = lambda row: True
) -> list[str]:
    """A figure a column; empty for what the suite does not measure."""
    means = []
    for column in _COLUMNS:
        ratios = [row.ratio for row in result.group(suite, *column, dtype) if keep(row)]
        means.append(f"{geometric_mean(ratios):.2f}" if ratios else "")
    return means


def _joined(*paragraphs: str) -> str:
    return "\n\n".join(text for text in paragraphs if text)
