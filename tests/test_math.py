"""exp, sigmoid and tanh of csrc/cells/math.h: their largest errors, and that they stay vectorized.

The functions are compiled here with setup.py's flags into a small library, for one value and for each
vector size that this processor has.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent
MATH_H = ROOT / "csrc" / "cells" / "math.h"
FUNCTIONS = ("exp", "sigmoid", "tanh")
# Each CPU target's vector size and compiler flags.
TARGETS = {
    "portable": (16, []),
    "avx2": (32, ["-mavx2", "-mfma", "-mf16c"]),
    "avx512": (64, ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]),
}

SOURCE = """
#ifdef __x86_64__
#include <immintrin.h>
#endif
#define FASTRNN_VECTOR_BYTES VECTOR_BYTES
#if VECTOR_BYTES == 64
#define FASTRNN_HAS_AVX512
#endif
#include "cells/math.h"

namespace fastrnn {
#include "cpu/isa/lanes.inl.h"

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
}  // namespace fastrnn

#define EXPORT extern "C" __attribute__((visibility("default")))
#define FUNCTION(name, T)                                                          \\
  EXPORT void scalar_##name##_##T(const T* x, T* y, int64_t n) {               \\
    for (int64_t i = 0; i < n; ++i) y[i] = fastrnn::name(x[i]);                    \\
  }                                                                                \\
  EXPORT void vector_##name##_##T(const T* x, T* y, int64_t n) {               \\
    using V = fastrnn::VectorOf<T>::type;                                          \\
    constexpr int64_t lanes = VECTOR_BYTES / sizeof(T);                            \\
    for (int64_t i = 0; i + lanes <= n; i += lanes) {                              \\
      V v;                                                                         \\
      memcpy(&v, x + i, sizeof(v));                                                \\
      v = fastrnn::name(v);                                                        \\
      memcpy(y + i, &v, sizeof(v));                                                \\
    }                                                                              \\
  }
#define FUNCTIONS(T) FUNCTION(exp, T) FUNCTION(sigmoid, T) FUNCTION(tanh, T)
FUNCTIONS(float)
FUNCTIONS(double)
"""


def setup_flags() -> list[str]:
    """The compiler flags that setup.py gives."""
    text = (ROOT / "setup.py").read_text()
    lists = re.findall(r"^\s*cxx \+?= \[(.*)\]", text, re.MULTILINE)
    flags = [flag for found in lists for flag in re.findall(r'"([^"]+)"', found)]
    return [
        flag
        for flag in flags
        if flag not in ("-g", "-O1") and not flag.startswith(("-fsanitize", "-fno-sanitize"))
    ]


@pytest.fixture(scope="module", params=list(TARGETS))
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    if request.param not in fastrnn.build_info()["cpu_targets_usable"]:
        pytest.skip(f"this processor does not run {request.param}")
    size, flags = TARGETS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    source, built = folder / "math.cpp", folder / "math.so"
    source.write_text(SOURCE)
    library = ["-fPIC", "-shared", "-o", built]
    subprocess.run(
        ["g++", *setup_flags(), *flags, f"-DVECTOR_BYTES={size}", f"-I{ROOT / 'csrc'}", *library, source],
        check=True,
    )
    return built


def call(library: Path, name: str, x: np.ndarray) -> np.ndarray:
    function = getattr(ctypes.CDLL(str(library)), name)
    pointer = np.ctypeslib.ndpointer(dtype=x.dtype, flags="C")
    function.argtypes = [pointer, pointer, ctypes.c_int64]
    y = np.empty_like(x)
    function(x, y, x.size)
    return y


def exact(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    if name == "exp":
        return np.exp(x)
    return 1 / (1 + np.exp(-x)) if name == "sigmoid" else np.tanh(x)


def stated_ulps() -> dict[str, dict[str, float]]:
    """The table in math.h: by type, then by function."""
    rows = re.findall(r"^//\s+(float|double)\s+(\S+)\s+(\S+)\s+(\S+)$", MATH_H.read_text(), re.MULTILINE)
    return {row[0]: dict(zip(FUNCTIONS, map(float, row[1:]), strict=True)) for row in rows}


def samples(dtype: type, name: str) -> np.ndarray:
    """Dense over the range where the function is not saturated, and over the exponents of small numbers."""
    info = np.finfo(dtype)
    lowest, highest = (-87.0, 88.0) if dtype is np.float32 else (-708.0, 709.0)
    if name == "tanh":
        lowest, highest = -20.0, 20.0
    if name == "sigmoid":
        highest = -lowest
    even = np.linspace(lowest, highest, 1 << 19)
    small = np.geomspace(float(info.tiny), highest, 1 << 17)
    near = np.linspace(-1.5, 1.5, 1 << 18)
    # 64 is a multiple of every vector's number of lanes.
    every = np.concatenate([even, near, small, np.maximum(-small, lowest)]).astype(dtype)
    return every[: every.size // 64 * 64]


@pytest.mark.parametrize("form", ["scalar", "vector"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float", "double"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_largest_error_is_as_stated(library: Path, name: str, dtype: type, form: str) -> None:
    kind = "float" if dtype is np.float32 else "double"
    x = samples(dtype, name)
    y, e = call(library, f"{form}_{name}_{kind}", x), exact(name, x)
    ulp = np.spacing(np.maximum(np.abs(e), np.finfo(dtype).tiny).astype(dtype)).astype(np.longdouble)
    error = np.abs(y.astype(np.longdouble) - e) / ulp
    worst = int(error.argmax())
    assert error[worst] <= stated_ulps()[kind][name], (
        f"{name}({x[worst]!r}) = {y[worst]!r}, {error[worst]} ulp"
    )


@pytest.mark.parametrize("form", ["scalar", "vector"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float", "double"])
def test_ends_of_the_range(library: Path, dtype: type, form: str) -> None:
    kind = "float" if dtype is np.float32 else "double"
    x = np.zeros(64, dtype)
    x[:6] = [np.inf, -np.inf, np.nan, np.finfo(dtype).max, np.finfo(dtype).min, -0.0]
    exp, sigmoid, tanh = (call(library, f"{form}_{name}_{kind}", x) for name in FUNCTIONS)
    assert np.isnan([exp[2], sigmoid[2], tanh[2]]).all()
    np.testing.assert_array_equal(tanh[[0, 1, 3, 4, 5]], [1, -1, 1, -1, 0])
    assert (sigmoid[[0, 3]] == 1).all()
    assert (sigmoid[[1, 4]] < 2 * np.finfo(dtype).tiny).all()
    assert exp[5] == 1
    assert exp[1] < 2 * np.finfo(dtype).tiny


def test_stays_vectorized(library: Path) -> None:
    """The scalar loops, too, are turned into vector instructions, and nothing calls the C library."""
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(library)], check=True, capture_output=True, text=True
    ).stdout
    called = {
        name
        for name in re.findall(r"call\s+\S+\s+<([^>@+]+)", listing)
        if name not in ("_init", "__cxa_finalize", "deregister_tm_clones", "register_tm_clones")
        and not name.startswith("__")
    }
    assert not called, f"calls to {called}"
    for form in ("scalar", "vector"):
        for name in FUNCTIONS:
            for kind, suffix in (("float", "ps"), ("double", "pd")):
                body = re.search(rf"<{form}_{name}_{kind}>:\n(.*?)\n\n", listing + "\n\n", re.DOTALL)
                assert body is not None
                packed = re.findall(rf"\bv?(?:mul|add|fn?m(?:add|sub)\d*){suffix}\b", body[1])
                assert len(packed) >= 10, f"{form} {name} of {kind} has {len(packed)} vector instructions"
