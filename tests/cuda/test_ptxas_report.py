"""tools/ptxas_report.py: what it reads from a build's log, and that a spill fails it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent.parent / "tools"))

import ptxas_report


def log(tmp_path: Path, spills: dict[str, int]) -> Path:
    """Of a build that compiled these files, each with one kernel that spills so many bytes."""
    text = "running build_ext\n"
    for i, (name, spilled) in enumerate(spills.items()):
        source = tmp_path / f"{name}.cu"
        source.touch()
        text += (
            f"[{i + 1}/{len(spills)}] nvcc -Xptxas=-v -c {source} -o {name}.o\n"
            "ptxas info    : 0 bytes gmem\n"
            f"ptxas info    : Compiling entry function '_Z{len(name)}{name}v' for 'sm_90'\n"
            f"ptxas info    : Function properties for _Z{len(name)}{name}v\n"
            f"    8 bytes stack frame, {spilled} bytes spill stores, {spilled} bytes spill loads\n"
            "ptxas info    : Used 168 registers, used 1 barriers\n"
        )
    path = tmp_path / "build.log"
    path.write_text(text)
    return path


def test_a_spill_fails_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ptxas_report.main([str(log(tmp_path, {"block": 0, "grid": 0}))]) == 0
    assert "sm_90: 2 kernels, 0 that spill" in capsys.readouterr().out
    assert ptxas_report.main([str(log(tmp_path, {"block": 0, "grid": 4}))]) == 1
    out, err = capsys.readouterr()
    assert "168 registers     8 bytes spilled  grid" in out
    assert "kernels spill" in err


def test_files_that_were_not_compiled_again_count(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()

    def status(spills: dict[str, int]) -> int:
        return ptxas_report.main([str(log(tmp_path, spills)), str(kept)])

    assert status({"block": 0, "grid": 4}) == 1
    assert status({"block": 0}) == 1
    assert status({}) == 1
    assert status({"grid": 0}) == 0
    assert status({}) == 0
    assert status({"cluster": 4}) == 1
    (tmp_path / "cluster.cu").unlink()
    assert status({}) == 0


def test_a_log_without_kernels_fails_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ptxas_report.main([str(log(tmp_path, {}))]) == 1
    assert "no kernel was compiled" in capsys.readouterr().err
