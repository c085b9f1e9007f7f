"""What this machine attains: matrix products, reads from the L2 caches, and the way from core to core."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.timing import interleave, reading


@dataclass(frozen=True)
class Peaks:
    """Figures of all threads together; None where they could not be had.

    Attributes:
        gflops: dtype -> GFLOP/s of the fastest library's matrix product.
        l2_read: GB/s of reads from half of each thread's L2 cache.
        l2_bytes: size of the L2 caches of the threads, together.
    """

    gflops: dict[str, float]
    l2_read: float | None
    l2_bytes: int | None


def measure(seconds: float) -> Peaks:
    threads = torch.get_num_threads()
    level_two = machine.caches().get("L2")
    gflops = {"float32": gemm(torch.float32, seconds), "bfloat16": gemm(torch.bfloat16, seconds)}
    if level_two is None:
        return Peaks(gflops, None, None)
    size, sharing = level_two
    return Peaks(gflops, l2_read(size // sharing // 2, threads), size // sharing * threads)


def gemm(dtype: torch.dtype, seconds: float) -> float:
    """GFLOP/s of the best of torch's libraries and numpy's at two sizes."""
    best = 0.0
    for n in (1024, 2048):
        a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
        times = interleave(_products(a, b), seconds=seconds / 2)
        best = max(best, 2 * n**3 / min(t.minimum for t in times.values()) / 1e9)
    return best


def _products(a: torch.Tensor, b: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The same product by each library that is there: which is fastest depends on the CPU's maker."""
    products: dict[str, Callable[[], object]] = {"torch.mm": lambda: torch.mm(a, b)}
    if torch._C._has_mkldnn:
        linear = torch.ops.mkldnn._linear_pointwise.default
        products["oneDNN"] = lambda: linear(a, b, None, "none", [], "")
    if a.dtype == torch.float32:
        left, right = a.numpy(), b.numpy()
        products["numpy"] = lambda: left @ right
    return products


def l2_read(size: int, threads: int) -> float | None:
    """GB/s of all threads together, each reading `size` bytes of its own again and again.

    None without a C compiler: no Python library reads at a cache's full speed.
    """
    library = _cores()
    if library is None:
        return None
    read = library.read_floats
    count = size // 4 // 256 * 256
    repeats = max(1, int(2e9 / (4 * count)))  # some 20 ms
    buffers = [torch.zeros(count) for _ in range(threads)]

    def one(buffer: torch.Tensor) -> float:
        return reading(lambda: read(buffer.data_ptr(), count, repeats))

    # ctypes gives the lock free during the call, so that these threads do run at once.
    with ThreadPoolExecutor(threads) as pool:
        slowest = min(max(pool.map(one, buffers)) for _ in range(10))
    return threads * repeats * 4 * count / slowest / 1e9


def round_trip() -> float | None:
    """Nanoseconds that a cache line takes to another core and back; None without a C compiler or that core.

    It tells whether the two share a cache, which on a virtual machine may change from minute to minute.
    """
    library = _cores()
    if library is None or len(os.sched_getaffinity(0)) == 1:
        return None
    line, turns = torch.zeros(64, dtype=torch.int64), 5000

    def one(begin: int) -> float:
        return reading(lambda: library.hand_over(line.data_ptr(), begin, turns))

    with ThreadPoolExecutor(2) as pool:
        seconds = []
        for _ in range(3):
            line.zero_()
            seconds.append(max(pool.map(one, (0, 1))))
    return min(seconds) / turns * 1e9


@cache
def _cores() -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cores.so"
        source = Path(__file__).with_name("cores.c")
        subprocess.run(
            [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", path, source], check=True
        )
        library = ctypes.CDLL(str(path))
    library.read_floats.restype = ctypes.c_float
    library.read_floats.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    library.hand_over.restype = None
    library.hand_over.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    return library
