"""Drivers that keep weights on the chip, emulated: in a cluster, in one block, all over the grid."""

from __future__ import annotations

from collections.abc import Iterator

import emulated
import problems
import pytest
import torch

KINDS = ("plain", "lengths", "packed", "lengths+reset", "packed+reset")
DRIVERS = pytest.mark.parametrize("driver", emulated.ON_CHIP)
CELLS = pytest.mark.parametrize("cell", problems.GATES)


@pytest.fixture(autouse=True)
def _usual_device() -> Iterator[None]:
    emulated.ops().device()
    yield
    emulated.ops().device()


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch):
    """Results of a problem by the driver of this name, which must serve it."""

    def compute(driver: str, problem: problems.Problem, keep: int = 2) -> tuple[torch.Tensor, ...]:
        H, dtype = problem.tensors[4].shape[1], problem.tensors[0].dtype
        assert driver == "step" or emulated.ops().serves(driver, problem.cell, H, dtype)
        monkeypatch.setenv("FASTRNN_CUDA_DRIVER", driver)
        before = emulated.ops().products()
        results = problems.by_ops(emulated.ops(), problem, keep)
        assert (emulated.ops().products() > before) == (driver != "step"), "another driver was used"
        return results

    return compute


def errors(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> list[float]:
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-3)).item()
        for a, b in zip(got, want, strict=True)
    ]


def check(by, driver: str, problem: problems.Problem, keep: int = 2) -> None:
    """No error beyond twice the step driver's, but for TF32's rounding of products."""
    want = problem.outputs()
    got, step = errors(by(driver, problem, keep), want), errors(by("step", problem, keep), want)
    eps = torch.finfo(problem.tensors[0].dtype).eps
    if problem.tensors[0].dtype == torch.float32:
        eps = torch.finfo(torch.float16).eps
    for one, other in zip(got, step, strict=True):
        assert one <= 2 * other + 4 * eps, (got, step)


@DRIVERS
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("kind", KINDS)
@CELLS
def test_equals_reference(driver: str, cell: str, kind: str, reverse: bool, by) -> None:
    positive = cell == "rnn_relu"
    check(
        by,
        driver,
        problems.make(
            cell, 5, 10, 3, 19, kind=kind, reverse=reverse, dtype=torch.float32, positive=positive
        ),
    )


@DRIVERS
@pytest.mark.parametrize("keep", [1, 2])
@CELLS
def test_what_padding_holds_makes_no_difference(driver: str, cell: str, keep: int, by) -> None:
    problem = problems.make(cell, 5, 8, 3, 19, dtype=torch.bfloat16, kind="lengths+reset")
    results = (by(driver, problem.padded_with(value), keep) for value in (0, torch.nan))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@DRIVERS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("keep", [1, 2])
@CELLS
def test_types(driver: str, cell: str, keep: int, dtype: torch.dtype, by) -> None:
    positive = cell == "rnn_relu"
    check(by, driver, problems.make(cell, 4, 3, 5, 34, dtype=dtype, positive=positive), keep)


# Both sides of every change of shape. Cluster: one, two and three groups of units a block; 4, 8 and 16
# blocks; fragments beyond those that registers hold. Block: both versions of the kernels, and the largest.
# Grid: one block, blocks whose last has one unit, groups of 4 and of 8 warps.
@pytest.mark.parametrize(
    ("driver", "cell", "dtype", "H"),
    [
        *(("cluster", "lstm", torch.bfloat16, H) for H in (1, 64, 65, 128, 129, 256, 257, 513)),
        *(("block", "lstm", torch.bfloat16, H) for H in (1, 16, 17, 80, 81, 128, 129, 176)),
        *(("block", "lstm", torch.float32, H) for H in (40, 41, 128)),
        *(("block", "gru", torch.float16, H) for H in (128, 129, 192)),
        *(("grid", "lstm", torch.bfloat16, H) for H in (1, 16, 17, 65, 256, 257)),
        *(("grid", "gru", torch.float32, H) for H in (128, 129)),
    ],
    ids=str,
)
def test_sizes(driver: str, cell: str, dtype: torch.dtype, H: int, by) -> None:
    check(by, driver, problems.make(cell, 3 if H < 200 else 2, 2, 4, H, dtype=dtype))


@DRIVERS
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_order_of_threads_does_not_matter(driver: str, cell: str, by) -> None:
    problem = problems.make(cell, 6, 9, 5, 33, dtype=torch.bfloat16, kind="lengths+reset")
    results = []
    for seed in range(3):
        emulated.ops().options(seed, False)
        results.append(by(driver, problem))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("driver", "cell", "dtype", "H"),
    [
        ("cluster", "lstm", torch.bfloat16, 1025),
        ("block", "lstm", torch.bfloat16, 177),
        ("block", "gru", torch.bfloat16, 193),
        ("block", "lstm", torch.float32, 129),
        ("grid", "lstm", torch.bfloat16, 2113),
    ],
    ids=str,
)
def test_what_does_not_fit_is_not_served(driver: str, cell: str, dtype: torch.dtype, H: int) -> None:
    assert emulated.ops().serves(driver, cell, 1, dtype)
    assert not emulated.ops().serves(driver, cell, H, dtype)


@pytest.mark.parametrize("driver", ["cluster", "block"])
def test_beyond_its_sizes_the_step_driver_serves(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_DRIVER", driver)
    problem = problems.make("gru", 2, 1, 2, 1025, dtype=torch.bfloat16)
    before = emulated.ops().products()
    assert max(errors(problems.by_ops(emulated.ops(), problem), problem.outputs())) < 0.1
    assert emulated.ops().products() == before


# ---- Steps at which no sequence of a slice is active ----


def with_lengths(T: int, lengths: list[int] | None, B: int, reverse: bool) -> problems.Problem:
    problem = problems.make("lstm", T, B, 3, 19, dtype=torch.bfloat16)
    given = None if lengths is None else torch.tensor(lengths)
    return problems.Problem("lstm", problem.tensors, (None, given, None, reverse), problem.grads)


@DRIVERS
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_a_slice_whose_sequences_have_ended_takes_no_products(driver: str, reverse: bool, by) -> None:
    def products(problem: problems.Problem) -> int:
        before = emulated.ops().products()
        by(driver, problem)
        return emulated.ops().products() - before

    some, all_steps = (
        products(with_lengths(2, None, 8, reverse)),
        products(with_lengths(7, None, 8, reverse)),
    )
    assert some < all_steps
    lengths = [7] * 8 + [1, 0, 2, 2, 1, 0, 0, 2]
    assert products(with_lengths(7, lengths, 16, reverse)) == some + all_steps
    assert products(with_lengths(7, [7] * 8 + [0] * 8, 16, reverse)) == all_steps


@DRIVERS
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_ended_slices_are_right(driver: str, reverse: bool, by) -> None:
    check(by, driver, with_lengths(7, [1, 0, 2, 2, 1, 0, 0, 2] + [0] * 8 + [3, 5], 18, reverse))


@DRIVERS
def test_a_reset_at_the_first_active_step_of_a_reversed_slice(driver: str, by) -> None:
    problem = with_lengths(5, [2] * 8 + [5], 9, True)
    reset = torch.zeros(5, 9, dtype=torch.bool)
    reset[1, ::2] = True  # step 1 is the first that sequences of length 2 have, coming from the end
    problem.sequence = (None, problem.sequence[1], reset, True)
    check(by, driver, problem)


@DRIVERS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_nan_in_the_state_reaches_every_unit(driver: str, dtype: torch.dtype, by) -> None:
    """The GPU's own NaN, whose bits are all set, through the rounding of operands and their products."""
    problem = problems.make("lstm", 3, 9, 3, 19, dtype=dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    problem.tensors[1].view(integer)[4, 7] = torch.iinfo(integer).max
    y = by(driver, problem)[0]
    assert y[:, 4].isnan().all()
    assert not y[:, [b for b in range(9) if b != 4]].isnan().any()


# ---- The grid driver's own ----


# multiprocessors: two replicas; one, whose block then has all units; one of two blocks, with two slices.
@pytest.mark.parametrize("multiprocessors", [132, 1, 2])
@pytest.mark.parametrize("kind", ["lengths+reset", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_replicas_and_slices(cell: str, kind: str, multiprocessors: int, by) -> None:
    emulated.ops().device(multiprocessors)
    check(by, "grid", problems.make(cell, 4, 12, 3, 19, dtype=torch.bfloat16, kind=kind))


def test_more_slices_than_a_launch_takes(by) -> None:
    emulated.ops().device(1)
    check(by, "grid", problems.make("lstm", 2, 75, 3, 5, dtype=torch.bfloat16, kind="lengths"))


def test_fragments_beyond_registers_and_wide_blocks(by) -> None:
    emulated.ops().device(10)
    check(by, "grid", problems.make("lstm", 2, 2, 3, 304, dtype=torch.float32))


def test_less_room_for_pieces_changes_nothing(by) -> None:
    problem = problems.make("gru", 4, 17, 3, 19, dtype=torch.bfloat16, kind="lengths")
    emulated.ops().device(2)
    want = by("grid", problem)
    least = 0
    emulated.ops().device(2, least)
    while not emulated.ops().serves("grid", "gru", 19, torch.bfloat16):
        least += 256
        emulated.ops().device(2, least)
    for more in (0, 512, 1536, 4096):
        emulated.ops().device(2, least + more)
        for a, b in zip(by("grid", problem), want, strict=True):
            assert torch.equal(a, b)


def test_where_multiprocessors_are_too_few_the_step_driver_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_DRIVER", "grid")
    problem = problems.make("lstm", 2, 3, 2, 65, dtype=torch.bfloat16)
    before = emulated.ops().products()
    emulated.ops().device(2)
    assert not emulated.ops().serves("grid", "lstm", 65, torch.bfloat16)
    assert max(errors(problems.by_ops(emulated.ops(), problem), problem.outputs())) < 0.1
    assert emulated.ops().products() == before
    emulated.ops().device(3)
    problems.by_ops(emulated.ops(), problem)
    assert emulated.ops().products() > before


def test_a_block_that_never_starts_ends_in_nan_and_not_in_a_hang(by) -> None:
    """The other blocks wait for it in vain; what they compute from there on is NaN."""
    T, B, H = 4, 3, 34  # three blocks of 16 units
    problem = problems.make("lstm", T, B, 3, H, dtype=torch.float32)
    y, _, _, c, slots = emulated.ops().forward("lstm", *problem.tensors, *problem.sequence, 2)
    emulated.ops().device(132, 232448, 1)
    results = by("grid", problem)
    here = [u for u in range(H) if not 16 <= u < 32]
    for out in results[:4]:  # y, h_n, c_n, c
        assert out[..., here].isnan().all()
    # Backward, of a forward that went well: the last step needs nothing of others, all before it do.
    grads = emulated.ops().backward(
        "lstm", *problem.grads, *problem.tensors, *problem.sequence, y, c, slots, [True, True]
    )
    dx, dh0, _, dw_ih, dw_hh = grads[:5]
    assert dx[: T - 1].isnan().all()
    assert dh0[:, here].isnan().all()
    rows = [gate * H + u for gate in range(4) for u in here]
    assert dw_ih[rows].isnan().all()
    assert dw_hh[rows].isnan().all()
