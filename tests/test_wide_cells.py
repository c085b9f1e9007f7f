"""Cells of more gates than one tile of a product has, compiled from tests/wide_cells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from torch import Tensor
from torch.utils import cpp_extension

HERE = Path(__file__).parent / "wide_cells"
CSRC = HERE.parent.parent / "csrc"

# The registry in HERE comes before the one in csrc.
FLAGS = [f"-I{HERE}", f"-I{CSRC}", "-std=c++20", "-O1", "-fopenmp", "-fvisibility=hidden"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]

GATES = {"five_gates": 5, "six_gates": 6, "seven_gates": 7, "eight_gates": 8}


@cache
def ops() -> torch._ops._OpNamespace:
    """torch.ops.fastrnn_wide, built on first use (a minute)."""
    names = ["arguments.cpp", "cpu_forward.cpp", "cpu_backward.cpp", "cpu_kernels.cpp", "stable/tensor.cpp"]
    sources = [HERE / "ops.cpp", *(CSRC / "torch" / name for name in names)]
    os.environ.setdefault("MAX_JOBS", "2")
    # ninja, if it is installed next to this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    build = CSRC.parent / "build" / "fastrnn_wide"
    build.mkdir(parents=True, exist_ok=True)
    cpp_extension.load(
        "fastrnn_wide",
        [str(p) for p in (*sources, *sorted((CSRC / "cpu").rglob("*.cpp")))],
        extra_cflags=FLAGS,
        extra_ldflags=["-fopenmp"],
        build_directory=str(build),
        is_python_module=False,
    )
    return torch.ops.fastrnn_wide


def as_int8(t: Tensor) -> Tensor:
    """Rounded to 255 numbers between the largest magnitude of each row and its negative."""
    scale = t.abs().amax(-1, keepdim=True) / 127
    return (t / scale).round() * scale


def loop(
    cell: str, x: Tensor, h: Tensor, c: Tensor, *weights: Tensor, rounded: Any = lambda t: t
) -> tuple[Tensor, ...]:
    """The equations of wide_cells/cells/registry.h: y, h_n, c_n. rounded: how products round factors."""
    w_ih, w_hh, b_ih, b_hh = weights
    w_ih, w_hh = rounded(w_ih), rounded(w_hh)
    last, outputs = GATES[cell] - 1, []
    for step in x:
        by_x = (rounded(step) @ w_ih.t() + b_ih).chunk(last + 1, 1)
        by_h = (rounded(h) @ w_hh.t() + b_hh).chunk(last + 1, 1)
        a = [(p + q).tanh() for p, q in zip(by_x[:last], by_h[:last], strict=True)]
        c = a[1] * c + (by_x[last] + a[0] * by_h[last]).tanh()
        h = c * sum(a[i] / i for i in range(2, last))
        outputs.append(h)
    return torch.stack(outputs), h, c


def draw(cell: str, T: int, B: int, I: int, H: int, dtype: torch.dtype) -> list[Tensor]:
    """x, h0, c0 and the weights, in numbers that every dtype has."""
    rows = GATES[cell] * H
    shapes = [(T, B, I), (B, H), (B, H), (rows, I), (rows, H), (rows,), (rows,)]
    scales = [1, 1, 1, I**-0.5, H**-0.5, 0.5, 0.5]
    return [(torch.randn(s) * f).bfloat16().to(dtype) for s, f in zip(shapes, scales, strict=True)]


def gradients(run: object, tensors: list[Tensor]) -> list[Tensor]:
    """Results of the loop, and the gradients of their weighted sum."""
    results = run(*tensors)  # type: ignore[operator]
    torch.manual_seed(1)
    loss = sum((t * torch.randn(t.shape).to(t.dtype)).sum() for t in results)
    return [*results, *torch.autograd.grad(loss, tensors)]


def ours(cell: str, tensors: list[Tensor], keep: int) -> list[Tensor]:
    """The same by the ops."""
    masks = (None, None, None, None, False)
    y, h_n, c_n, c, slots = ops().forward(cell, *tensors, *masks, keep)
    torch.manual_seed(1)
    dy, dh_n, dc_n = (torch.randn(t.shape).to(t.dtype) for t in (y, h_n, c_n))
    found = ops().backward(cell, dy, dh_n, dc_n, None, *tensors, *masks, y, c, slots, [True, True])
    return [y, h_n, c_n, *found[: len(tensors)]]


NAMES = ["y", "h_n", "c_n", "dx", "dh0", "dc0", "dw_ih", "dw_hh", "db_ih", "db_hh"]


# One step reads weights as they are; few rows leave products to torch; threads share units or sequences.
@pytest.mark.parametrize("keep", [1, 2], ids=["lean", "full"])
@pytest.mark.parametrize("sizes", [(1, 3, 9, 21), (20, 1, 33, 70), (9, 40, 5, 18)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", GATES)
def test_as_the_loop(cell: str, dtype: torch.dtype, sizes: tuple[int, ...], keep: int) -> None:
    def measure(seed: int) -> list[support.Error]:
        torch.manual_seed(seed)
        tensors = draw(cell, *sizes, dtype)
        exact, torchs = (
            gradients(lambda *t: loop(cell, *t), support.leaves(*(t.to(of) for t in tensors)))
            for of in (torch.float64, dtype)
        )
        with support.threads(2):
            mine = ours(cell, tensors, keep)
        return support.errors(NAMES, exact, torchs, mine, dtype, 400 if dtype == torch.float64 else 4)

    support.check_rule(f"{cell} {sizes}", dtype, measure)


@pytest.mark.parametrize("weights", ["own", "bfloat16", "int8"])
@pytest.mark.parametrize("cell", GATES)
def test_prepacked(cell: str, weights: str) -> None:
    if weights == "bfloat16" and not support.HAS_BFLOAT16_PRODUCTS:
        pytest.skip("this processor does not multiply bfloat16")
    torch.manual_seed(0)
    x, h0, c0, w_ih, w_hh, *biases = draw(cell, 5, 7, 12, 33, torch.float32)
    panels = ops().prepack(cell, w_ih, w_hh, None, weights)
    y, _, c_n, _ = ops().forward_prepacked(
        cell, x, h0, c0, panels, *biases, 33, weights, None, None, None, False, 0
    )
    exact = loop(cell, x, h0, c0, w_ih, w_hh, *biases)
    bound = 1e-5
    if weights != "own":
        rounded = as_int8 if weights == "int8" else lambda t: t.bfloat16().float()
        simulated = loop(cell, x, h0, c0, w_ih, w_hh, *biases, rounded=rounded)
        bound = 2 * (simulated[0] - exact[0]).abs().max().item()
    assert (y - exact[0]).abs().max() <= bound
    assert (c_n - exact[2]).abs().max() <= bound


REFUSED = """
#include "cells/cell.h"
struct Bad {{
  static constexpr int gates = {gates}, slots = {slots};
  static constexpr int x_slot[gates] = {{{x}}}, h_slot[gates] = {{{h}}};
  static constexpr bool has_c = {has_c}, keeps_slots = true, projects = {projects};
}};
static_assert(fastrnn::keeps_the_contract<Bad>());
"""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"gates": 9, "slots": 9, "x": "0,1,2,3,4,5,6,7,8", "h": "0,1,2,3,4,5,6,7,8"}, "1 to 8 gates"),
        ({"slots": 5}, "one or two slots for a gate"),
        ({"slots": 3}, "leave no slot unused"),
        ({"x": "0, -1"}, "leave no slot unused"),
        ({"x": "0, 2"}, "leave no slot unused"),
        ({"x": "1, 0"}, None),
        ({"x": "0, 0"}, "name none twice"),
        ({"projects": "true"}, "output\\(\\) computes h from c and the slots"),
    ],
)
def test_contract(changed: dict[str, object], message: str | None, tmp_path: Path) -> None:
    """What the drivers cannot serve does not compile, and the compiler says why."""
    facts = {"gates": 2, "slots": 2, "x": "0, 1", "h": "0, 1", "has_c": "false", "projects": "false"}
    source = tmp_path / "bad.cpp"
    source.write_text(REFUSED.format(**{**facts, **changed}))
    command = [cpp_extension.get_cxx_compiler(), "-std=c++20", "-fsyntax-only", f"-I{CSRC}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (message is None), done.stderr
    if message:
        assert re.search(message, done.stderr)
