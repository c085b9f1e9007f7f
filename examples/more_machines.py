"""More processes, one of which dies: the language model under torchrun.

Runs language_model.py with 1 process and with 2 (or --processes). Each process trains on its share of the
streams, DistributedDataParallel averages the gradients (gloo on a CPU, NCCL on GPUs), and the script prints
the throughput of each run. A last run kills one process during training: torchrun restarts all of them,
they continue from the last checkpoint, and the result is as good.

  python examples/more_machines.py
  python examples/more_machines.py --processes 1 2 4 --device cuda

To run it by hand, on one machine, or with torchrun's --nnodes and --rdzv-endpoint on several that share
the folder --out:

  torchrun --nproc-per-node 2 --max-restarts 3 examples/language_model.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from common import checkpoint
from common.cli import Parser, launch, positive_int
from common.errors import InputError
from common.report import Report, say, table

NAME = "more_machines"
NOISE = 0.03  # relative difference in perplexity between two seeds
PERPLEXITY = "perplexity, against the best n-gram's"


@dataclass
class Outcome:
    """What one run of the language model printed and wrote."""

    processes: int
    figures: dict
    output: str

    @property
    def perplexity(self) -> float:
        return self.figures[PERPLEXITY]


def run_model(args: Namespace, processes: int, folder: Path, *more: str) -> Outcome:
    """language_model.py with so many processes: under torchrun, unless it is one."""
    threads = args.threads or max(1, (os.cpu_count() or 1) // processes)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "--max-restarts", "1"]
    command += [str(Path(__file__).with_name("language_model.py")), "--out", str(folder)]
    command += ["--impl", "both" if len(args.impls) == 2 else args.impls[0]]
    command += ["--device", args.device, "--seed", str(args.seed), "--steps", str(args.steps)]
    command += ["--cell", args.cell, "--save-every", str(args.steps // 4 or 1), *more]
    if args.quick:
        command += ["--quick", "--characters", "100000"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(
        command,
        env=environment,
        text=True,
        encoding="utf-8",
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=None if args.verbose else subprocess.PIPE,
    )
    written = folder / "language_model_chars.json"
    # Alone, it exits with 1 where the few steps here miss what it expects of a whole training.
    if ended.returncode not in ((0, 1) if processes == 1 else (0,)) or not written.exists():
        sys.stderr.write((ended.stderr or "")[-3000:])
        raise InputError(f"training with {processes} process(es) failed: {' '.join(command)}.")
    return Outcome(processes, json.loads(written.read_text()), ended.stdout)


def fresh(folder: Path) -> Path:
    """The folder of a run, without the figures and the checkpoint of an earlier one."""
    for name in ("language_model_chars.json", "language_model_chars.pt"):
        (folder / name).unlink(missing_ok=True)
    return folder


def main() -> int:
    parser = Parser(NAME, __doc__)
    parser.size("--steps", 300, 40, "windows of text to train on")
    parser.add_argument("--cell", choices=("LSTM", "GRU"), default="LSTM", help="(default LSTM)")
    parser.add_argument(
        "--processes",
        type=positive_int,
        nargs="+",
        default=[1, 2],
        help="numbers of processes (default 1 2)",
    )
    parser.add_argument("--verbose", action="store_true", help="show what torchrun says meanwhile")
    args = parser.parse()
    if args.world.size > 1:
        raise InputError("start this with python: it runs torchrun itself.")

    outcomes = []
    for processes in args.processes:
        say(f"training with {processes} process(es)")
        outcomes.append(run_model(args, processes, fresh(args.out / f"{NAME}_{processes}")))
    rows = []
    for outcome in outcomes:
        speeds = [outcome.figures[f"{impl} tokens/s"] for impl in args.impls]
        scale = speeds[-1] / outcomes[0].figures[f"{args.impls[-1]} tokens/s"]
        rows.append((outcome.processes, *(f"{speed:,.0f}" for speed in speeds), scale, outcome.perplexity))
    header = ("processes", *(f"{impl} tokens/s" for impl in args.impls), "scaling", "perplexity")
    say("\n" + table(header, rows))

    most = max(2, *args.processes)
    crash = args.steps * 5 // 8
    say(f"\ntraining with {most} process(es), one killed after step {crash}")
    folder = fresh(args.out / f"{NAME}_killed")
    killed = run_model(args, most, folder, "--crash-at", str(crash))
    resumed = re.search(r"resumed at step (\d+) of \d+, on \d+ process\(es\)", killed.output)
    say(resumed[0] if resumed else "it did not resume")
    say(f"perplexity at the end: {killed.perplexity:.4g}")

    report = Report(NAME, args)
    report.figures["throughput"] = {outcome.processes: outcome.figures for outcome in outcomes}
    report.expect("step resumed at", int(resumed[1]) if resumed else 0, least=args.steps // 4)
    ends = [outcome.perplexity for outcome in (*outcomes, killed)]
    spread = max(ends) / min(ends) - 1
    report.expect("relative spread of the perplexities", spread, most=NOISE)
    saved = checkpoint.load(folder / "language_model_chars.pt", "language_model")
    report.expect("steps in the last checkpoint", saved["step"], least=args.steps)
    for outcome in outcomes:
        if ratio := outcome.figures.get("speed ratio"):
            say(f"{outcome.processes} process(es): fastrnn is {ratio:.2f} times as fast as torch")
    return report.finish([])


if __name__ == "__main__":
    launch(main)
