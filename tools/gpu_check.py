"""Builds, tests and measures fastrnn on a machine with a GPU, in ten minutes, without network.

What came of every step is in <date>-gpu-check.md in benchmarks/results, and is written again after each
step: one that fails, hangs or is stopped takes no other's result with it. Each has a limit of its own,
and time is kept for those after it. All logs are in <date>-gpu-check-logs/, and the rows of
benchmarks/cuda.py in <date>-gpu-check.jsonl as they come. Exit status 1 if a step did not pass.

    build     in place, against the torch that is here, for the GPU that is here; meanwhile
    cuDNN     the times of torch.nn, which need no build
    smoke     each driver at one shape, in a process of its own
    check     each driver against float64 at every shape that is timed
    tests     of each driver: what only a GPU can show, and exactness
    times     each driver at every shape, forward and backward apart
    profile   ncu, the first launches of each driver's kernels, if ncu is installed
    table     the drivers that won, as csrc/cuda/measured.h for the next build

With --rehearse the same steps run without a GPU, at small sizes, with drivers that hang, fault, raise and
compute something wrong: to see that this script does what it should, not that fastrnn does. Exit status 0
if every step came out as it must then.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
GRACE_SECONDS = 5.0  # for a step that is stopped to write what it has
# Kept for the times, and for the profile and the table, whatever the steps before them take.
FOR_TIMES, FOR_REST = 200.0, 40.0

# One call of each pass, for ncu.
PROFILED = """
import torch, fastrnn
m = fastrnn.LSTM(256, 256, device="cuda", dtype=torch.bfloat16)
m(torch.randn(32, 32, 256, device="cuda", dtype=torch.bfloat16))[0].sum().backward()
torch.cuda.synchronize()
"""

# Drivers of a rehearsal, and what must come of its steps.
REHEARSED = ["torch.nn", "step", "hangs", "faults", "raises", "wrong", "faults-timed"]
EXPECTED = {
    "build": "passed",
    "cuDNN": "passed",
    "smoke": "failed with status 1",
    "check": "failed with status 1",
    "tests of the step driver": "passed",
    "times": "failed with status 1",
    "table": "failed with status 1",
}


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
                    # A shell ignores SIGINT for what it runs in the background, and children inherit that.
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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
            self.process.send_signal(signal.SIGINT)  # pytest then writes its summary
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_SECONDS)
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
        """Runs steps at the same time, keeping ``later`` seconds for those after them."""
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
        lines += ["", f"Whole logs: {self.logs.name}/"]
        return "\n".join(lines) + "\n"


def build(rehearse: bool) -> Step:
    command = [sys.executable, "setup.py", *(["--name"] if rehearse else ["build_ext", "--inplace"])]
    environment = {"MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))}
    if not rehearse:
        environment["FASTRNN_CUDA"] = "1"
    return Step("build", command, 240, environment)


def benchmark(
    name: str, what: str, drivers: list[str], seconds: float, out: Path, rehearse: bool, *shapes: str
) -> Step:
    """benchmarks/cuda.py, which appends to one file and leaves out what is there."""
    command = [sys.executable, "-m", "benchmarks.cuda", what, "--name", "gpu-check", "--out", str(out)]
    command += ["--drivers", *drivers, *shapes, "--seconds", str(seconds)]
    if rehearse:
        command += ["--device", "cpu", "--steps", "2", "4", "--repeats", "1", "--limit", "2"]
        command += ["--cells", "lstm", "--dtypes", "tf32", "--batch", "1"]
        command += ["--hidden", "8"] if shapes else ["--hidden", "16"]
    return Step(name, command, seconds + 15)


def smoke(drivers: list[str], out: Path, rehearse: bool) -> Step:
    shapes = ["--cells", "lstm", "--dtypes", "bf16", "--hidden", "128", "--batch", "8"]
    return benchmark("smoke", "check", drivers, 100, out, rehearse, *shapes)


def only(driver: str) -> dict[str, str]:
    """The environment in which this driver runs, also if the user chose torch's kernels."""
    return {"FASTRNN_DRIVER": "fused", "FASTRNN_CUDA_DRIVER": driver}


def tests(driver: str, rehearse: bool) -> Step:
    """What only a GPU can show, and exactness; float32 with TF32 on drivers that need it (conftest.py)."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-k", "cuda and not emulat"]
    if rehearse:
        command += ["--collect-only"]
    elif importlib.util.find_spec("xdist"):
        command += ["-n", "6"]
    environment = {"FASTRNN_TEST_CONFIGS": "60", **only(driver)}
    files = ["tests/cuda/test_device.py", "tests/test_parity.py"]
    return Step(f"tests of the {driver} driver", [*command, *files], 40, environment)


def profile(driver: str) -> Step:
    """Stalls and issue slots of the first launches of the kernels."""
    command = [
        "ncu",
        "--launch-count",
        "12",
        "--kernel-name-base",
        "mangled",
        "--kernel-name",
        "regex:fastrnn",
    ]
    command += ["--section", "SpeedOfLight", "--section", "WarpStateStats", "--section", "SchedulerStats"]
    return Step(
        f"profile of the {driver} driver", [*command, sys.executable, "-c", PROFILED], 20, only(driver)
    )


def table(rows: Path, out: Path) -> Step:
    command = [sys.executable, "tools/dispatch_table.py", str(rows), "--to", str(out / "measured.h")]
    return Step("table", command, 20)


def drivers_built() -> list[str]:
    code = "import fastrnn; print(*fastrnn.build_info()['cuda_drivers'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split() or ["step"]


def first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return done.stdout.strip().splitlines()[-1 if "nvcc" in command[0] else 0]


def facts(rehearse: bool) -> dict[str, str]:
    found = {
        "date": datetime.date.today().isoformat(),
        "GPU": "none: a rehearsal",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}",
        "compilers": f"{first_line('c++', '--version')}; {first_line('nvcc', '--version')}",
        "cores": str(os.cpu_count()),
    }
    if not rehearse:
        p = torch.cuda.get_device_properties(0)
        found["GPU"] = f"{p.name}, sm_{p.major}{p.minor}, {p.multi_processor_count} multiprocessors, "
        found["GPU"] += f"{p.shared_memory_per_block_optin} bytes of shared memory a block"
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=580, help="for everything")
    parser.add_argument("--skip", nargs="+", default=[], help="steps whose names begin with one of these")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="for the results")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, to try this script")
    args = parser.parse_args(arguments)
    rehearse, out = args.rehearse, args.out
    if not rehearse and not torch.cuda.is_available():
        print("gpu-check needs a GPU, and torch sees none here", file=sys.stderr)
        return 1
    about = facts(rehearse)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    stem = f"{about['date']}-gpu-check"
    check = Check(args.seconds, out / f"{stem}.md", about, out / f"{stem}-logs")

    def run(*steps: Step, later: float = 0.0) -> None:
        check.run([s for s in steps if not any(s.name.startswith(name) for name in args.skip)], later)

    run(
        build(rehearse),
        benchmark("cuDNN", "time", ["torch.nn"], 75, out, rehearse),
        later=FOR_TIMES + FOR_REST + 60,
    )
    if check.passed("build"):
        ours = ["step"] if rehearse else drivers_built()
        drivers = REHEARSED if rehearse else ["torch.nn", *ours]
        run(smoke(drivers[1:], out, rehearse), later=FOR_TIMES + FOR_REST)
        run(benchmark("check", "check", drivers[1:], 70, out, rehearse), later=FOR_TIMES + FOR_REST)
        for driver in ours:
            run(tests(driver, rehearse), later=FOR_TIMES + FOR_REST)
        left = check.deadline - time.monotonic() - FOR_REST - 20
        run(benchmark("times", "time", drivers, max(10.0, left), out, rehearse), later=FOR_REST)
        if shutil.which("ncu") and not rehearse:
            for driver in ours:
                run(profile(driver), later=15)
        run(table(out / f"{stem}.jsonl", out))
    print(f"written: {check.report}")
    if rehearse:
        return int({r.name: r.status for r in check.results} != EXPECTED)
    return int(not check.passed())


if __name__ == "__main__":
    sys.exit(main())
