"""Devices, hypothesis profiles, and the closing line with the worst error ratios."""

from __future__ import annotations

import os

import hypothesis
import pytest
import support
import torch

import fastrnn

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


def why_no_cuda() -> str | None:
    if not fastrnn.build_info()["cuda"]:
        return "built without CUDA"
    return None if torch.cuda.is_available() else "no CUDA device"


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(bool(why_no_cuda()), reason=why_no_cuda() or "")),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for dtype, worst in sorted(support.WORST.items()):
        terminalreporter.write_line(f"{dtype}: {worst}")
