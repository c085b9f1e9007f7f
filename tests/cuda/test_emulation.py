"""The emulation of CUDA's execution model: it computes what a GPU would, and it can fail."""

from __future__ import annotations

import re

import emulated
import numpy as np
import pytest
import torch
from emulated import CSRC

SEEDS = range(8)


@pytest.fixture(autouse=True)
def _no_planted_bugs():
    yield
    emulated.ops().options(0, False)


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 70])
def test_barriers(columns: int) -> None:
    x = torch.randn(50, columns)
    for seed in SEEDS:
        emulated.ops().options(seed, False)
        torch.testing.assert_close(emulated.ops().column_sums(x, columns), x.sum(0))


def test_a_missing_barrier_is_seen() -> None:
    x = torch.randn(50, 32)
    wrong = 0
    for seed in SEEDS:
        emulated.ops().options(seed, True)
        sums = emulated.ops().column_sums(x, 32)
        wrong += not torch.allclose(sums, x.sum(0), atol=1e-4)
    assert wrong == len(SEEDS)


def test_a_barrier_not_reached_by_all_ends_in_an_error() -> None:
    with pytest.raises(RuntimeError, match="31 threads wait forever"):
        emulated.ops().lone()


def test_shuffles() -> None:
    expected = float(sum(i * i for i in range(32)))
    assert emulated.ops().shuffle_sum().tolist() == [expected] * 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_tensor_core_products(dtype: torch.dtype) -> None:
    k = 48
    a, b = torch.randn(16, k).to(dtype), torch.randn(8, k).to(dtype)
    got = emulated.ops().mma_product(a, b)
    tolerance = 1e-4 if dtype != torch.float32 else 3e-2  # TF32 has 10 bits
    torch.testing.assert_close(got, a.float() @ b.float().t(), rtol=1e-4, atol=tolerance)
    if dtype == torch.float32:
        assert not torch.allclose(got, a @ b.t(), rtol=1e-6, atol=1e-6)


def test_operands_of_tf32_products() -> None:
    """Ten bits, ties away from zero; a NaN stays one, that of the GPU (all bits set) too."""
    bits = torch.tensor([0x3F800FFF, 0x3F801000, 0x3F803000, 0x7FFFFFFF, 0x7F800001, 0x7F800000])
    got = emulated.ops().tf32_operands(bits.int().view(torch.float32))
    assert got[:3].tolist() == [0x3F800000, 0x3F802000, 0x3F804000]
    assert got.view(torch.float32)[3:].isnan().tolist() == [True, True, False]
    assert got[5] == 0x7F800000


def exact(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    if name == "exp":
        return np.exp(x)
    return 1 / (1 + np.exp(-x)) if name == "sigmoid" else np.tanh(x)


@pytest.mark.parametrize(("place", "name"), list(enumerate(["exp", "sigmoid", "tanh"])))
def test_errors_of_functions_with_the_reciprocal_of_a_gpu(place: int, name: str) -> None:
    """As large as math.h states, though the reciprocal is off by an ulp; and 1 where they saturate."""
    (row,) = re.findall(r"^//\s+float((?:\s+\S+){3})$", (CSRC / "cells/math.h").read_text(), re.MULTILINE)
    x = np.concatenate([np.linspace(-87, 87, 1 << 18), np.linspace(-1.5, 1.5, 1 << 17)]).astype(np.float32)
    got = emulated.ops().math(name, torch.from_numpy(x)).numpy()
    want = exact(name, x)
    ulp = np.spacing(np.maximum(np.abs(want), np.finfo(np.float32).tiny).astype(np.float32))
    assert (np.abs(got.astype(np.longdouble) - want) / ulp).max() <= float(row.split()[place])
    if name != "exp":
        ends = torch.tensor([87.0, 87.5, 88.0, 88.8, 3e38, torch.inf, torch.nan])
        assert emulated.ops().math(name, ends).tolist()[:-1] == [1.0] * 6
        assert emulated.ops().math(name, ends)[-1].isnan()


def ring(blocks: int, steps: int) -> list[int]:
    size = min(blocks, 8)
    values = [b % size + 1 for b in range(blocks)]
    for _ in range(steps):
        values = [
            (b % size + sum((o + 3) * values[b // size * size + o] for o in range(size))) % 2**32
            for b in range(blocks)
        ]
    return values


@pytest.mark.parametrize("blocks", [1, 2, 8, 24])
def test_clusters_exchange_by_asynchronous_stores(blocks: int) -> None:
    for seed in SEEDS:
        emulated.ops().options(seed, False)
        got = emulated.ops().ring(blocks, 9, -1)
        assert [v % 2**32 for v in got.tolist()] == ring(blocks, 9)


def test_a_missing_wait_is_seen() -> None:
    wrong = 0
    for seed in SEEDS:
        emulated.ops().options(seed, False)
        try:
            got = emulated.ops().ring(4, 9, 2)
            wrong += [v % 2**32 for v in got.tolist()] != ring(4, 9)
        except RuntimeError:  # blocks wait for what came in the wrong phase
            wrong += 1
    assert wrong == len(SEEDS)


def test_copies_ahead_are_waited_for() -> None:
    x = torch.randint(1, 1000, (7, 32, 4), dtype=torch.int32)
    wrong = 0
    for seed in SEEDS:
        emulated.ops().options(seed, False)
        assert torch.equal(emulated.ops().copied(x, 1), x)
        wrong += not torch.equal(emulated.ops().copied(x, 2), x)
    assert wrong == len(SEEDS), "a wait for too little is not seen"


def test_blocks_of_a_cooperative_launch_meet() -> None:
    assert emulated.ops().meet(7, -1, 0).tolist() == [1] * 7


def test_a_block_that_never_starts_is_waited_for_no_longer_than_allowed() -> None:
    assert emulated.ops().meet(7, 3, 100).tolist() == [0] * 7


def test_a_wait_without_end_is_an_error_and_no_hang() -> None:
    with pytest.raises(RuntimeError, match="wait forever"):
        emulated.ops().meet(7, 3, 0)
