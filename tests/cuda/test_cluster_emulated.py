"""The cluster driver, emulated: weights kept on the chip, h exchanged between blocks of a cluster."""

from __future__ import annotations

import emulated
import problems
import pytest
import torch

KINDS = ("plain", "lengths", "packed", "lengths+reset", "packed+reset")


@pytest.fixture(autouse=True)
def _ask_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.ops()
    monkeypatch.setenv("FASTRNN_CUDA_DRIVER", "cluster")


def errors(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> list[float]:
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-3)).item()
        for a, b in zip(got, want, strict=True)
    ]


def check(problem: problems.Problem, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ops, H = emulated.ops(), problem.tensors[4].shape[1]
    assert ops.cluster_serves(problem.cell, H)
    want = problem.outputs()
    got = errors(problems.by_ops(ops, problem, keep), want)
    monkeypatch.setenv("FASTRNN_CUDA_DRIVER", "step")
    step = errors(problems.by_ops(ops, problem, keep), want)
    monkeypatch.setenv("FASTRNN_CUDA_DRIVER", "cluster")
    eps = torch.finfo(problem.tensors[0].dtype).eps
    if problem.tensors[0].dtype == torch.float32:  # products round to TF32
        eps = torch.finfo(torch.float16).eps
        assert max(got) > 1e-6, "the driver was not used"
    for one, other in zip(got, step, strict=True):
        assert one <= 2 * other + 4 * eps, (got, step)


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", problems.GATES)
def test_equals_reference(cell: str, kind: str, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    positive = cell == "rnn_relu"
    problem = problems.make(
        cell, 5, 10, 3, 19, kind=kind, reverse=reverse, dtype=torch.float32, positive=positive
    )
    check(problem, 2, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("cell", problems.GATES)
def test_types(cell: str, keep: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    positive = cell == "rnn_relu"
    check(problems.make(cell, 4, 3, 5, 64, dtype=dtype, positive=positive), keep, monkeypatch)


# One and two groups a block; 4, 8 and 16 blocks; fragments beyond those that registers hold; both
# sides of each.
@pytest.mark.parametrize("H", [1, 64, 65, 128, 129, 256, 257])
def test_sizes(H: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(problems.make("lstm", 3, 2, 4, H, dtype=torch.bfloat16), 2, monkeypatch)


def test_three_groups_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    check(problems.make("lstm", 2, 2, 3, 513, dtype=torch.bfloat16), 2, monkeypatch)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_order_of_threads_does_not_matter(cell: str) -> None:
    problem = problems.make(cell, 6, 9, 5, 33, dtype=torch.bfloat16, kind="lengths+reset")
    results = []
    for seed in range(3):
        emulated.ops().options(seed, False)
        results.append(problems.by_ops(emulated.ops(), problem))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_beyond_its_sizes_the_step_driver_serves() -> None:
    assert not emulated.ops().cluster_serves("lstm", 1025)
    problem = problems.make("gru", 2, 1, 2, 1025, dtype=torch.bfloat16)
    want = problem.outputs()
    assert max(errors(problems.by_ops(emulated.ops(), problem), want)) < 0.1
