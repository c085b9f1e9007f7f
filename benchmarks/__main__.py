"""python -m benchmarks: measures fastrnn beside torch.nn and writes a report."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import arguments, layers, machine, peaks, peers, quiet, readme, report, results, shapes
from benchmarks.results import Result, Row
from benchmarks.shapes import Case
from benchmarks.timing import interleave

README = Path(__file__).parent.parent / "README.md"

# Libraries with threads of their own let them spin for a while after a call.
_PEERS_SETTLE_S = 5e-3


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="float32 and single steps only: a minute")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only cases whose id has it (wildcards; may be repeated), as in --only 'grid/lstm/*/H256-B8'",
    )
    parser.add_argument("--list", action="store_true", help="print the ids of the cases and stop")
    parser.add_argument("--threads", type=arguments.positive_int, help="default: torch's own choice")
    parser.add_argument(
        "--seconds", type=arguments.seconds, help="for each case, at least (default 1, quick 0.25)"
    )
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine, and say so")
    parser.add_argument("--out", type=arguments.folder, default=results.FOLDER, help="folder to write to")
    parser.add_argument(
        "--readme", action="store_true", help="only put the newest complete result into README.md"
    )
    return parser.parse_args(argv)


def measure(case: Case, seconds: float, rounds: int) -> Row:
    calls = layers.calls(case)
    if case.suite == "peers":
        calls |= {name: make(case) for name, make in peers.available().items()}
    settle = _PEERS_SETTLE_S if case.suite == "peers" else 0.0
    apart = peaks.round_trip()
    neighbors = quiet.Neighbors()
    with layers.precision_of(case):
        times = interleave(calls, seconds=seconds, rounds=rounds, settle=settle)
    return Row(case, times, neighbors.cores(), apart)


def run(cases: list[Case], args: argparse.Namespace, before: quiet.Look) -> Result:
    seconds = args.seconds or (0.25 if args.quick else 1.0)
    started, neighbors = time.perf_counter(), quiet.Neighbors()
    attained = peaks.measure(seconds)
    rows: list[Row] = []
    notes = []
    if args.quick:
        notes.append("A quick look, with few rounds: not a result.")
    if any(case.suite == "peers" for case in cases) and "ONNX Runtime" not in peers.available():
        notes.append("ONNX Runtime is not measured: onnxruntime and onnx are not installed.")
    if args.only:
        notes.append(f"A part of the cases: {', '.join(args.only)}.")
    try:
        with tqdm(cases, unit="case", disable=None) as progress:
            for case in progress:
                progress.set_postfix_str(case.id)
                # Single steps are settled soon; sums of many seconds are spent on large shapes.
                share = 0.4 if case.T == 1 else 1.0
                rows.append(measure(case, seconds * share, rounds=2 if args.quick else 5))
    except KeyboardInterrupt:
        notes.append(f"Interrupted after {len(rows)} of {len(cases)} cases.")
    return Result(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        complete=len(rows) == len(shapes.every()) and not args.seconds,
        machine=machine.facts(),
        peaks=attained,
        others=neighbors.cores(),
        minutes=(time.perf_counter() - started) / 60,
        looks=(before, quiet.look()),
        rows=rows,
        notes=notes,
    )


def write(result: Result, folder: Path, kind: str) -> Path:
    """JSON, Markdown and plots, named by date and machine; returns the Markdown file."""
    stem = folder / f"{result.date[:10]}-{machine.slug(result.machine)}{kind}"
    results.save(result, stem.with_name(f"{stem.name}.json"))
    from benchmarks import plots  # matplotlib takes its time, and its first call writes to the console

    text = report.markdown(result, plots.draw(result, stem))
    path = stem.with_name(f"{stem.name}.md")
    path.write_text(text)
    return path


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.readme:
        try:
            print(f"{README}: written from {readme.rewrite(README, args.out)}")
        except (FileNotFoundError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    cases = shapes.select(shapes.quick() if args.quick else shapes.every(), args.only)
    if args.list or not cases:
        print(
            "\n".join(case.id for case in cases) or f"no case has any of {args.only} in its id: see --list"
        )
        return 0 if cases else 1
    before = quiet.look()
    if before.busy:
        print(f"THE MACHINE IS TOO BUSY to measure on: {before}.", file=sys.stderr)
        if not args.busy:
            print("Wait until it is quiet, or measure all the same with --busy.", file=sys.stderr)
            return 2
    result = run(cases, args, before)
    if not result.rows:
        return 130
    kind = "" if result.complete else "-quick" if args.quick else "-part"
    path = write(result, args.out, kind)
    print(report.summary_table(result))
    if warning := report.warning(result.looks, result.others):
        print(warning, file=sys.stderr)
    print(f"\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
