"""The README's part about speed, written from a result."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.report import NAMES, machine_line, mean_and_worst, summary_table, table, warning
from benchmarks.results import Result, load, newest

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def rewrite(readme: Path, folder: Path) -> Path:
    """Puts the newest complete result of the folder between the README's marks; returns its file.

    Raises:
        FileNotFoundError: there is no complete result.
        ValueError: the README does not have the marks, once each and in order.
    """
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} must have one {BEGIN} and one {END} after it")
    source = newest(folder)
    where = Path(os.path.relpath(source.parent, readme.parent))
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{part(load(source), source.stem, where)}\n{END}{after}")
    return source


def part(result: Result, stem: str, where: Path) -> str:
    """Markdown: the machine, the float32 grid, the plots, the means of all else.

    where: the result's folder, relative to the README.
    """
    kinds = [(cell, pass_) for cell in ("lstm", "gru") for pass_ in ("inference", "training")]
    groups = {kind: result.group("grid", *kind, "float32") for kind in kinds}
    header = ["ratio to torch.nn", *(f"{NAMES[cell]} {pass_}" for cell, pass_ in kinds)]
    shapes = [row.case.shape for row in groups[kinds[0]]]
    ratios = [{row.case.shape: f"{row.ratio:.2f}" for row in rows} for rows in groups.values()]
    lines = [[shape, *(found[shape] for found in ratios)] for shape in shapes]
    means, lows = zip(*(mean_and_worst(rows) for rows in groups.values()), strict=True)
    lines += [["**geometric mean**", *means], ["**worst**", *lows]]
    return "\n\n".join(
        text
        for text in (
            f"Measured by `python -m benchmarks` on: {machine_line(result)}. float32, torch.nn and fastrnn "
            "in turns in one process; more is better.",
            warning(result.looks, result.others),
            table(header, lines),
            f"![Ratio to torch.nn over H and B]({where / stem}-ratio.png)",
            "Everything that was measured, the other precisions, single steps, DeepBench's shapes and "
            f"other libraries included ([every shape]({where / stem}.md)):",
            summary_table(result),
            f"![Time against T]({where / stem}-length.png)",
        )
        if text
    )
