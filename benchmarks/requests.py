"""python -m benchmarks.requests: many threads that call one model, as a server does.

Each thread sends one request after the other to a layer with packed weights, and every call uses one thread
of its library. Prints throughput and latency for fastrnn, ONNX Runtime and torch.nn under the same load,
alone and next to two processes that keep computing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import arguments, layers, peers
from benchmarks.report import table
from benchmarks.shapes import Case


@dataclass(frozen=True)
class Load:
    """What a library did with the requests.

    Attributes:
        rate: requests a second of all threads together.
        median, p99: seconds from a request to its answer.
    """

    rate: float
    median: float
    p99: float


def measure(call: Callable[[], object], threads: int, seconds: float) -> Load:
    """The load of `threads` threads that call it again and again."""
    call()
    start, latencies = threading.Barrier(threads), [list[float]() for _ in range(threads)]

    def client(own: list[float]) -> None:
        start.wait()
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            call()
            own.append(time.perf_counter() - began)

    clients = [threading.Thread(target=client, args=(own,)) for own in latencies]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    every = np.concatenate(latencies)
    return Load(len(every) / seconds, float(np.median(every)), float(np.quantile(every, 0.99)))


def libraries(case: Case, int8: bool) -> dict[str, Callable[[], object]]:
    """Calls of the layer in each library, which use as many threads as torch."""
    made = {
        "fastrnn": peers.prepacked_call(case, None),
        "torch.nn": layers.call(case, layers.LIBRARIES["torch.nn"]),
    }
    available = peers.available()
    if "ONNX Runtime" in available:
        made["ONNX Runtime"] = peers.onnxruntime_call(case)
    if int8:
        made["fastrnn int8"] = peers.prepacked_call(case, "int8")
        if "ONNX Runtime" in available and case.cell == "lstm":
            made["ONNX Runtime int8"] = peers.onnxruntime_call(case, int8=True)
    return made


def _compute_forever() -> None:
    while True:
        sum(range(10_000))


@contextmanager
def neighbors(count: int) -> Iterator[None]:
    """Processes that keep a core busy each."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=_compute_forever, daemon=True) for _ in range(count)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def report(case: Case, threads: int, seconds: float, int8: bool) -> str:
    """A line for each library and number of busy neighbors."""
    calls = libraries(case, int8)
    alone = {name: measure(call, 1, seconds) for name, call in calls.items()}
    lines = []
    for busy in (0, 2):
        with neighbors(busy):
            for name, call in calls.items():
                load = measure(call, threads, seconds)
                lines.append(
                    [
                        name,
                        str(busy),
                        f"{load.rate:,.0f}",
                        f"{load.rate / alone[name].rate:.2f}",
                        f"{load.median * 1e3:.2f}",
                        f"{load.p99 * 1e3:.2f}",
                    ]
                )
    header = ["library", "busy neighbors", "requests/s", "times one thread's", "median ms", "p99 ms"]
    return table(header, lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests", description=__doc__)
    parser.add_argument("--cell", choices=("lstm", "gru"), default="lstm")
    parser.add_argument("--hidden", type=arguments.positive_int, default=256)
    parser.add_argument("--steps", type=arguments.positive_int, default=50)
    parser.add_argument("--threads", type=arguments.positive_int, default=8, help="that send requests")
    parser.add_argument("--seconds", type=arguments.seconds, default=2.0, help="of each measurement")
    parser.add_argument("--no-int8", action="store_true", help="float32 only")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    case = Case("peers", args.cell, "inference", "float32", args.hidden, B=1, T=args.steps)
    cores = len(os.sched_getaffinity(0))
    print(f"{case.cell} {case.shape}, {args.threads} threads on {cores} cores\n")
    print(report(case, args.threads, args.seconds, not args.no_int8))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
