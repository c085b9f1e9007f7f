"""The step driver's kernels and time loops, emulated, against float64 and the CPU's kernels."""

from __future__ import annotations

import emulated
import problems
import pytest
import torch

KINDS = ("plain", "lengths", "packed", "reset", "lengths+reset", "packed+reset")
# T, B, I, H: with and without wide accesses, one step, one row, several chunks of steps.
SIZES = ((5, 3, 4, 7), (4, 5, 3, 8), (1, 2, 3, 4), (9, 1, 1, 1), (3, 33, 5, 36))


def check(problem: problems.Problem, keep: int) -> None:
    got, want = problems.by_ops(emulated.ops(), problem, keep), problem.outputs()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", problems.GATES)
def test_equals_reference(
    cell: str, kind: str, reverse: bool, keep: int, size: tuple[int, int, int, int]
) -> None:
    check(problems.make(cell, *size, kind=kind, reverse=reverse), keep)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("H", "P"), [(7, 3), (8, 4), (5, 9)])
def test_projection_equals_reference(kind: str, reverse: bool, keep: int, H: int, P: int) -> None:
    check(problems.make("lstm", 5, 4, 3, H, P=P, kind=kind, reverse=reverse), keep)


@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("cell", problems.GATES)
def test_what_padding_holds_makes_no_difference(cell: str, reverse: bool, keep: int, P: int | None) -> None:
    if P is not None and cell != "lstm":
        pytest.skip("only LSTM projects")
    problem = problems.make(cell, 5, 8, 3, 7, P=P, kind="lengths+reset", reverse=reverse)
    results = (problems.by_ops(emulated.ops(), problem.padded_with(v), keep) for v in (0, torch.nan))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", problems.GATES)
def test_without_bias(cell: str) -> None:
    check(problems.make(cell, 4, 3, 5, 6, bias=False), 2)


@pytest.mark.parametrize("absent", range(4))
@pytest.mark.parametrize("cell", problems.GATES)
def test_absent_gradients_are_zero(cell: str, absent: int) -> None:
    problem = problems.make(cell, 4, 3, 5, 6, kind="lengths")
    grads = list(problem.grads)
    if grads[absent] is None:
        pytest.skip(f"{cell} has no such output")
    got = problems.by_ops(
        emulated.ops(),
        problems.Problem(
            cell, problem.tensors, problem.sequence, (*grads[:absent], None, *grads[absent + 1 :])
        ),
    )
    grads[absent] = torch.zeros_like(grads[absent])
    want = problems.by_ops(
        emulated.ops(), problems.Problem(cell, problem.tensors, problem.sequence, tuple(grads))
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def error(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> list[float]:
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-3)).item()
        for a, b in zip(got, want, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("P", [None, 6])
@pytest.mark.parametrize("cell", problems.GATES)
def test_rounds_no_worse_than_the_cpu(cell: str, P: int | None, dtype: torch.dtype) -> None:
    if P is not None and cell != "lstm":
        pytest.skip("only LSTM projects")
    problem = problems.make(cell, 12, 5, 16, 24, P=P, dtype=dtype, kind="lengths+reset")
    want = problem.outputs()
    ours = error(problems.by_ops(emulated.ops(), problem), want)
    cpu = error(problems.by_ops(torch.ops.fastrnn, problem), want)
    for ours_one, cpu_one in zip(ours, cpu, strict=True):
        assert ours_one <= 2 * cpu_one + 4 * torch.finfo(dtype).eps, (ours, cpu)


@pytest.mark.parametrize("cell", problems.GATES)
def test_order_of_threads_does_not_matter(cell: str) -> None:
    problem = problems.make(cell, 20, 40, 5, 9, dtype=torch.float32, kind="lengths+reset")
    results = []
    for seed in range(3):
        emulated.ops().options(seed, False)
        results.append(problems.by_ops(emulated.ops(), problem))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["lengths+reset", "packed"])
@pytest.mark.parametrize("cell", problems.GATES)
def test_reads_no_memory_that_nobody_wrote(cell: str, kind: str) -> None:
    """Under deterministic algorithms torch fills fresh memory with NaN, workspaces too."""
    problem = problems.make(cell, 5, 4, 3, 7, kind=kind)
    for keep in (1, 2):
        expected = problems.by_ops(emulated.ops(), problem, keep)
        torch.use_deterministic_algorithms(True)
        try:
            got = problems.by_ops(emulated.ops(), problem, keep)
        finally:
            torch.use_deterministic_algorithms(False)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


def test_only_what_is_asked_for() -> None:
    problem = problems.make("gru", 3, 2, 4, 5)
    ops = emulated.ops()
    y, _, _, c, slots = ops.forward("gru", *problem.tensors, *problem.sequence, 2)
    grads = ops.backward(
        "gru", *problem.grads, *problem.tensors, *problem.sequence, y, c, slots, [False, False]
    )
    assert [g.numel() > 0 for g in grads] == [False, True] + [False] * 8


def test_empty_batch() -> None:
    problem = problems.make("lstm", 3, 0, 4, 5)
    results = problems.by_ops(emulated.ops(), problem)
    assert results[0].shape == (3, 0, 5)
    assert results[7].abs().sum() == 0  # dw_ih


def test_rows_beyond_2_to_the_31() -> None:
    for driver in emulated.ops().cuda_drivers():
        assert emulated.ops().far_rows(driver) == 0.0, driver


@pytest.mark.parametrize("kernel", ["gather", "recompute", "outputs", "sum_rows"])
def test_numbers_beyond_2_to_the_31_of_whole_sequences(kernel: str) -> None:
    assert emulated.ops().far_kernel(kernel) == 0.0
