"""Devices, hypothesis profiles, and the closing line with the worst error ratios."""

from __future__ import annotations

import os
from collections.abc import Iterator

# What was tuned on this machine decides nothing here.
os.environ["FASTRNN_TUNED"] = "0"

import hypothesis
import pytest
import support
import torch

from fastrnn import drivers, tuned

# FASTRNN_TEST_CONFIGS: how many random configurations a randomized test draws, always the same ones.
hypothesis.settings.register_profile(
    "fastrnn",
    max_examples=int(os.environ.get("FASTRNN_TEST_CONFIGS", "150")),
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("fastrnn")

# Tensors here are small. Tests that are about threads, and the random configurations, ask for more.
torch.set_num_threads(1)

# As on a CPU, float32 means float32 on a GPU; tests/cuda/test_device.py is about TF32. Drivers that keep
# weights on the chip serve float32 only with TF32: a test that asks for one would run the step driver.
torch.backends.cudnn.allow_tf32 = os.environ.get("FASTRNN_CUDA_DRIVER", "step") not in ("", "step")


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(bool(support.why_no_cuda()), reason=support.why_no_cuda() or ""),
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _tuned_for_one_test() -> Iterator[None]:
    yield
    if tuned._known:
        tuned._known = None
        drivers.refresh()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for dtype, worst in sorted(support.WORST.items()):
        terminalreporter.write_line(f"{dtype}: {worst}")
