"""Builds, tests and measures fastrnn on a machine with a GPU, in under nine minutes, without network.

What came of every step is in <date>-gpu-check.md in benchmarks/results, with the benchmark's own files
beside it, and is written again after each: a step that fails, hangs or is stopped takes no other's result
with it. Each has a limit of its own, and time is kept for the last ones. Exit status 1 if one did not pass.

    build           in place, against the torch that is here, for the GPU that is here
    tests           those of all devices on the GPU, and those that only a GPU can run; then exactness and
                    the latter again with each driver that is off until it has been measured
    memcheck,       compute-sanitizer on a small run of every cell, with each driver
    racecheck
    benchmarks      against cuDNN over the whole grid, with each driver whose tests passed; then, apart and
                    shorter, with those whose tests did not
    package         pip builds a wheel of it

With --rehearse the same steps run without a GPU, each with something small in place of its work: to see
that this script does what it should, not that fastrnn does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent

# A run of every cell small enough for compute-sanitizer, which slows a kernel down a hundredfold.
SANITIZED = """
import sys, torch, fastrnn
device = sys.argv[1]
for cls in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN):
    for dtype in (torch.float32, torch.bfloat16):
        for H in (16, 33):
            m = cls(8, H, bidirectional=True, device=device, dtype=dtype)
            x = torch.randn(3, 5, 8, device=device, dtype=dtype)
            m(x)[0].sum().backward()
            lengths = torch.tensor([3, 1, 2, 3, 1], device=device)
            reset = torch.rand(3, 5, device=device) < 0.3
            m(x, lengths=lengths, reset=reset)[0].sum().backward()
if device == "cuda":
    torch.cuda.synchronize()
"""


@dataclass(frozen=True)
class Step:
    """Something to be run.

    Attributes:
        seconds: how long at most.
    """

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    name: str
    status: str
    seconds: float
    output: str


class Running:
    """A step whose process is running, with everything that the process starts in a group of its own."""

    def __init__(self, step: Step, limit: float, log: Path) -> None:
        self.step, self.limit, self.log = step, limit, log
        self.began = time.monotonic()
        self.error = ""
        self.process: subprocess.Popen[bytes] | None = None
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
        try:
            with log.open("wb") as to:
                self.process = subprocess.Popen(
                    step.command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=to,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self.error = f"not run: {error.strerror}: {error.filename}"

    def result(self) -> Result | None:
        """What came of it, or None while it runs."""
        seconds = time.monotonic() - self.began
        if self.process is None:
            return Result(self.step.name, self.error, seconds, "")
        code = self.process.poll()
        if code is None and seconds < self.limit:
            return None
        status = "passed" if code == 0 else f"failed with status {code}"
        if code is None:
            status = f"stopped after {self.limit:.0f} s"
        with contextlib.suppress(ProcessLookupError):  # what it may have left behind, too
            os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            status += ", and could not be ended"
        return Result(self.step.name, status, seconds, self.log.read_text(errors="replace"))


class Check:
    """Steps on their way to a report."""

    def __init__(self, seconds: float, report: Path, about: dict[str, str], logs: Path) -> None:
        self.deadline = time.monotonic() + seconds
        self.report, self.about, self.logs = report, about, logs
        self.results: list[Result] = []
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, steps: list[Step], later: float = 0.0) -> None:
        """Runs steps at the same time, leaving ``later`` seconds for those after them."""
        left = self.deadline - time.monotonic() - later
        running = []
        for step in steps:
            limit = min(step.seconds, left)
            if limit <= 0:
                self.add(Result(step.name, "not run: no time left", 0.0, ""))
                continue
            print(f"== {step.name}, at most {limit:.0f} s", flush=True)
            running.append(Running(step, limit, self.logs / f"{step.name.replace(' ', '-')}.log"))
        while running:
            for one in list(running):
                if result := one.result():
                    running.remove(one)
                    self.add(result)
            time.sleep(0.05)

    def add(self, result: Result) -> None:
        self.results.append(result)
        print(result.output[-2000:])
        print(f"== {result.name}: {result.status} ({result.seconds:.0f} s)", flush=True)
        self.report.parent.mkdir(parents=True, exist_ok=True)
        self.report.write_text(self.markdown())

    def passed(self, *names: str) -> bool:
        """Whether all of these, or all there were, passed."""
        return all(r.status == "passed" for r in self.results if not names or r.name in names)

    def markdown(self) -> str:
        lines = ["# gpu-check", "", *(f"- {key}: {value}" for key, value in self.about.items())]
        lines += ["", "| step | result | seconds |", "|---|---|---|"]
        lines += [f"| {r.name} | {r.status} | {r.seconds:.0f} |" for r in self.results]
        for r in self.results:
            tail = "\n".join(r.output[-6000:].strip().splitlines()[-60:])
            lines += ["", f"## {r.name}", "", "```", tail, "```"]
        return "\n".join(lines) + "\n"


def build(rehearse: bool) -> Step:
    command = [sys.executable, "setup.py", *(["--name"] if rehearse else ["build_ext", "--inplace"])]
    environment = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))}
    if not rehearse:
        environment["FASTRNN_CUDA"] = "1"
    return Step("build", command, 240, environment)


def tests(driver: str, rehearse: bool) -> Step:
    """Of the step driver everything; of others what shows whether they are right."""
    command = [sys.executable, "-m", "pytest", "-v", "-k", "cuda and not emulat and not dispatch"]
    if rehearse:
        command += ["--collect-only", "-q"]
    else:
        # Whoever hangs is ended alone, and others go on.
        plugins = {"xdist": ["-n", "6"], "pytest_timeout": ["--timeout=100", "--timeout-method=thread"]}
        command += [
            o for name, options in plugins.items() if importlib.util.find_spec(name) for o in options
        ]
    few = {"FASTRNN_TEST_CONFIGS": "60"}
    if driver == "step":
        return Step("tests of the step driver", [*command, "tests"], 150, few)
    some = ["tests/cuda/test_device.py", "tests/test_parity.py"]
    return Step(
        f"tests of the {driver} driver", [*command, *some], 150, few | {"FASTRNN_CUDA_DRIVER": driver}
    )


def sanitizers(driver: str, rehearse: bool) -> list[Step]:
    run = [sys.executable, "-c", SANITIZED, "cpu" if rehearse else "cuda"]
    found = []
    for tool in ("memcheck", "racecheck"):
        check = [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/compute-sanitizer")]
        check += ["--tool", tool, "--error-exitcode", "1", "--launch-timeout", "60"]
        environment = {"FASTRNN_CUDA_DRIVER": driver}
        if tool == "memcheck":  # memory of torch's caching allocator hides an access beside a tensor
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        if rehearse:
            check, environment = [], {}
        found.append(Step(f"{tool} of the {driver} driver", [*check, *run], 120, environment))
    return found


def benchmarks(name: str, drivers: list[str], seconds: float, out: Path, rehearse: bool) -> Step:
    command = [sys.executable, "-m", "benchmarks.cuda", "--out", str(out)]
    command += ["--name", f"gpu-check-{name.replace(' ', '-')}", "--drivers", *drivers]
    if rehearse:
        command += ["--device", "cpu", "--hidden", "8", "--batch", "1", "--steps", "2", "--repeats", "1"]
        command += ["--dtypes", "tf32"]
        seconds = 5
    return Step(name, [*command, "--seconds", str(seconds)], seconds + 25)


def package(out: Path, rehearse: bool) -> Step:
    offline = ["--no-index", "--no-build-isolation", "--no-deps"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if rehearse:
        return Step("package", [*command, "install", "--dry-run", "--ignore-installed", *offline, "."], 60)
    wheel = [*command, "wheel", *offline, "--wheel-dir", str(out), "."]
    return Step("package", wheel, 60, {"FASTRNN_CUDA": "1"})


def drivers_built() -> list[str]:
    code = "import fastrnn; print(*fastrnn.build_info()['cuda_drivers'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split() or ["step"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=520, help="for everything")
    parser.add_argument("--benchmark-seconds", type=float, default=200, help="at most")
    parser.add_argument("--skip", nargs="+", default=[], help="steps whose names begin with one of these")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="for the results")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, to try this script")
    args = parser.parse_args(arguments)
    rehearse = args.rehearse
    if not rehearse and not torch.cuda.is_available():
        print("gpu-check needs a GPU, and torch sees none here", file=sys.stderr)
        return 1
    date = datetime.date.today().isoformat()
    about = {
        "date": date,
        "GPU": "none: a rehearsal" if rehearse else torch.cuda.get_device_name(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}",
    }
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    logs = ROOT / "out" / "gpu-check"
    check = Check(args.seconds, args.out / f"{date}-gpu-check.md", about, logs)

    def wanted(steps: list[Step]) -> list[Step]:
        return [s for s in steps if not any(s.name.startswith(name) for name in args.skip)]

    # What later steps are worth, whatever the earlier ones take.
    least_benchmark, least_package = 100.0, 20.0
    check.run(wanted([build(rehearse)]), later=least_benchmark + least_package + 60)
    if check.passed():
        drivers = drivers_built()
        checks = [step for d in drivers for step in (tests(d, rehearse), *sanitizers(d, rehearse))]
        check.run(wanted(checks), later=least_benchmark + least_package)
        good = [d for d in drivers if d == "step" or check.passed(f"tests of the {d} driver")]
        doubtful = [d for d in drivers if d not in good]
        for_doubtful = 60.0 if doubtful else 0.0
        left = check.deadline - time.monotonic() - least_package - for_doubtful - 25
        seconds = max(10.0, min(args.benchmark_seconds, left))
        check.run(
            wanted([benchmarks("benchmarks", good, seconds, args.out, rehearse)]),
            later=least_package + for_doubtful,
        )
        if doubtful:
            name, both = "benchmarks of drivers whose tests failed", ["step", *doubtful]
            check.run(
                wanted([benchmarks(name, both, for_doubtful - 25, args.out, rehearse)]), later=least_package
            )
        check.run(wanted([package(logs, rehearse)]))
    print(f"written: {check.report}")
    return int(not check.passed())


if __name__ == "__main__":
    sys.exit(main())
