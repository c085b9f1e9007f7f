"""Threads and processes around a call: callers at once, teams of other sizes, forks, loaders."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import support
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fastrnn

# Large enough for a team of threads.
T, B, I, H = 12, 24, 64, 96


def step(layer: Any, x: Tensor) -> list[Tensor]:
    y = layer(x)[0]
    return [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_callers_at_once(cell: str, count: int, device: str) -> None:
    """Several Python threads with one module each, and all with one they share."""
    shared = support.ours(cell, I, H, device=device)
    layers = [support.ours(cell, I, H + 8 * i, device=device) for i in range(3)]
    jobs = [(layer, torch.randn(T, B, I, device=device)) for layer in (*layers, shared, shared)] * 2
    expected = [step(*job) for job in jobs]
    with support.threads(count), ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, right in zip(pool.map(lambda job: step(*job), jobs), expected, strict=True):
                torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", support.LAYERS)
def test_number_of_threads_changed_between(cell: str) -> None:
    layer, x = support.ours(cell, I, H), torch.randn(T, B, I)
    expected = step(layer, x)
    for count in (2, 1, 4, 3, 2, 7):
        with support.threads(count):
            y = layer(x)[0]
        with support.threads(1):
            torch.testing.assert_close(y, expected[0])
        with support.threads(count):
            torch.testing.assert_close(step(layer, x), expected, rtol=1e-4, atol=1e-4)


def test_same_result_each_time() -> None:
    """The same threads give the same bits."""
    layer, x = fastrnn.LSTM(I, H, num_layers=2), torch.randn(T, B, I)
    for count in (1, 2):
        with support.threads(count):
            first, second = step(layer, x), step(layer, x)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)


def test_threads_come_and_go() -> None:
    layer, x = fastrnn.GRU(I, H), torch.randn(T, B, I)
    expected = layer(x)[0]
    right: list[bool] = []
    with support.threads(2):
        for _ in range(20):
            thread = threading.Thread(
                target=lambda: right.append(torch.allclose(layer(x)[0], expected, atol=1e-5))
            )
            thread.start()
            thread.join()
    assert right == [True] * 20


FORK = """
import os, signal, sys, torch, fastrnn
torch.set_num_threads({count})
layer, x = fastrnn.LSTM(64, 96), torch.randn(12, 24, 64)
expected = layer(x)[0] if {used} else None
child = os.fork()
if child == 0:
    signal.alarm(60)
    y = layer(x)[0]
    y.sum().backward()
    os._exit(0 if expected is None or torch.allclose(y, expected, atol=1e-5) else 1)
_, status = os.waitpid(child, 0)
layer(x)[0].sum().backward()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_fork(count: int, used: bool) -> None:
    """A child that has none of its parent's threads computes all the same, and so does the parent after."""
    code = FORK.format(count=count, used=used)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


FEWER = """
import torch, fastrnn
layer, x = fastrnn.LSTM(64, 256), torch.randn(12, 8, 64)
torch.set_num_threads(1)
expected = layer(x)[0]
torch.set_num_threads(4)
assert torch.allclose(layer(x)[0], expected, atol=1e-5)
"""


@pytest.mark.parametrize("limit", [1, 2])
def test_fewer_threads_than_asked_for(limit: int) -> None:
    """OpenMP may give a call fewer threads than torch has; they do the others' parts."""
    environment = {**os.environ, "OMP_THREAD_LIMIT": str(limit)}
    subprocess.run([sys.executable, "-c", FEWER], check=True, timeout=120, env=environment)


FORK_AFTER_TORCH = """
import os, signal, sys, torch, fastrnn
torch.set_num_threads(2)
layer, x = fastrnn.GRU(64, 128), torch.randn(30, 16, 64)
if {torch_first}:
    torch.randn(600, 600) @ torch.randn(600, 600), (torch.randn(2000, 2000) + 1).sum()
else:
    layer(x)[0].sum().backward()
child = os.fork()
if child == 0:
    signal.alarm(60)
    layer(x)[0].sum().backward()
    (torch.randn(2000, 2000) + 1).sum()
    os._exit(0 if torch.get_num_threads() == 1 else 1)
_, status = os.waitpid(child, 0)
assert torch.get_num_threads() == 2
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("torch_first", [True, False])
def test_fork_after_torchs_threads_started(torch_first: bool) -> None:
    """Neither the child's first layer nor torch's operators wait for threads that it does not have."""
    code = FORK_AFTER_TORCH.format(torch_first=torch_first)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class Embedded(Dataset[Tensor]):
    """A data set that runs a layer in its workers."""

    def __init__(self, layer: Any, x: Tensor) -> None:
        self.layer, self.x = layer, x

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            return self.layer(self.x + i)[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers(start: str) -> None:
    layer, x = fastrnn.GRU(I, H), torch.randn(T, B, I)
    with support.threads(2):
        expected = [layer(x + i)[0].detach() for i in range(4)]
    loader = DataLoader(
        Embedded(layer, x), batch_size=None, num_workers=2, multiprocessing_context=start, timeout=100
    )
    for y, right in zip(loader, expected, strict=True):
        torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-4)


def test_inside_a_parallel_region_of_torchs() -> None:
    """Autograd's own threads call backward while another thread computes."""
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    expected = step(layer, x)
    with support.threads(2):
        futures = [torch.jit.fork(lambda: layer(x)[0]) for _ in range(4)]
        for future in futures:
            torch.testing.assert_close(torch.jit.wait(future), expected[0], rtol=1e-4, atol=1e-5)


def test_more_threads_than_cores() -> None:
    """Threads that wait for a core give theirs away: no call takes a scheduler's slice at every step."""
    layer, x = fastrnn.GRU(16, 64), torch.randn(400, 32, 16)
    with support.threads(4 * (os.cpu_count() or 1)), torch.no_grad():
        done = threading.Event()

        def run() -> None:
            layer(x)
            done.set()

        threading.Thread(target=run, daemon=True).start()
        assert done.wait(60)
