"""Each CPU target that this processor runs, forced in turn, passes the tests of exactness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn

HERE = Path(__file__).resolve().parent
TESTS = (
    "test_parity.py",
    "test_int8.py",
    "test_ops.py::test_equals_the_reference",
    "test_autograd.py::test_exhaustive",
)
INFO = fastrnn.build_info()


@pytest.mark.parametrize("target", INFO["cpu_targets"])
def test_target(target: str) -> None:
    if target not in INFO["cpu_targets_usable"]:
        pytest.skip(f"this processor does not run {target}")
    if target == INFO["cpu_target"]:
        pytest.skip(f"all other tests run on {target}")
    environment = {**os.environ, "FASTRNN_CPU_CAPABILITY": target, "FASTRNN_TEST_CONFIGS": "50"}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "not by_units and not long-",
            *TESTS,
        ],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-4000:]
