"""python -m benchmarks: measure fastrnn against torch.nn and write a report."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import arguments, layers, machine, peaks, peers, publish, quiet, report, results, shapes
from benchmarks.results import Result, Row
from benchmarks.shapes import Case
from benchmarks.timing import interleave

# The threads of other libraries spin for a while after a call.
_PEERS_SETTLE_S = 20e-3


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="float32 and single steps only; takes a minute"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only cases with this in their id (wildcards; may be repeated): --only 'grid/lstm/*/H256-B8'",
    )
    parser.add_argument("--list", action="store_true", help="print the ids of the cases and stop")
    parser.add_argument(
        "--threads", type=arguments.positive_int, help="threads of torch (default: torch's own choice)"
    )
    parser.add_argument(
        "--seconds", type=arguments.seconds, help="at least this long for each case (default 1, quick 0.25)"
    )
    parser.add_argument(
        "--busy", action="store_true", help="measure on a busy machine, with a warning in the report"
    )
    parser.add_argument("--out", type=arguments.folder, default=results.FOLDER, help="folder to write to")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="measure nothing: write the newest complete result into README.md and docs/performance.md",
    )
    return parser.parse_args(argv)


def measure(case: Case, seconds: float, rounds: int) -> Row:
    calls = layers.calls(case)
    others = {
        "peers": peers.available,
        "int8": lambda: peers.int8_available(case.cell),
        "stream": peers.stream_available,
    }
    if case.suite in others:
        calls |= {name: make(case) for name, make in others[case.suite]().items()}
    settle = _PEERS_SETTLE_S if case.suite in others else 0.0
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
        notes.append("A quick look with few rounds, not a result.")
    missing = {"ONNX Runtime": "onnxruntime and onnx", "OpenVINO": "openvino and onnx"}
    for name, packages in missing.items():
        if any(case.suite == "peers" for case in cases) and name not in peers.available():
            notes.append(f"{name} was not measured: install {packages}.")
    if args.only:
        notes.append(f"Only a part of the cases: {', '.join(args.only)}.")
    try:
        with tqdm(cases, unit="case", disable=None) as progress:
            for case in progress:
                progress.set_postfix_str(case.id)
                # Single steps settle quickly: leave the time to large shapes.
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
    """Writes JSON, Markdown and plots, named by date and machine; returns the Markdown file."""
    stem = folder / f"{result.date[:10]}-{machine.slug(result.machine)}{kind}"
    results.save(result, stem.with_name(f"{stem.name}.json"))
    from benchmarks import plots  # matplotlib imports slowly and prints at its first call

    text = report.markdown(result, plots.draw(result, stem))
    path = stem.with_name(f"{stem.name}.md")
    path.write_text(text)
    return path


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.publish:
        try:
            print(f"published {publish.publish(publish.PAGES, args.out)}")
        except (FileNotFoundError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    cases = shapes.select(shapes.quick() if args.quick else shapes.every(), args.only)
    if args.list or not cases:
        print(
            "\n".join(case.id for case in cases) or f"no case id matches {args.only}; --list shows all ids"
        )
        return 0 if cases else 1
    before = quiet.look()
    if before.busy:
        print(f"THE MACHINE IS TOO BUSY to measure: {before}.", file=sys.stderr)
        if not args.busy:
            print("Wait until it is idle, or pass --busy to measure anyway.", file=sys.stderr)
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
