"""fastrnn beside torch.nn (cuDNN) on a GPU, over the whole grid of shapes, with each of its drivers.

All run in one process on the same weights, interleaved, I = H, on inputs that rotate through more memory
than the L2 cache holds; times are medians of CUDA events. A time is the better of a plain call and one
replayed from a CUDA graph, so that neither package is charged for Python. A padded batch is given to both
as [T, B, I], with lengths uniform in T/2..T: torch.nn has to pack and unpack it. A ratio above 1 means that
fastrnn is faster. Rows that the time did not suffice for are listed as not measured.

It runs as a module: as a script it would stand in the way of NVIDIA's own package of the name `cuda`.
With --device cpu everything runs without a GPU: to try the script, not to measure.

Example:
    python -m benchmarks.cuda --cells lstm gru --dtypes bf16 --seconds 120 --name h200
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks.arguments import folder, positive_int, seconds

MODULES = {"lstm": (nn.LSTM, fastrnn.LSTM), "gru": (nn.GRU, fastrnn.GRU)}
# Name: dtype, whether float32 may be rounded to TF32.
DTYPES = {
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
    "bf16": (torch.bfloat16, True),
    "fp16": (torch.float16, True),
}
HIDDEN = (128, 256, 512, 768, 1024, 1536, 2048)
BATCH = (1, 8, 16, 32, 64, 128)
STEPS = (50, 512)
VARIANTS = ("plain", "padded", "bidirectional")
NN = "torch.nn"


@dataclass(frozen=True)
class Case:
    cell: str
    dtype: str
    training: bool
    T: int
    B: int
    H: int
    variant: str  # of VARIANTS; bidirectional has two layers


@dataclass(frozen=True)
class Row:
    """A case as measured.

    Attributes:
        us: microseconds a call, called plainly and replayed from a CUDA graph (None where that can't be),
            of torch.nn and of each driver that serves the case.
        chosen: the driver that runs where none is asked for.
    """

    case: Case
    us: dict[str, list[float | None]]
    chosen: str

    def best(self, who: str) -> float:
        return min(t for t in self.us[who] if t is not None)

    def ratio(self, driver: str) -> float:
        return self.best(NN) / self.best(driver)

    @property
    def drivers(self) -> list[str]:
        return [who for who in self.us if who != NN]


def cases(args: argparse.Namespace) -> list[Case]:
    """Every case, so spread that any first part of the list covers the grid; passes stay together."""
    shapes = [
        (cell, dtype, T, B, H, variant)
        for variant in args.variants
        for cell in args.cells
        for dtype in args.dtypes
        for T in args.steps
        for B in args.batch
        for H in args.hidden
    ]
    stride = next(n for n in (97, 89, 83, 1) if math.gcd(n, len(shapes)) == 1)
    spread = (shapes[i * stride % len(shapes)] for i in range(len(shapes)))
    return [
        Case(cell, dtype, bool(training), T, B, H, variant)
        for cell, dtype, T, B, H, variant in spread
        for training in args.training
    ]


@contextmanager
def asked_for(driver: str | None) -> Iterator[None]:
    """This driver computes wherever it serves; of None, the one that is chosen."""
    before = os.environ.pop("FASTRNN_CUDA_DRIVER", None)
    if driver is not None:
        os.environ["FASTRNN_CUDA_DRIVER"] = driver
    try:
        yield
    finally:
        os.environ.pop("FASTRNN_CUDA_DRIVER", None)
        if before is not None:
            os.environ["FASTRNN_CUDA_DRIVER"] = before


class Call:
    """One module on rotating inputs; a call computes the output or also every gradient."""

    def __init__(self, case: Case, module: nn.Module, inputs: list[Tensor], driver: str | None) -> None:
        self.module, self.inputs, self.training, self.driver = module, inputs, case.training, driver
        self.lengths: Tensor | None = None
        if case.variant == "padded":
            random = torch.Generator().manual_seed(case.T)
            self.lengths = torch.randint(case.T // 2, case.T + 1, (case.B,), generator=random)
            self.lengths[0] = case.T
            if driver is not None:
                self.lengths = self.lengths.to(inputs[0].device)
        self.at = 0

    def output(self, x: Tensor) -> Tensor:
        if self.lengths is None:
            return self.module(x)[0]
        if self.driver is not None:
            return self.module(x, lengths=self.lengths)[0]
        packed = nn.utils.rnn.pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.module(packed)[0])[0]

    def __call__(self) -> None:
        x = self.inputs[self.at % len(self.inputs)]
        self.at += 1
        with asked_for(self.driver), torch.set_grad_enabled(self.training):
            y = self.output(x)
            if self.training:
                y.backward(torch.ones_like(y))


def graphed(call: Call) -> Callable[[], None] | None:
    """The call as a CUDA graph over all inputs in turn, or None where it can't be captured."""
    if not call.inputs[0].is_cuda or (call.driver is None and call.lengths is not None):
        return None  # torch.nn waits for lengths on the host
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graphs = []
    try:
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        for _ in call.inputs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            graphs.append(graph)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    turn = iter(range(1 << 60))
    return lambda: graphs[next(turn) % len(graphs)].replay()


def once_us(call: Callable[[], None], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def median_us(calls: list[Callable[[], None] | None], repeats: int, device: str) -> list[float | None]:
    """Median time of each call, interleaved."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        if call is not None:
            call()
    for _ in range(repeats):
        for call, seen in zip(calls, times, strict=True):
            if call is not None:
                seen.append(once_us(call, device))
    return [statistics.median(seen) if seen else None for seen in times]


def measure(case: Case, drivers: list[str], repeats: int, device: str) -> Row:
    dtype, tf32 = DTYPES[case.dtype]
    torch.backends.cudnn.allow_tf32 = tf32
    theirs_type, ours_type = MODULES[case.cell]
    layers = 2 if case.variant == "bidirectional" else 1
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": layers == 2}
    theirs = theirs_type(case.H, case.H, **options, device=device, dtype=dtype)
    ours = ours_type(case.H, case.H, **options, device=device, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    theirs.flatten_parameters()
    size = case.T * case.B * case.H * dtype.itemsize
    inputs = [
        torch.randn(case.T, case.B, case.H, device=device, dtype=dtype, requires_grad=case.training)
        for _ in range(min(4, max(2, math.ceil(100e6 / size))))
    ]
    with asked_for(None):
        chosen = fastrnn.explain(ours, inputs[0]).driver or device
    serving = []
    for driver in drivers:
        with asked_for(driver):
            # Without a GPU there is none.
            if fastrnn.explain(ours, inputs[0]).driver in (driver, None):
                serving.append(driver)
    calls: list[Callable[[], None] | None] = []
    for module, driver in ((theirs, None), *((ours, driver) for driver in serving)):
        plain = Call(case, module, inputs, driver)
        calls += [plain, graphed(Call(case, module, inputs, driver))]
    times = median_us(calls, repeats, device)
    return Row(case, {who: times[2 * i : 2 * i + 2] for i, who in enumerate((NN, *serving))}, chosen)


def geomean(ratios: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else math.nan


def what(case: Case) -> str:
    return "fwd+bwd" if case.training else "fwd"


def markdown(rows: list[Row], missing: int, about: dict[str, Any]) -> str:
    drivers = list(dict.fromkeys(driver for row in rows for driver in row.drivers))
    lines = ["# fastrnn beside torch.nn on a GPU", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += ["", "| variant | cell | dtype | pass | driver | rows | geomean | worst |", "|---" * 8 + "|"]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        c = row.case
        for driver in row.drivers:
            groups.setdefault((c.variant, c.cell, c.dtype, what(c), driver), []).append(row.ratio(driver))
    for key, ratios in sorted(groups.items()):
        lines.append(f"| {' | '.join(key)} | {len(ratios)} | {geomean(ratios):.2f} | {min(ratios):.2f} |")
    heads = ["variant", "cell", "dtype", "pass", "T", "H", "B", f"{NN} us", *(f"{d} us" for d in drivers)]
    heads += ["runs", "its us a step", "its ratio"]
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]

    def place(row: Row) -> tuple[Any, ...]:
        c = row.case
        return c.variant, c.cell, c.dtype, c.training, c.T, c.H, c.B

    for row in sorted(rows, key=place):
        c = row.case
        runs = row.chosen if row.chosen in row.us else row.drivers[0]
        cells = [c.variant, c.cell, c.dtype, what(c), c.T, c.H, c.B, f"{row.best(NN):.0f}"]
        cells += [f"{row.best(d):.0f}" if d in row.us else "" for d in drivers]
        cells += [runs, f"{row.best(runs) / c.T:.2f}", f"{row.ratio(runs):.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        *(
            f"Geometric mean of the ratios of {d}: {geomean([r.ratio(d) for r in rows if d in r.us]):.2f}"
            for d in drivers
        ),
    ]
    if missing:
        lines.append(f"Not measured, for want of time: {missing} of {missing + len(rows)}.")
    return "\n".join(lines) + "\n"


def facts(device: str) -> dict[str, Any]:
    about: dict[str, Any] = {"date": datetime.date.today().isoformat(), "device": device}
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        about |= {"device": torch.cuda.get_device_name(), "arch": 10 * major + minor}
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return about | {
        "torch": f"{torch.__version__}, {versions}",
        "fastrnn": fastrnn.__version__,
        "tf32": "float32 with TF32 allowed, as torch.nn.LSTM has it by default; fp32: not allowed",
    }


def write(stem: Path, rows: list[Row], missing: int, about: dict[str, Any]) -> str:
    text = markdown(rows, missing, about)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".json").write_text(
        json.dumps({"about": about, "rows": [asdict(r) for r in rows]}, indent=1)
    )
    return text


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cells", nargs="+", choices=MODULES, default=list(MODULES))
    options.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp16", "tf32"])
    options.add_argument("--hidden", nargs="+", type=positive_int, default=list(HIDDEN))
    options.add_argument("--batch", nargs="+", type=positive_int, default=list(BATCH))
    options.add_argument("--steps", nargs="+", type=positive_int, default=list(STEPS))
    options.add_argument("--training", nargs="+", type=int, choices=[0, 1], default=[0, 1])
    options.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options.add_argument("--drivers", nargs="+", help="default: all that this build has")
    options.add_argument("--repeats", type=positive_int, default=7)
    options.add_argument("--seconds", type=seconds, default=300, help="stop after this long")
    options.add_argument("--out", type=folder, default=Path(__file__).parent / "results")
    options.add_argument("--name", default="cuda", help="of the result files, after the date")
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return options


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.cuda needs a GPU, and torch sees none here", file=sys.stderr)
        return 1
    deadline = time.monotonic() + args.seconds
    todo, about = cases(args), facts(args.device)
    drivers = args.drivers or fastrnn.build_info()["cuda_drivers"] or ["step"]
    stem = args.out / f"{about['date']}-{args.name}"
    rows: list[Row] = []
    written = time.monotonic()
    while len(rows) < len(todo) and time.monotonic() < deadline:
        rows.append(measure(todo[len(rows)], drivers, args.repeats, args.device))
        if args.device == "cuda":
            torch.cuda.empty_cache()
        # Whatever ends this program early leaves what it had until then.
        if time.monotonic() - written > 15:
            write(stem, rows, len(todo) - len(rows), about)
            written = time.monotonic()
    text = write(stem, rows, len(todo) - len(rows), about)
    print(text.split("\n| variant | cell | dtype | pass | T ")[0])
    print(f"written: {stem}.md and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
