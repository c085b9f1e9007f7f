"""Whether the machine is quiet enough to measure on."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import reading

# How many cores other programs (or other guests of the host) may use, and how far the median time of a
# fixed task may exceed its minimum.
MAX_OTHERS = 0.15
MAX_SPREAD = 0.10

_STAT = Path("/proc/stat")


class Neighbors:
    """The number of cores that other processes used, on average since this object was created."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = time.perf_counter(), _busy_seconds(), time.process_time()

    def cores(self) -> float:
        busy = _busy_seconds() - self._busy - (time.process_time() - self._own)
        return max(0.0, busy / max(time.perf_counter() - self._wall, 1e-9))


def _busy_seconds() -> float:
    """Busy time of all processors, including time taken by the host; 0 if the system does not report it."""
    if not _STAT.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, _STAT.read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Look:
    """How busy the machine is.

    Attributes:
        others: cores that other processes use.
        spread: how far the median time of a fixed matrix product exceeds its minimum.
    """

    others: float
    spread: float

    @property
    def busy(self) -> bool:
        return self.others > MAX_OTHERS or self.spread > MAX_SPREAD

    def __str__(self) -> str:
        return (
            f"other programs use {self.others:.2f} of {os.cpu_count()} cores (limit {MAX_OTHERS:.2f}), the "
            f"median time of a product exceeds its minimum by {self.spread:.0%} (limit {MAX_SPREAD:.0%})"
        )


def look(seconds: float = 1.0) -> Look:
    """Sleeps to see what other processes use, then works to see how much its own times vary."""
    neighbors = Neighbors()
    time.sleep(seconds)
    others = neighbors.cores()
    a = torch.randn(384, 384)
    for _ in range(5):
        a @ a
    readings: list[float] = []
    end = time.perf_counter() + seconds / 2
    while time.perf_counter() < end or len(readings) < 10:
        readings.append(reading(lambda: a @ a, 3))
    return Look(others, statistics.median(readings) / min(readings) - 1)
