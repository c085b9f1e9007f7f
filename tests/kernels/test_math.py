"""exp, sigmoid and tanh of csrc/cells/math.h and their approximations: largest errors, and vectorized."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import numpy as np
import program
import pytest
import torch
from conftest import PROGRAM

FUNCTIONS = ("exp", "sigmoid", "tanh")
FORMS = ("scalar", "vector")
APPROXIMATE = ("sigmoid", "tanh")
TYPES = {"float": np.float32, "double": np.float64}


@pytest.fixture
def math_target(target: str) -> str:
    if target == "avx512_amx_emulated":
        pytest.skip("its functions are those of avx512_amx")
    return target


def call(target: str, form: str, name: str, x: np.ndarray) -> np.ndarray:
    of_form = APPROXIMATE if form == "approximate" else FUNCTIONS
    numbers = [x.size, (*FORMS, "approximate").index(form), x.dtype == np.float64, of_form.index(name)]
    _, y = PROGRAM.call(
        target, "math", name, numbers, [torch.from_numpy(x), torch.zeros(x.size).to(torch.from_numpy(x))]
    )
    assert y is not None
    return y.numpy()


def exact(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    if name == "exp":
        return np.exp(x)
    return 1 / (1 + np.exp(-x)) if name == "sigmoid" else np.tanh(x)


def stated_ulps() -> dict[str, dict[str, float]]:
    """The table in math.h: by type, then by function."""
    text = (program.CSRC / "cells/math.h").read_text()
    rows = re.findall(r"^//\s+(float|double)\s+(\S+)\s+(\S+)\s+(\S+)$", text, re.MULTILINE)
    return {row[0]: dict(zip(FUNCTIONS, map(float, row[1:]), strict=True)) for row in rows}


def samples(dtype: type, name: str) -> np.ndarray:
    """Dense over the range before the function saturates, and over the exponents of small numbers."""
    info = np.finfo(dtype)
    lowest, highest = (-87.0, 88.0) if dtype is np.float32 else (-708.0, 709.0)
    if name == "tanh":
        lowest, highest = -20.0, 20.0
    if name == "sigmoid":
        highest = -lowest
    even = np.linspace(lowest, highest, 1 << 19)
    small = np.geomspace(float(info.tiny), highest, 1 << 17)
    near = np.linspace(-1.5, 1.5, 1 << 18)
    every = np.concatenate([even, near, small, np.maximum(-small, lowest)])
    # An odd number of them, so that the last vector is incomplete.
    return every.astype(dtype)[: every.size // 2 * 2 - 1]


@cache
def cases(dtype: type, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, the exact results, and an ulp of each."""
    x = samples(dtype, name)
    e = exact(name, x)
    return x, e, np.spacing(np.maximum(np.abs(e), np.finfo(dtype).tiny).astype(dtype)).astype(np.longdouble)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_largest_error_is_as_stated(math_target: str, name: str, kind: str, form: str) -> None:
    x, e, ulp = cases(TYPES[kind], name)
    y = call(math_target, form, name, x)
    error = np.abs(y.astype(np.longdouble) - e) / ulp
    worst = int(error.argmax())
    assert error[worst] <= stated_ulps()[kind][name], (
        f"{name}({x[worst]!r}) = {y[worst]!r}, {error[worst]} ulp"
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TYPES)
def test_ends_of_the_range(math_target: str, kind: str, form: str) -> None:
    info = np.finfo(TYPES[kind])
    x = np.zeros(67, TYPES[kind])
    x[:6] = x[-6:] = [np.inf, -np.inf, np.nan, info.max, info.min, -0.0]
    for part in (slice(None), slice(61, None)):
        exp, sigmoid, tanh = (call(math_target, form, name, x)[part] for name in FUNCTIONS)
        assert np.isnan([exp[2], sigmoid[2], tanh[2]]).all()
        np.testing.assert_array_equal(tanh[[0, 1, 3, 4, 5]], [1, -1, 1, -1, 0])
        assert (sigmoid[[0, 3]] == 1).all()
        assert (sigmoid[[1, 4]] < 2 * info.tiny).all()
        assert exp[5] == 1
        assert exp[1] < 2 * info.tiny


@pytest.mark.parametrize("name", APPROXIMATE)
def test_largest_error_of_approximations(math_target: str, name: str) -> None:
    header = (program.CSRC / "cpu/isa/approximate.inl.h").read_text()
    stated = re.search(r"Largest error: (\S+) ", header)
    assert stated is not None
    x, e, _ = cases(np.float32, name)
    y = call(math_target, "approximate", name, x)
    error = np.abs(y.astype(np.longdouble) - e)
    worst = int(error.argmax())
    assert error[worst] <= float(stated[1]), f"{name}({x[worst]!r}) = {y[worst]!r}"

    ends = call(math_target, "approximate", name, np.array([np.nan, np.inf, -np.inf, 0], np.float32))
    assert np.isnan(ends[0])
    np.testing.assert_allclose(ends[1:], exact(name, np.array([np.inf, -np.inf, 0])), atol=float(stated[1]))


# Arithmetic on vectors, and calls of functions, as objdump writes them: float, double.
PACKED = {
    "x86_64": (r"\bv?(?:mul|add|fn?m(?:add|sub)\d*)ps\b", r"\bv?(?:mul|add|fn?m(?:add|sub)\d*)pd\b"),
    "aarch64": (r"\bf(?:mul|add|ml[as])\s+v\d+\.4s", r"\bf(?:mul|add|ml[as])\s+v\d+\.2d"),
}
CALLS = {"x86_64": r"\bcall\s+\S+\s+<([^>@+]+)", "aarch64": r"\bbl\s+\S+\s+<([^>@+]+)"}


@pytest.mark.skipif(program.ARCH not in PACKED, reason="its instructions are not known here")
@pytest.mark.skipif(program.SANITIZE, reason="sanitizers call functions")
def test_stays_vectorized(math_target: str) -> None:
    """The scalar loops, too, are turned into vector instructions, and nothing but memcpy is called."""
    if shutil.which(program.OBJDUMP) is None:
        pytest.skip(f"{program.OBJDUMP} is not installed")
    listing = subprocess.run(
        [program.OBJDUMP, "-drC", "--no-show-raw-insn", str(program.math_object(math_target))],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    called = set(re.findall(r"R_\w*(?:PLT32|CALL26)\s+(\w+)", listing)) - {"memcpy", "__stack_chk_fail"}
    assert not called, f"calls to {called}"
    for form in FORMS:
        for name in FUNCTIONS:
            for kind, packed in zip(TYPES, PACKED[program.ARCH], strict=True):
                body = re.search(rf"{form}_{name}_{kind}\([^\n]*>:\n(.*?)\n\n", listing + "\n\n", re.DOTALL)
                assert body is not None
                count = len(re.findall(packed, body[1]))
                assert count >= 10, f"{form} {name} of {kind} has {count} vector instructions"


@pytest.mark.skipif(program.SANITIZE, reason="sanitizers have code of their own")
def test_no_code_runs_at_the_start(target: str) -> None:
    """A target's code must not run before its processor is known."""
    if shutil.which(program.OBJDUMP) is None:
        pytest.skip(f"{program.OBJDUMP} is not installed")
    program.build()
    path = str(program.BUILD / f"{target}.o")
    headers = subprocess.run(
        [program.OBJDUMP, "-h", path], check=True, capture_output=True, text=True
    ).stdout
    assert ".text" in headers
    assert ".init_array" not in headers
