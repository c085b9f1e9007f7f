"""The product by tiles (csrc/cpu/isa/amx.h) and the panels it reads, with the matrix instructions emulated.

Compiled here into a small library, so that it is tested where no processor has them.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent

SOURCE = """
#include <immintrin.h>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#define FASTRNN_TARGET tested
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_HAS_AVX512
#define FASTRNN_HAS_VNNI
#define FASTRNN_HAS_BF16_DOT
#define FASTRNN_HAS_AMX
#define FASTRNN_EMULATED_AMX
#include "cpu/kernels.h"

namespace fastrnn {
#include "cpu/isa/lanes.inl.h"
}

namespace fastrnn::tested {
#include "cpu/isa/vector.inl.h"
#include "cpu/isa/intrinsics.inl.h"
#include "cpu/isa/load_store.inl.h"
#include "cpu/isa/matmul.inl.h"
#include "cpu/isa/convert.inl.h"
#include "cpu/isa/pack.inl.h"
#include "cpu/isa/int8.inl.h"
#include "cpu/isa/amx.inl.h"

// acc [rows, vectors * 16] (+)= x [rows, x_row] times a panel of w: of its rows, gate by gate, where
// gates > 0, else of its first columns. x has zeros up to x_row.
template <int vectors, class Operand>
void product(int rows, int64_t k, const float* x, int64_t x_row, const float* w, int64_t w_row, int gates,
             int64_t H, int64_t units, void* panels, float* acc, bool accumulate) {
  using D = Dot<Operand, float>;
  const int64_t columns = vectors * 16;
  Operand* panel = static_cast<Operand*>(panels);
  if (gates > 0) {
    pack_transposed<float, Operand, float>(k, w, w_row, gates, H, units, columns / gates, panel);
  } else {
    pack<float, Operand, float>(k, w, w_row, units, columns, panel);
  }
  std::vector<Operand> a(rows * x_row);
  convert<float, Operand, float>(rows * x_row, x, a.data());
  const Operand* pointers[max_tile_rows];
  for (int m = 0; m < rows; ++m) pointers[m] = &a[m * x_row];
  const int64_t padded = (k + D::k_step - 1) / D::k_step * D::k_step;
  for_constants(std::make_integer_sequence<int, max_tile_rows>{}, [&](auto row) {
    if (row + 1 == rows) {
      multiply_by_tiles<row + 1, vectors, Operand>(padded, pointers, panel, columns * D::k_step, acc,
                                                   accumulate);
    }
  });
}

// The same of quantized rows and weights, gate by gate.
template <int vectors>
void int8_product(int rows, int64_t k, const float* x, const float* w, int gates, int64_t H, int64_t units,
                  float* acc) {
  const int64_t columns = vectors * 16, padded = int8_padded(k), row_bytes = padded + 64;
  std::vector<int8_t> panel((padded + 8) * columns);
  pack_int8(k, w, k, gates, H, units, columns / gates, panel.data());
  std::vector<QuantizedByte> a(rows * row_bytes);
  const QuantizedByte* pointers[max_tile_rows];
  for (int m = 0; m < rows; ++m) {
    quantize_row(k, x + m * k, &a[m * row_bytes]);
    pointers[m] = &a[m * row_bytes];
  }
  for_constants(std::make_integer_sequence<int, max_tile_rows>{}, [&](auto row) {
    if (row + 1 == rows) {
      multiply_int8_by_tiles<row + 1, vectors>(padded, pointers, panel.data(), columns * int8_k_step, acc,
                                               false);
    }
  });
}
}  // namespace fastrnn::tested

extern "C" __attribute__((visibility("default"))) void int8_product(
    int vectors, int rows, int64_t k, const float* x, const float* w, int gates, int64_t H, int64_t units,
    float* acc) {
  using namespace fastrnn;
  const auto run = vectors == 3 ? tested::int8_product<3> : tested::int8_product<4>;
  run(rows, k, x, w, gates, H, units, acc);
}

extern "C" __attribute__((visibility("default"))) void product(
    bool split, int vectors, int rows, int64_t k, const float* x, int64_t x_row, const float* w,
    int64_t w_row, int gates, int64_t H, int64_t units, void* panel, float* acc, bool accumulate) {
  using namespace fastrnn;
  const auto run = split ? vectors == 3 ? tested::product<3, SplitFloat> : tested::product<4, SplitFloat>
                         : vectors == 3 ? tested::product<3, BFloat16> : tested::product<4, BFloat16>;
  run(rows, k, x, x_row, w, w_row, gates, H, units, panel, acc, accumulate);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    if "avx512_bf16" not in fastrnn.build_info()["cpu_targets_usable"]:
        pytest.skip("this processor does not run avx512_bf16, which the tiles' target needs")
    folder = tmp_path_factory.mktemp("amx")
    source, built = folder / "amx.cpp", folder / "amx.so"
    source.write_text(SOURCE)
    flags = [
        "-std=c++20",
        "-O1",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512vnni",
        "-mavx512bf16",
        "-mfma",
    ]
    flags += ["-mf16c", "-Wno-psabi", "-Wno-ignored-attributes", "-fPIC", "-shared", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, "-o", built, source], check=True)
    return ctypes.CDLL(str(built))


def rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def split(x: np.ndarray) -> np.ndarray:
    """To the nearest sum of two bfloat16."""
    return rounded(x).astype(np.float64) + rounded(x - rounded(x))


@pytest.mark.parametrize("operand", [rounded, split])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("k", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
@pytest.mark.parametrize(("vectors", "gates"), [(4, 4), (3, 3), (4, 1), (4, 0)])
def test_product(
    library: ctypes.CDLL,
    vectors: int,
    gates: int,
    rows: int,
    k: int,
    accumulate: bool,
    operand: Callable[[np.ndarray], np.ndarray],
) -> None:
    random = np.random.default_rng(0)
    columns = 16 * vectors
    block = columns // gates if gates else columns
    units = block - 3  # the rest is to be zero
    H = block + 2
    w = random.standard_normal((gates * H, k) if gates else (k, units + 1)).astype(np.float32)
    exact = np.zeros((k, columns), np.float32)
    for g in range(gates):
        exact[:, g * block : g * block + units] = w[g * H : g * H + units].T
    if not gates:
        exact[:, :units] = w[:, :units]
    x_row = (k + 31) // 32 * 32 + 32
    x = np.zeros((rows, x_row), np.float32)
    x[:, :k] = random.standard_normal((rows, k))
    acc = random.standard_normal((rows, columns)).astype(np.float32)
    expected = operand(x[:, :k]) @ operand(exact) + accumulate * acc
    panel = np.full(2 * x_row * columns, 0x7FC0, np.uint16)  # NaN, wherever packing forgets to write
    library.product(
        ctypes.c_bool(operand is split),
        vectors,
        rows,
        ctypes.c_int64(k),
        x.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(x_row),
        w.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(w.shape[1]),
        gates,
        ctypes.c_int64(H),
        ctypes.c_int64(units),
        panel.ctypes.data_as(ctypes.c_void_p),
        acc.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_bool(accumulate),
    )
    np.testing.assert_allclose(acc, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
@pytest.mark.parametrize(("vectors", "gates"), [(4, 4), (3, 3), (4, 1)])
def test_product_of_bytes(library: ctypes.CDLL, vectors: int, gates: int, rows: int, k: int) -> None:
    """Whole numbers with 127 among each row's are quantized to themselves, so that the sums are exact."""
    random = np.random.default_rng(0)
    columns = 16 * vectors
    block = columns // gates
    units = block - 3  # the rest is to be zero
    H = block + 2
    x = random.integers(-127, 128, (rows, k)).astype(np.float32)
    w = random.integers(-127, 128, (gates * H, k)).astype(np.float32)
    x[:, 0] = w[:, 0] = 127
    expected = np.zeros((rows, columns), np.float32)
    for g in range(gates):
        expected[:, g * block : g * block + units] = x @ w[g * H : g * H + units].T
    acc = np.full((rows, columns), np.nan, np.float32)
    library.int8_product(
        vectors,
        rows,
        ctypes.c_int64(k),
        x.ctypes.data_as(ctypes.c_void_p),
        w.ctypes.data_as(ctypes.c_void_p),
        gates,
        ctypes.c_int64(H),
        ctypes.c_int64(units),
        acc.ctypes.data_as(ctypes.c_void_p),
    )
    np.testing.assert_array_equal(acc, expected)
