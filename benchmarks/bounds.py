"""python -m benchmarks.bounds: packed weights against the machine's limits, measured in the same run.

The bound of a call is the time of its input product at the processor's rate of multiplications and, for
each step, the longer of two: to read w_hh from the cache that holds it, and to multiply. It leaves out the
cell's equations, the waiting of threads for each other, and the call.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import torch

from benchmarks import arguments, machine, peaks, peers
from benchmarks.report import microseconds, table
from benchmarks.shapes import BATCH, GATES, HIDDEN, Case
from benchmarks.timing import interleave

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Limits:
    """Of all threads together.

    Attributes:
        multiplies: weights -> billions of multiply-adds a second.
        reads: (bytes of all caches of a level together, GB/s), the fastest level first.
    """

    multiplies: dict[str, float]
    reads: list[tuple[int, float]]

    @classmethod
    def measure(cls, seconds: float) -> Limits:
        threads = torch.get_num_threads()
        rates = {
            "float32": peaks.gemm(torch.float32, seconds) / 2,
            "bfloat16": peaks.gemm(torch.bfloat16, seconds) / 2,
            "int8": peaks.byte_products(threads),
        }
        reads = []
        for level in ("L2", "L3"):
            if level in (caches := machine.caches()):
                size, sharing = caches[level]
                every = size // sharing * threads if level == "L2" else size
                # Half of the level, but far beyond the one before it.
                speed = peaks.cache_read(every // threads // 2, threads)
                if speed is not None:
                    reads.append((every, speed))
        return cls({name: rate for name, rate in rates.items() if rate}, reads)

    def bound(self, case: Case, weights: str) -> float:
        """Seconds of a call, at least."""
        products = case.B * GATES[case.cell] * case.H
        size = GATES[case.cell] * case.H * case.H * BYTES[weights]
        # The largest level takes what does not fit: its speed is an upper limit of memory's.
        speed = next((speed for every, speed in self.reads if size <= every), self.reads[-1][1])
        multiply = 1 / (self.multiplies[weights] * 1e9)
        step = max(products * case.H * multiply, size / (speed * 1e9))
        return case.T * (products * case.I * multiply + step)


def report(limits: Limits, cases: list[Case], seconds: float) -> str:
    """A line for each case: the time of each kind of weights, and the bound's share of it."""
    kinds = list(limits.multiplies)
    lines = []
    for case in cases:
        calls = {weights: peers.prepacked_call(case, weights) for weights in kinds}
        times = interleave(calls, seconds=seconds)
        line = [f"{case.cell} {case.shape}"]
        for weights in kinds:
            took = times[weights].minimum
            line += [microseconds(took), f"{limits.bound(case, weights) / took:.0%}"]
        lines.append(line)
    header = ["layer", *(name for weights in kinds for name in (f"{weights} us", "bound's share"))]
    return table(header, lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bounds", description=__doc__)
    parser.add_argument("--threads", type=arguments.positive_int, help="threads of torch")
    parser.add_argument("--seconds", type=arguments.seconds, default=0.3, help="for each case")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    limits = Limits.measure(args.seconds)
    if not limits.reads:
        print("the caches' speed is unknown: install a C compiler")
        return 1
    for weights, rate in limits.multiplies.items():
        print(f"{weights}: {rate:.0f} billion multiply-adds a second")
    for every, speed in limits.reads:
        print(f"caches of {machine.bytes_text(every)}: {speed:.0f} GB/s")
    cases = [
        Case("peers", cell, "inference", "float32", H, B, T=50)
        for cell, H, B in itertools.product(("lstm", "gru"), HIDDEN, BATCH)
    ]
    print(report(limits, cases, args.seconds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
