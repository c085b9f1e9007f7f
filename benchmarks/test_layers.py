"""The layers under pytest-benchmark, for its tools, such as `pytest benchmarks --benchmark-compare`.

Each group is one case in torch.nn and in fastrnn. Not part of `make test`. For figures to publish, use
`python -m benchmarks`, which measures both in turns.
"""

from __future__ import annotations

import warnings

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import layers, machine, quiet, shapes
from benchmarks.shapes import Case

CASES = [case for case in shapes.every() if case.suite in ("grid", "high", "step", "cell")]


def readable(case: Case) -> str:
    kind = {"grid": "", "high": "-high", "step": "", "cell": "-Cell"}[case.suite]
    return f"{case.cell}{kind}-{case.pass_}-{case.dtype}-{case.shape}"


@pytest.fixture(scope="module", autouse=True)
def _quiet_machine() -> None:
    look = quiet.look()
    if look.busy:
        warnings.warn(f"the machine is too busy to measure: {look}", stacklevel=1)


@pytest.mark.parametrize("library", layers.LIBRARIES)
@pytest.mark.parametrize("case", CASES, ids=readable)
def test_layer(benchmark: BenchmarkFixture, case: Case, library: str) -> None:
    benchmark.group = readable(case)
    facts = machine.facts()
    benchmark.extra_info |= {name: facts[name] for name in ("device", "threads", "target", "torch")}
    benchmark.extra_info["precision"] = case.precision
    with layers.precision_of(case):
        benchmark(layers.call(case, layers.LIBRARIES[library]))
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["gflops"] = case.flops / benchmark.stats.stats.min / 1e9
