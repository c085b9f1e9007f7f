"""What nvcc makes of the kernels: PTX alone, which needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent.parent / "csrc"
NVCC = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/nvcc")
pytestmark = pytest.mark.skipif(not Path(NVCC).exists(), reason="there is no nvcc on this machine")

MATH = """
#include "cells/math.h"
extern "C" __global__ void of_FUNCTION(const TYPE* x, TYPE* y) { *y = fastrnn::FUNCTION(*x); }
"""


def ptx(tmp_path: Path, source: str) -> list[str]:
    """The instructions that a kernel is compiled to, each with its type."""
    kernel, to = tmp_path / "kernel.cu", tmp_path / "kernel.ptx"
    kernel.write_text(source)
    command = [NVCC, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-arch=sm_90", "-ptx"]
    done = subprocess.run(
        [*command, f"-I{CSRC}", str(kernel), "-o", str(to)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"^\s+(?:@%p\d+ )?([a-z][\w.:]+)\b.*;$", to.read_text(), re.MULTILINE)


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("function", ["exp", "sigmoid", "tanh"])
def test_functions_of_cells_are_arithmetic_alone(tmp_path: Path, function: str, kind: str) -> None:
    """No loop, no conversion of an integer (a constant that was not computed), no division of floats."""
    found = ptx(tmp_path, MATH.replace("FUNCTION", function).replace("TYPE", kind))
    assert [name for name in found if name.startswith(("cvt.rn.f", "bra", "call"))] == []
    divisions = [name for name in found if name.startswith("div")]
    assert divisions == ([] if kind == "float" or function == "exp" else ["div.rn.f64"])
    assert len(found) <= 60


GRID = """
#include "cells/rnn.h"
#include "cuda/on_chip/grid_kernels.cuh"
namespace fastrnn::cuda {
template __global__ void grid_forward<Rnn<Tanh>, BFloat16>(GridForward<BFloat16>);
}
"""


def test_polls_of_flags_keep_the_l1_cache(tmp_path: Path) -> None:
    """A warp that waits polls relaxed, as an acquire discards the cache each time; one acquire follows."""
    found = ptx(tmp_path, GRID)
    assert found.count("ld.relaxed.gpu.global.u32") >= 2  # a flag, and whether someone gave up
    assert "ld.acquire.gpu.global.u32" in found
