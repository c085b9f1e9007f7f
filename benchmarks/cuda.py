"""fastrnn's CUDA drivers beside torch.nn (cuDNN), over a grid of shapes: are they right, how fast?

Every driver has a process of its own (benchmarks/cuda_worker.py) that computes one point after another,
in turns with the others. A driver that hangs, faults or raises loses its process and that point alone;
after three times it is left out. Each answer is a line of a .jsonl file as soon as it comes. What the
file has is not computed again, and what was wrong, failed or is not served by a driver is not timed.

Times are medians of CUDA graphs, so that neither package is charged for Python, and of plain calls too at
a tenth of the points. I = H. Two numbers of steps give the time of a step, and of a call without its
steps. A ratio above 1 means that fastrnn is faster.

It runs as a module: as a script it would stand in the way of NVIDIA's own package of the name `cuda`.
With --device cpu everything runs without a GPU: to try this, not to measure.

Example:
    python -m benchmarks.cuda check time --cells lstm --dtypes bf16 --seconds 120 --name h200
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.arguments import folder, positive_int, seconds
from benchmarks.cuda_report import markdown
from benchmarks.cuda_worker import DTYPES, MODULES, NN

HIDDEN = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
BATCH = (1, 8, 16, 32, 64, 128)
STEPS = (64, 256)
START_SECONDS = 60.0  # for a process to import torch and to open the GPU
MOST_FAILURES = 3

Row = dict[str, Any]


class Point(NamedTuple):
    cell: str
    dtype: str
    H: int
    B: int


def points(args: argparse.Namespace) -> list[Point]:
    """All points, the first cell and type first; any first part of either is spread over the grid."""
    found: list[Point] = []
    kinds = [(cell, dtype) for cell in args.cells for dtype in args.dtypes]
    for some in (kinds[:1], kinds[1:]):
        grid = [Point(*kind, H, B) for kind in some for B in args.batch for H in args.hidden]
        stride = next(n for n in (29, 31, 1) if math.gcd(n, len(grid)) == 1) if grid else 1
        found += [grid[i * stride % len(grid)] for i in range(len(grid))]
    return found


class LostError(Exception):
    """A driver's process ended, or did not answer in time."""


class Worker:
    """A driver's process, started when something is asked of it."""

    def __init__(self, driver: str, device: str, log: Path) -> None:
        self.command = [sys.executable, "-m", "benchmarks.cuda_worker", driver, device]
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Row, limit: float) -> Row:
        """Its answer to the request, which may take so many seconds once the process has started."""
        if self.process is None:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            self._next(self.process, START_SECONDS)
        process = self.process
        assert process.stdin
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise LostError(f"ended with status {self.end(wait=5)}") from None
        answer = self._next(process, limit)
        if "failed" in answer:
            self.end()
            raise LostError(answer["failed"])
        return answer

    def _next(self, process: subprocess.Popen[bytes], limit: float) -> Row:
        """The next line of its output."""
        assert process.stdout
        deadline, line = time.monotonic() + limit, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.end()
                    raise LostError(f"no answer in {limit:.0f} s")
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    raise LostError(f"ended with status {self.end(wait=5)}")
                line += part
        answer: Row = json.loads(line)
        return answer

    def end(self, wait: float = 0) -> int | None:
        """Ends the process, which may come to an end by itself within `wait` seconds; its status."""
        if self.process is None:
            return None
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            self.process.kill()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:  # in the kernel, waiting for the device
            return None
        finally:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self.process = None


def read(path: Path) -> list[Row]:
    """The rows of a .jsonl file; a line that was cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


Key = tuple[Any, ...]


def key(row: Row) -> Key:
    return tuple(row.get(name) for name in ("what", "driver", *Point._fields))


def settles(row: Row) -> set[Key]:
    """What need not be asked any more after this row."""
    if row["what"] == "check" and not row.get("right"):
        return {key(row), key(row | {"what": "time"})}
    return set() if "failed" in row else {key(row)}


def rows(args: argparse.Namespace, deadline: float, found: list[Row], logs: Path) -> Iterator[Row]:
    """Asks each driver in turn at each point, until the time is over. `found` is what is known already."""
    workers = {driver: Worker(driver, args.device, logs / f"{driver}.log") for driver in args.drivers}
    failures = {driver: sum("failed" in r and r["driver"] == driver for r in found) for driver in workers}
    settled = {one for row in found for one in settles(row)}
    try:
        for what in args.what:
            for number, point in enumerate(points(args)):
                for driver, worker in workers.items():
                    row: Row = {"what": what, "driver": driver, **point._asdict()}
                    if key(row) in settled or failures[driver] >= MOST_FAILURES:
                        continue
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return
                    request = {
                        **row,
                        "steps": args.steps,
                        "repeats": args.repeats,
                        "plain": number % 10 == 0,
                    }
                    try:
                        row |= worker.ask(request, min(args.limit, left))
                    except LostError as lost:
                        failures[driver] += 1
                        row["failed"] = str(lost)
                    settled |= settles(row)
                    yield row
    finally:
        for worker in workers.values():
            worker.end()


def about(device: str) -> Row:
    """What the figures are of."""
    facts: Row = {"what": "about", "date": datetime.date.today().isoformat(), "device": device}
    if device == "cuda":
        p = torch.cuda.get_device_properties(0)
        facts |= {
            "device": p.name,
            "arch": 10 * p.major + p.minor,
            "multiprocessors": p.multi_processor_count,
            "shared_bytes": p.shared_memory_per_block_optin,
        }
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return facts | {"torch": f"{torch.__version__}, {versions}"}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("what", nargs="+", choices=["check", "time"], help="in this order")
    options.add_argument("--cells", nargs="+", choices=MODULES, default=list(MODULES))
    options.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "tf32"])
    options.add_argument("--hidden", nargs="+", type=positive_int, default=list(HIDDEN))
    options.add_argument("--batch", nargs="+", type=positive_int, default=list(BATCH))
    options.add_argument("--steps", nargs=2, type=positive_int, default=list(STEPS))
    options.add_argument("--drivers", nargs="+", help=f"default: {NN} and all that this build has")
    options.add_argument("--repeats", type=positive_int, default=5)
    options.add_argument("--limit", type=seconds, default=20, help="for a point of a driver")
    options.add_argument("--seconds", type=seconds, default=300, help="stop after this long")
    options.add_argument("--out", type=folder, default=Path(__file__).parent / "results")
    options.add_argument("--name", default="cuda", help="of the result files, after the date")
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return options


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    deadline = time.monotonic() + args.seconds
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.cuda needs a GPU, and torch sees none here", file=sys.stderr)
        return 1
    if not args.drivers:
        import fastrnn  # torch.nn alone is measured while fastrnn is built

        args.drivers = [NN, *fastrnn.build_info()["cuda_drivers"]]
    facts = about(args.device)
    stem = args.out / f"{facts['date']}-{args.name}"
    logs = args.out / f"{stem.name}-logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{stem.name}.jsonl"
    found = read(path)
    with path.open("a") as to:
        if not found:
            to.write(json.dumps(facts) + "\n")
        failed = False
        for row in rows(args, deadline, found, logs):
            failed = failed or "failed" in row or row.get("right") is False
            to.write(json.dumps(row) + "\n")
            to.flush()
    text = markdown(read(path))
    (args.out / f"{stem.name}-times.md").write_text(text)
    print(text.split("\n## Times")[0])
    print(f"written: {path} and {stem.name}-times.md")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
