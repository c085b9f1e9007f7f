"""Interleaved timing: calls take turns, so that a drift of the machine affects all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

# Short calls are repeated until a reading takes this long, far above the cost of the clock.
READING_S = 1e-3
MAX_ROUNDS = 2000


@dataclass(frozen=True)
class Times:
    """Seconds a call."""

    minimum: float
    median: float
    rounds: int

    @classmethod
    def of(cls, readings: list[float]) -> Times:
        return cls(min(readings), statistics.median(readings), len(readings))


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    rounds: int = 5,
    settle: float = 0.0,
) -> dict[str, Times]:
    """Times all calls, with one reading of each in a round.

    Takes rounds for `seconds` and at least `rounds` of them; after 4 * `seconds`, three are enough.

    Args:
        calls: name -> call to time.
        settle: before each reading, wait this many seconds and make one untimed call. For libraries with
            threads of their own, which spin for a while after a call.
    """
    with _no_garbage_collection():
        repeats = {name: _repeats(call) for name, call in calls.items()}
        readings: dict[str, list[float]] = {name: [] for name in calls}
        order = list(calls)
        start = time.perf_counter()
        for done in range(MAX_ROUNDS):
            elapsed = time.perf_counter() - start
            if elapsed >= seconds and (done >= rounds or (done >= 3 and elapsed >= 4 * seconds)):
                break
            for name in order:
                if settle:
                    time.sleep(settle)
                    calls[name]()
                readings[name].append(reading(calls[name], repeats[name]))
            order.reverse()
    return {name: Times.of(taken) for name, taken in readings.items()}


def reading(call: Callable[[], object], repeats: int = 1) -> float:
    """Seconds a call, averaged over `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Callable[[], object]) -> int:
    """Warms up and returns how many calls make a reading."""
    first = reading(call)
    if first > 50 * READING_S:
        return 1
    # The minimum of two: a call may still build what later ones reuse.
    return max(1, round(READING_S / min(reading(call), reading(call))))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
