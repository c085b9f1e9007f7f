"""The machine's limits: matrix products, reads from the L2 caches, and the latency between cores."""

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
    """Figures of all threads together; None if they could not be measured.

    Attributes:
        gflops: dtype -> GFLOP/s of the matrix product in the fastest library.
        l2_read: GB/s of reads from half of each thread's L2 cache.
        l2_bytes: total size of the L2 caches of the threads.
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
    return Peaks(gflops, cache_read(size // sharing // 2, threads), size // sharing * threads)


def gemm(dtype: torch.dtype, seconds: float) -> float:
    """GFLOP/s of the fastest of several libraries, at two sizes."""
    best = 0.0
    for n in (1024, 2048):
        a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
        times = interleave(_products(a, b), seconds=seconds / 2)
        best = max(best, 2 * n**3 / min(t.minimum for t in times.values()) / 1e9)
    return best


def _products(a: torch.Tensor, b: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The same product in each available library: the fastest one depends on the CPU's vendor."""
    products: dict[str, Callable[[], object]] = {"torch.mm": lambda: torch.mm(a, b)}
    if torch._C._has_mkldnn:
        linear = torch.ops.mkldnn._linear_pointwise.default
        products["oneDNN"] = lambda: linear(a, b, None, "none", [], "")
    if a.dtype == torch.float32:
        left, right = a.numpy(), b.numpy()
        products["numpy"] = lambda: left @ right
    return products


def cache_read(size: int, threads: int) -> float | None:
    """GB/s of all threads together, while each reads its own `size` bytes repeatedly.

    None without a C compiler: no Python library reads at the full speed of a cache.
    """
    library = _cores()
    if library is None:
        return None
    read = library.read_floats
    count = size // 4 // 256 * 256
    repeats = max(1, int(2e9 / (4 * count)))  # about 20 ms
    buffers = [torch.zeros(count) for _ in range(threads)]

    def one(buffer: torch.Tensor) -> float:
        return reading(lambda: read(buffer.data_ptr(), count, repeats))

    # ctypes releases the GIL during the call, so these threads run concurrently.
    with ThreadPoolExecutor(threads) as pool:
        slowest = min(max(pool.map(one, buffers)) for _ in range(10))
    return threads * repeats * 4 * count / slowest / 1e9


def byte_products(threads: int) -> float | None:
    """Billions of products of bytes a second of all threads together; None if no instruction is known."""
    library, repeats = _cores(), 3_000_000
    if library is None or library.multiply_bytes(1) == 0:
        return None

    def one(_: int) -> float:
        return reading(lambda: library.multiply_bytes(repeats))

    with ThreadPoolExecutor(threads) as pool:
        slowest = min(max(pool.map(one, range(threads))) for _ in range(10))
    return float(threads * library.multiply_bytes(repeats) / slowest / 1e9)


def round_trip() -> float | None:
    """Nanoseconds for a cache line to another core and back; None without a C compiler or a second core.

    It tells whether the two share a cache. On a virtual machine this may change from minute to minute.
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
    library.multiply_bytes.restype = ctypes.c_long
    library.multiply_bytes.argtypes = [ctypes.c_long]
    library.hand_over.restype = None
    library.hand_over.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    return library
