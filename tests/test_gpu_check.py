"""tools/gpu_check.py without a GPU: what becomes of steps that fail or hang, and a rehearsal of all."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "tools")]

import gpu_check
from gpu_check import Check, Step

from benchmarks import cuda, cuda_report
from benchmarks.cuda_report import PASSES


def python(name: str, code: str, seconds: float = 20) -> Step:
    return Step(name, [sys.executable, "-S", "-c", code], seconds)


def check(tmp_path: Path, seconds: float = 30) -> Check:
    return Check(seconds, tmp_path / "results" / "report.md", {"GPU": "none"}, tmp_path / "logs")


def statuses(check: Check) -> dict[str, str]:
    return {r.name: r.status for r in check.results}


def test_every_step_has_its_result(tmp_path: Path) -> None:
    """One that hangs is ended with all that it started, and takes nothing from the others."""
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(8); open({str(alive)!r}, 'w')"
    hangs = "import subprocess, sys; print('so far', flush=True); "
    hangs += f"subprocess.run([sys.executable, '-c', {child!r}])"
    one = check(tmp_path)
    start = time.monotonic()
    one.run(
        [
            python("hangs", hangs, 1),
            python("fails", "print('why'); raise SystemExit(3)"),
            python("passes", "pass"),
            Step("absent", ["/no/such/program"], 5),
            Step("dies", [sys.executable, "-S", "-c", "import os; os.abort()"], 5),
        ]
    )
    assert time.monotonic() - start < 8
    assert statuses(one) == {
        "absent": "not run: No such file or directory: /no/such/program",
        "hangs": "stopped after 1 s",
        "fails": "failed with status 3",
        "passes": "passed",
        "dies": "failed with status -6",
    }
    assert not one.passed()
    text = one.report.read_text()
    assert "| hangs | stopped after 1 s | 1 |" in text
    assert "so far" in text
    assert "why" in text
    time.sleep(max(0.0, start + 9 - time.monotonic()))
    assert not alive.exists()


def test_environment_and_passing(tmp_path: Path) -> None:
    one = check(tmp_path)
    code = "import os; print('driver', os.environ['FASTRNN_CUDA_DRIVER'])"
    one.run([Step("a", [sys.executable, "-S", "-c", code], 9, {"FASTRNN_CUDA_DRIVER": "cluster"})])
    assert one.passed("a")
    assert "driver cluster" in one.report.read_text()


def test_time_is_kept_for_what_comes_later(tmp_path: Path) -> None:
    one = check(tmp_path, seconds=20)
    one.run([python("first", "import time; time.sleep(20)")], later=19)
    one.run([python("too late", "pass")], later=20)
    one.run([python("last", "pass")])
    assert statuses(one) == {
        "first": "stopped after 1 s",
        "too late": "not run: no time left",
        "last": "passed",
    }
    # Written after each, so a report is there whatever ends the program.
    assert "| last | passed |" in one.report.read_text()


def test_a_step_that_is_stopped_may_write_its_summary(tmp_path: Path) -> None:
    one = check(tmp_path)
    code = "import time\ntry:\n  time.sleep(20)\nexcept KeyboardInterrupt:\n  print('3 failed')"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        one.run([python("tests", code, 3)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert statuses(one) == {"tests": "stopped after 3 s"}
    assert "3 failed" in one.report.read_text()
    assert "3 failed" in (tmp_path / "logs" / "tests.log").read_text()


def test_a_rehearsal_comes_out_as_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command, on a CPU and small; tests are only collected. The user's choice is ignored."""
    monkeypatch.setenv("FASTRNN_DRIVER", "torch")
    for step in (gpu_check.tests("block", rehearse=True), gpu_check.profile("block")):
        assert step.environment.items() >= gpu_check.only("block").items()
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    status = gpu_check.main(["--rehearse", "--out", str(tmp_path)])
    (report,) = tmp_path.glob("*-gpu-check.md")
    assert status == 0, report.read_text()
    (logs,) = tmp_path.glob("*-gpu-check-logs")
    assert {log.stem for log in logs.iterdir()} >= {"build", "check", "times", *gpu_check.REHEARSED}
    (path,) = tmp_path.glob("*-gpu-check.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0]["device"] == "cpu"

    def outcomes(what: str, driver: str) -> set[str]:
        found = [r for r in rows[1:] if (r["what"], r["driver"]) == (what, driver)]
        return {r.get("failed", f"right: {r.get('right')}") for r in found}

    assert outcomes("check", "step") == {"right: True"}
    assert outcomes("check", "wrong") == {"right: False"}
    assert outcomes("check", "hangs") == {"no answer in 2 s"}
    assert outcomes("check", "faults") == {"ended with status -6"}
    assert all("RuntimeError" in outcome for outcome in outcomes("check", "raises"))
    assert outcomes("time", "faults-timed") == {"ended with status -6"}
    for driver in ("hangs", "faults", "raises", "wrong"):  # are not timed
        assert outcomes("time", driver) == set()
    for driver in ("torch.nn", "step"):
        timed = [r for r in rows[1:] if (r["what"], r["driver"]) == ("time", driver)]
        assert len(timed) == 1
        for row in timed:
            assert set(row["us"]) == {"inference", "forward", "backward"}
            assert all(us > 0 for of_steps in row["us"].values() for us in of_steps.values())
    (page,) = tmp_path.glob("*-gpu-check-times.md")
    assert "| lstm | tf32 | backward | step | 2 |" in page.read_text()


def test_steps_and_calls_are_told_apart() -> None:
    """7 us a step and 30 us for the rest of a call."""
    us = {"64": 7 * 64 + 30.0, "256": 7 * 256 + 30.0}
    assert cuda_report.line(us) == (7, 30)
    where = {"what": "time", "cell": "lstm", "dtype": "bf16", "H": 64, "B": 8}
    rows = [
        where
        | {"driver": driver, "us": {which: {T: t * factor for T, t in us.items()} for which in PASSES}}
        for driver, factor in (("torch.nn", 1), ("step", 2), ("block", 0.5))
    ]
    page = cuda_report.markdown([{"what": "about", "device": "H200"}, *rows])
    assert "| lstm | bf16 | 64 | 8 | 7.00 + 30 | 14.00 + 60 | 3.50 + 15 | block | 2.00 |" in page
    wrong = {**where, "what": "check", "driver": "block", "served": True, "right": False}
    page = cuda_report.markdown([*rows, wrong | {"error": 0.1, "torch_error": 0.01}])
    assert "block, lstm bf16 64 8: wrong: error 0.1, torch.nn's 0.01" in page
    assert "| lstm | bf16 | 64 | 8 | 7.00 + 30 | 14.00 + 60 | step | 0.50 |" in page


def test_a_driver_is_left_out_after_three_failures(tmp_path: Path) -> None:
    args = cuda.parser().parse_args(["check", "--device", "cpu", "--drivers", "faults", "--batch", "1"])
    args.hidden, args.cells, args.dtypes = [2, 3, 4, 5, 6], ["lstm"], ["fp32"]
    rows = list(cuda.rows(args, time.monotonic() + 100, [], tmp_path))
    assert [r["failed"] for r in rows] == ["ended with status -6"] * 3
    assert list(cuda.rows(args, time.monotonic() + 100, rows, tmp_path)) == []


def test_time_suffices_for_every_step() -> None:
    default = 580
    reserved = gpu_check.FOR_TIMES + gpu_check.FOR_REST
    assert gpu_check.build(False).seconds + 60 + reserved <= default
    command = gpu_check.benchmark("times", "time", ["step", "cluster"], 200, Path("out"), False)
    assert command.seconds < 220
    assert command.command[command.command.index("--drivers") + 1 :][:2] == ["step", "cluster"]


def test_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 1
    assert "gpu-check needs a GPU, and torch sees none here" in capsys.readouterr().err
