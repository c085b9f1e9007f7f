"""tools/gpu_check.py without a GPU: what becomes of steps that fail or hang, and a rehearsal of all."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "tools"))

import gpu_check
from gpu_check import Check, Step


def python(name: str, code: str, seconds: float = 20) -> Step:
    return Step(name, [sys.executable, "-S", "-c", code], seconds)


def check(tmp_path: Path, seconds: float = 30) -> Check:
    return Check(seconds, tmp_path / "results" / "report.md", {"GPU": "none"}, tmp_path / "logs")


def statuses(check: Check) -> dict[str, str]:
    return {r.name: r.status for r in check.results}


def test_every_step_has_its_result(tmp_path: Path) -> None:
    """One that hangs is ended with all that it started, and takes nothing from the others."""
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(3); open({str(alive)!r}, 'w')"
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
    assert time.monotonic() - start < 3
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
    time.sleep(max(0.0, start + 4 - time.monotonic()))
    assert not alive.exists()


def test_environment_and_passing(tmp_path: Path) -> None:
    one = check(tmp_path)
    code = "import os; print('driver', os.environ['FASTRNN_CUDA_DRIVER'])"
    one.run([Step("a", [sys.executable, "-S", "-c", code], 9, {"FASTRNN_CUDA_DRIVER": "cluster"})])
    assert one.passed("a")
    assert "driver cluster" in one.report.read_text()


def test_time_is_kept_for_what_comes_later(tmp_path: Path) -> None:
    one = check(tmp_path, seconds=4)
    one.run([python("first", "import time; time.sleep(20)")], later=3)
    one.run([python("too late", "pass")], later=4)
    one.run([python("last", "pass")])
    assert statuses(one) == {
        "first": "stopped after 1 s",
        "too late": "not run: no time left",
        "last": "passed",
    }
    # Written after each, so a report is there whatever ends the program.
    assert "| last | passed |" in one.report.read_text()


def test_all_that_is_planned_fits_nine_minutes() -> None:
    defaults = 520
    assert gpu_check.build(False).seconds + 100 + 20 + 60 < defaults
    for step in (gpu_check.tests("step", False), *gpu_check.sanitizers("cluster", False)):
        assert step.seconds <= 150
    command = gpu_check.benchmarks("benchmarks", ["step", "cluster"], 200, Path("out"), False)
    assert command.seconds < 230
    assert command.command[command.command.index("--drivers") + 1 :][:2] == ["step", "cluster"]


def test_a_rehearsal_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands themselves, on a CPU and small, but for the tests that are collected."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    status = gpu_check.main(["--rehearse", "--skip", "tests", "package", "--out", str(tmp_path)])
    (report,) = tmp_path.glob("*-gpu-check.md")
    assert status == 0, report.read_text()
    passed = {line.split(" | ")[0] for line in report.read_text().splitlines() if "| passed |" in line}
    names = {
        f"| {tool} of the {d} driver"
        for tool in ("memcheck", "racecheck")
        for d in gpu_check.drivers_built()
    }
    assert passed == {"| build", *names, "| benchmarks"}
    assert len(list(tmp_path.glob("*-gpu-check-benchmarks.*"))) == 2


def test_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 1
    assert "gpu-check needs a GPU, and torch sees none here" in capsys.readouterr().err
