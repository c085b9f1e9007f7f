"""The cases of each suite, and how much arithmetic each takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
HIDDEN = (64, 256, 512, 1024)
BATCH = (1, 8, 64)
BYTES = {"float32": 4, "bfloat16": 2}

# Backward is two products of forward's size: one for the inputs' gradients, one for the weights'.
PASS_COST = {"inference": 1, "training": 3}


@dataclass(frozen=True)
class Case:
    """One measurement, with x [T, B, I].

    Attributes:
        suite: the table that it belongs to.
        cell: "lstm", "gru" or "rnn".
        pass_: "inference" (forward without gradients) or "training" (forward, then backward to the input
            and all parameters).
        dtype: of parameters, input and state.
        precision: what torch.set_float32_matmul_precision is set to.
        module: "layer" (nn.LSTM) or "cell" (nn.LSTMCell).
    """

    suite: str
    cell: str
    pass_: str
    dtype: str
    H: int
    B: int
    T: int
    precision: str = "highest"
    module: str = "layer"
    layers: int = 1
    bidirectional: bool = False

    @property
    def I(self) -> int:  # noqa: E743, N802
        return self.H

    @property
    def shape(self) -> str:
        return f"H{self.H}-B{self.B}-T{self.T}"

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.cell}/{self.pass_}/{self.dtype}/{self.shape}"

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Cases that differ only in shape: one table with one geometric mean."""
        return self.suite, self.cell, self.pass_, self.dtype

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products."""
        rows = 2 * self.T * self.B * GATES[self.cell] * self.H * self.directions
        inputs = [self.I] + [self.H * self.directions] * (self.layers - 1)
        return PASS_COST[self.pass_] * sum(rows * (wide + self.H) for wide in inputs)

    @property
    def projection_flops(self) -> int:
        """The part of flops in the first layer's input projection, forward."""
        return 2 * self.T * self.B * GATES[self.cell] * self.H * self.I * self.directions

    @property
    def recurrent_bytes(self) -> int:
        """Size of w_hh, which every step reads."""
        return GATES[self.cell] * self.H * self.H * BYTES[self.dtype]


def _grid_steps(hidden: int) -> int:
    return 25 if hidden >= 1024 else 50


def _over_grid(suite: str, cell: str, pass_: str, dtype: str, T: int = 0, **more: object) -> list[Case]:
    return [
        Case(suite, cell, pass_, dtype, H, B, T or _grid_steps(H), **more)  # type: ignore[arg-type]
        for H in HIDDEN
        for B in BATCH
    ]


def grid() -> list[Case]:
    """LSTM and GRU in both dtypes and passes, and RNN in float32."""
    kinds = [(cell, dtype) for dtype in BYTES for cell in ("lstm", "gru")] + [("rnn", "float32")]
    return [
        case
        for cell, dtype in kinds
        for pass_ in PASS_COST
        for case in _over_grid("grid", cell, pass_, dtype)
    ]


def high() -> list[Case]:
    return [
        case
        for cell in ("lstm", "gru")
        for case in _over_grid("high", cell, "inference", "float32", precision="high")
    ]


def step() -> list[Case]:
    """One step with a state, as in streaming: of the layers, then of the cells."""
    return [
        case
        for suite, module in (("step", "layer"), ("cell", "cell"))
        for cell in ("lstm", "gru")
        for case in _over_grid(suite, cell, "inference", "float32", T=1, module=module)
    ]


def stacked() -> list[Case]:
    return [
        case
        for cell in ("lstm", "gru")
        for case in _over_grid("stacked", cell, "inference", "float32", layers=2, bidirectional=True)
    ]


def length() -> list[Case]:
    """Time against T."""
    return [
        Case("length", cell, pass_, "float32", 256, 8, T)
        for cell in ("lstm", "gru")
        for pass_ in PASS_COST
        for T in (1, 2, 5, 10, 25, 50, 150)
    ]


def peers() -> list[Case]:
    return [case for cell in ("lstm", "gru") for case in _over_grid("peers", cell, "inference", "float32")]


def int8() -> list[Case]:
    """Packed weights, narrow and not, next to other libraries' int8."""
    return [case for cell in ("lstm", "gru") for case in _over_grid("int8", cell, "inference", "float32")]


def stream() -> list[Case]:
    """One step of one sequence after another, each with the state of the step before."""
    return [
        Case("stream", cell, "inference", "float32", H, B=1, T=1)
        for cell in ("lstm", "gru")
        for H in HIDDEN
    ]


# DeepBench's rnn_problems.h (https://github.com/baidu-research/DeepBench): (H, T, batch sizes).
_GRU_LONG = [(H, T) for H in (2816, 2048, 1536, 2560) for T in (1500, 750, 375, 187)]
_Problems = dict[str, Sequence[tuple[int, int, tuple[int, ...]]]]
_DEEPBENCH: dict[str, _Problems] = {
    "training": {
        "rnn": [(H, 50, (16, 32, 64, 128)) for H in (1760, 2048, 2560)],
        "lstm": [(H, 25, (16, 32, 64, 128)) for H in (512, 1024, 2048, 4096)]
        + [(1536, 50, (8, 16, 32)), (256, 150, (16, 32, 64))],
        "gru": [(H, T, (32,)) for H, T in _GRU_LONG if (H, T) != (2816, 1500)]
        + [(512, 1, (32,)), (1024, 1500, (32, 64))],
    },
    "inference": {
        "lstm": [(H, 25, (1, 2, 4)) for H in (512, 1024, 2048)]
        + [(1536, 50, (1, 2, 4)), (256, 150, (1, 2, 4))],
        "gru": [(H, T, (1, 2, 4)) for H, T in [*_GRU_LONG, (512, 1), (1024, 1500)]],
        "rnn": [(32, 672, (1,)), (64, 96, (1,))],
    },
}


def deepbench_all() -> list[Case]:
    return [
        Case("deepbench", cell, pass_, "float32", H, B, T)
        for pass_, cells in _DEEPBENCH.items()
        for cell, problems in cells.items()
        for H, T, batches in problems
        for B in batches
    ]


def fits_cpu(case: Case, seconds: float = 1.0) -> bool:
    """Whether a call takes at most this long on a machine with 150 GFLOP/s that reads 20 GB/s from memory.

    A w_hh of more than 16 MB is read from memory at every step of each pass. The rule uses sizes only,
    never a measurement.
    """
    reads = case.recurrent_bytes * case.T * min(PASS_COST[case.pass_], 2)
    from_memory = reads / 20e9 if case.recurrent_bytes > 16e6 else 0.0
    return case.flops / 150e9 + from_memory <= seconds


def deepbench() -> list[Case]:
    return [case for case in deepbench_all() if fits_cpu(case)]


SUITES = (grid, high, step, stacked, length, deepbench, peers, int8, stream)


def every() -> list[Case]:
    return [case for suite in SUITES for case in suite()]


def quick() -> list[Case]:
    """A first impression in about a minute: the float32 grid, and single steps."""
    return [case for case in grid() if case.dtype == "float32" and case.cell != "rnn"] + step()


def select(cases: Iterable[Case], patterns: list[str]) -> list[Case]:
    """The cases whose id contains one of the patterns (shell wildcards, any case), or all without one."""
    return [
        case
        for case in cases
        if not patterns or any(fnmatch(case.id.lower(), f"*{pattern.lower()}*") for pattern in patterns)
    ]
