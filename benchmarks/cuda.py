"""fastrnn beside torch.nn (cuDNN) on a GPU, over the whole grid of shapes.

Both run in one process on the same weights, interleaved, I = H, on inputs that rotate through
more memory than the L2 cache holds; times are medians of CUDA events. `nn` is the better of
torch.nn called plainly and replayed from a CUDA graph, `ours` the better of the same two for
fastrnn, so that neither is charged for Python. A ratio above 1 means that fastrnn is faster. Rows
that the time did not suffice for are listed as not measured.

Example:
    python benchmarks/cuda.py --cells lstm gru --dtypes bf16 --seconds 120 --name h200
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fastrnn

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


@dataclass
class Case:
    cell: str
    dtype: str
    training: bool
    T: int
    B: int
    H: int
    variant: str  # plain, padded or bidirectional (two layers)


@dataclass
class Row(Case):
    nn_us: float
    nn_graph_us: float
    ours_us: float
    ours_graph_us: float

    @property
    def ratio(self) -> float:
        return min(self.nn_us, self.nn_graph_us) / min(self.ours_us, self.ours_graph_us)


def cases(args: argparse.Namespace) -> list[Case]:
    """Every case, spread over the grid so that any first part of the list covers it."""
    whole = [
        Case(cell, dtype, training, T, B, H, variant)
        for variant in args.variants
        for cell in args.cells
        for dtype in args.dtypes
        for training in args.training
        for T in args.steps
        for B in args.batch
        for H in args.hidden
    ]
    stride = 97 if len(whole) % 97 else 89
    return [whole[i * stride % len(whole)] for i in range(len(whole))]


class Call:
    """One module on rotating inputs; a call computes the output or also every gradient."""

    def __init__(self, case: Case, module: nn.Module, inputs: list[Tensor]) -> None:
        self.module, self.inputs, self.training = module, inputs, case.training
        self.lengths = None
        if case.variant == "padded":
            torch.manual_seed(case.T)
            self.lengths = torch.randint(case.T // 2, case.T + 1, (case.B,))
        self.at = 0

    def __call__(self) -> None:
        x = self.inputs[self.at % len(self.inputs)]
        self.at += 1
        if self.lengths is not None:
            x = nn.utils.rnn.pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        with torch.set_grad_enabled(self.training):
            out = self.module(x)[0]
        if self.training:
            y = out.data if isinstance(out, nn.utils.rnn.PackedSequence) else out
            y.backward(torch.ones_like(y))


def graphed(call: Call) -> Callable[[], None] | None:
    """The call as a CUDA graph over all inputs in turn, or None where it can't be captured."""
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


def median_us(calls: list[Callable[[], None] | None], repeats: int) -> list[float]:
    """Median time of each call, interleaved."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        if call is not None:
            call()
    for _ in range(repeats):
        for call, seen in zip(calls, times, strict=True):
            if call is None:
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            seen.append(begin.elapsed_time(end) * 1e3)
    return [statistics.median(seen) if seen else math.inf for seen in times]


def measure(case: Case, repeats: int) -> Row:
    dtype, tf32 = DTYPES[case.dtype]
    torch.backends.cudnn.allow_tf32 = tf32
    theirs_type, ours_type = MODULES[case.cell]
    layers = 2 if case.variant == "bidirectional" else 1
    options = {"num_layers": layers, "bidirectional": layers == 2, "device": "cuda", "dtype": dtype}
    theirs = theirs_type(case.H, case.H, **options)
    ours = ours_type(case.H, case.H, **options)
    ours.load_state_dict(theirs.state_dict())
    theirs.flatten_parameters()
    size = case.T * case.B * case.H * dtype.itemsize
    count = min(8, max(2, math.ceil(100e6 / size)))
    inputs = [
        torch.randn(case.T, case.B, case.H, device="cuda", dtype=dtype, requires_grad=case.training)
        for _ in range(count)
    ]
    calls: list[Callable[[], None] | None] = []
    for module in (theirs, ours):
        call = Call(case, module, inputs)
        # Packing copies lengths to the host: torch.nn can't be captured there.
        calls += [call, None if case.variant == "padded" else graphed(Call(case, module, inputs))]
    times = median_us(calls, repeats)
    return Row(**asdict(case), **dict(zip(list(Row.__annotations__), times, strict=True)))


def geomean(ratios: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else math.nan


def markdown(rows: list[Row], missing: list[Case], about: dict[str, str]) -> str:
    lines = ["# fastrnn beside torch.nn on a GPU", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += [
        "",
        "| variant | cell | dtype | pass | rows | geomean | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.variant, row.cell, row.dtype, row.training), []).append(row)
    for (variant, cell, dtype, training), members in sorted(groups.items()):
        ratios = [r.ratio for r in members]
        what = "fwd+bwd" if training else "fwd"
        lines.append(
            f"| {variant} | {cell} | {dtype} | {what} | {len(members)} | {geomean(ratios):.2f} "
            f"| {min(ratios):.2f} |"
        )
    head = "| variant | cell | dtype | pass | T | B | H | nn us | ours us | us a step | ratio |"
    lines += ["", head, "|---" * 11 + "|"]
    for r in sorted(rows, key=lambda r: (r.variant, r.cell, r.dtype, r.training, r.T, r.H, r.B)):
        ours, what = min(r.ours_us, r.ours_graph_us), "fwd+bwd" if r.training else "fwd"
        lines.append(
            f"| {r.variant} | {r.cell} | {r.dtype} | {what} | {r.T} | {r.B} | {r.H} "
            f"| {min(r.nn_us, r.nn_graph_us):.0f} | {ours:.0f} | {ours / r.T:.2f} "
            f"| {r.ratio:.2f} |"
        )
    lines += ["", f"Geometric mean of all rows: {geomean([r.ratio for r in rows]):.2f}"]
    if missing:
        lines.append(f"Not measured, for want of time: {len(missing)} of {len(missing) + len(rows)}.")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp16", "tf32"])
    parser.add_argument("--hidden", nargs="+", type=int, default=list(HIDDEN))
    parser.add_argument("--batch", nargs="+", type=int, default=list(BATCH))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--training", nargs="+", type=int, choices=[0, 1], default=[0, 1])
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=["plain", "padded", "bidirectional"],
        default=["plain", "padded", "bidirectional"],
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=300, help="stop after this long")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="cuda", help="of the result files, after the date")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/cuda.py needs a GPU, and torch sees none here", file=sys.stderr)
        return 1
    deadline = time.monotonic() + args.seconds
    todo = cases(args)
    rows: list[Row] = []
    while len(rows) < len(todo) and time.monotonic() < deadline:
        rows.append(measure(todo[len(rows)], args.repeats))
        torch.cuda.empty_cache()
    date = datetime.date.today().isoformat()
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    about = {
        "date": date,
        "driver": os.environ.get("FASTRNN_CUDA_DRIVER", "step"),
        "GPU": torch.cuda.get_device_name(),
        "torch": f"{torch.__version__}, {versions}",
        "tf32": "float32 with TF32 allowed, as torch.nn.LSTM has it by default; fp32: not allowed",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"{date}-{args.name}"
    text = markdown(rows, todo[len(rows) :], about)
    stem.with_suffix(".md").write_text(text)
    records = [asdict(r) | {"ratio": r.ratio} for r in rows]
    stem.with_suffix(".json").write_text(json.dumps({"about": about, "rows": records}, indent=1))
    print(text.split("\n| variant | cell | dtype | pass | T ")[0])
    print(f"written: {stem}.md and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
