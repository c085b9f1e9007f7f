"""Builds, tests and measures fastrnn on a machine with a GPU, in nine minutes, without network.

Writes what came of every step to benchmarks/results/<date>-gpu-check.md (and the benchmark's own
files beside it), also where a step fails. Exit status 1 if one did.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent

# A run of every cell small enough for compute-sanitizer, which slows a kernel down a hundredfold.
SANITIZED = """
import torch, fastrnn
for cls in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN):
    for dtype in (torch.float32, torch.bfloat16):
        for H in (16, 33):
            m = cls(8, H, bidirectional=True, device="cuda", dtype=dtype)
            m(torch.randn(3, 5, 8, device="cuda", dtype=dtype))[0].sum().backward()
torch.cuda.synchronize()
"""


@dataclass
class Step:
    name: str
    command: list[str]
    seconds: float  # at most
    environment: dict[str, str]


@dataclass
class Result:
    step: Step
    status: str
    seconds: float
    tail: str


def run(step: Step, deadline: float) -> Result:
    limit = min(step.seconds, deadline - time.monotonic())
    if limit <= 0:
        return Result(step, "not run: no time left", 0.0, "")
    print(f"== {step.name}", flush=True)
    begin = time.monotonic()
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            env={**os.environ, **step.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
        )
        status = "passed" if done.returncode == 0 else f"failed with status {done.returncode}"
        output = done.stdout
    except FileNotFoundError as error:
        status, output = f"not run: {error.filename} is not there", ""
    except subprocess.TimeoutExpired as error:
        status = f"stopped after {limit:.0f} s"
        output = (error.stdout or b"").decode(errors="replace")
    seconds = time.monotonic() - begin
    print(output[-4000:])
    print(f"== {step.name}: {status} ({seconds:.0f} s)", flush=True)
    return Result(step, status, seconds, output[-3000:])


def library_headers() -> str:
    """Where torch's own wheels keep CUDA's library headers, which a toolkit may lack."""
    wheels = Path(torch.__file__).parent.parent / "nvidia"
    found = [str(p) for p in sorted(wheels.glob("cu*/include"))]
    return os.pathsep.join([*found, *filter(None, [os.environ.get("CPLUS_INCLUDE_PATH")])])


def steps(benchmark_seconds: float) -> list[Step]:
    python, none = sys.executable, dict[str, str]()
    sanitizer = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/compute-sanitizer")
    # Memory of torch's caching allocator hides an access beside a tensor.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # Drivers that are off until they have been measured.
    cluster = {"FASTRNN_CUDA_DRIVER": "cluster"}
    tests = [python, "-m", "pytest", "-q", "-k", "cuda and not emulat", "tests"]
    sanitized = [python, "-c", SANITIZED]
    check = [sanitizer, "--error-exitcode", "1", "--launch-timeout", "60"]

    def benchmark(name: str, result: str, environment: dict[str, str]) -> Step:
        options = ["--seconds", str(benchmark_seconds), "--name", result]
        command = [python, "benchmarks/cuda.py", *options]
        return Step(name, command, benchmark_seconds + 30, environment)

    return [
        Step(
            "build",
            [python, "setup.py", "build_ext", "--inplace"],
            240,
            {
                "FASTRNN_CUDA": "1",
                "MAX_JOBS": str(os.cpu_count() or 2),
                "CPLUS_INCLUDE_PATH": library_headers(),
            },
        ),
        Step("tests on the device", tests, 120, none),
        Step("tests of the cluster driver", tests, 60, cluster),
        Step("memcheck", [*check, "--tool", "memcheck", *sanitized], 40, uncached),
        Step("memcheck of the cluster driver", [*check, *sanitized], 40, uncached | cluster),
        Step("racecheck", [*check, "--tool", "racecheck", *sanitized], 40, none),
        benchmark("benchmarks", "gpu-check-step", none),
        benchmark("benchmarks of the cluster driver", "gpu-check-cluster", cluster),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=520, help="for everything")
    parser.add_argument("--benchmark-seconds", type=float, default=90)
    parser.add_argument("--only", nargs="+", help="steps whose names begin with one of these")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check needs a GPU, and torch sees none here", file=sys.stderr)
        return 1
    deadline = time.monotonic() + args.seconds
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    chosen = [
        s
        for s in steps(args.benchmark_seconds)
        if not args.only or any(s.name.startswith(o) for o in args.only)
    ]
    results = [run(step, deadline) for step in chosen]
    date = datetime.date.today().isoformat()
    lines = [
        "# gpu-check",
        "",
        f"- date: {date}",
        f"- GPU: {torch.cuda.get_device_name()}",
        f"- torch: {torch.__version__}, CUDA {torch.version.cuda}",
        "",
        "| step | result | seconds |",
        "|---|---|---|",
        *(f"| {r.step.name} | {r.status} | {r.seconds:.0f} |" for r in results),
    ]
    for r in results:
        lines += ["", f"## {r.step.name}", "", "```", r.tail.strip(), "```"]
    path = ROOT / "benchmarks" / "results" / f"{date}-gpu-check.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(f"written: {path.relative_to(ROOT)}")
    return int(any(r.status != "passed" for r in results))


if __name__ == "__main__":
    sys.exit(main())
