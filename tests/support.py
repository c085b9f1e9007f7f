"""What tests share: the modules there are, twins of torch's and ours, and the rule of exactness."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn

# prepack() refuses bfloat16 weights without them.
HAS_BFLOAT16_PRODUCTS = fastrnn.build_info()["cpu_target"] in ("avx512_bf16", "avx512_amx", "neon_bf16")

# A layer and what its constructor is given beside sizes; likewise for cells.
LAYERS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}
CELLS = {
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
    "rnn_tanh": ("RNNCell", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNNCell", {"nonlinearity": "relu"}),
}

# Flags of which every layer has its share in tests that take them one by one.
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two_layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "deep_bidirectional": {"num_layers": 2, "bidirectional": True},
    "no_bias": {"bias": False},
    "batch_first": {"batch_first": True},
    "projected": {"proj_size": 2},
}


def layer_cases() -> list[tuple[str, str]]:
    """Each cell with each flag that its layer takes."""
    return [(cell, flag) for cell in LAYERS for flag in FLAGS if flag != "projected" or cell == "lstm"]


def ours(cell: str, *sizes: int, **flags: Any) -> Any:
    name, more = LAYERS[cell]
    return getattr(fastrnn, name)(*sizes, **more, **flags)


def theirs(cell: str, *sizes: int, **flags: Any) -> Any:
    name, more = LAYERS[cell]
    return getattr(nn, name)(*sizes, **more, **flags)


def twins(cell: str, *sizes: int, **flags: Any) -> tuple[Any, Any]:
    """torch.nn's layer and ours with the same weights."""
    a, b = theirs(cell, *sizes, **flags), ours(cell, *sizes, **flags)
    b.load_state_dict(a.state_dict())
    return a, b


def cell_twins(cell: str, *sizes: int, **flags: Any) -> tuple[Any, Any]:
    """torch.nn's cell module and ours with the same weights."""
    name, more = CELLS[cell]
    a, b = getattr(nn, name)(*sizes, **more, **flags), getattr(fastrnn, name)(*sizes, **more, **flags)
    b.load_state_dict(a.state_dict())
    return a, b


def initial_state(layer: Any, batch: int | None, **options: Any) -> Any:
    """A random state in the shape that this layer takes; unbatched where batch is None."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    middle = () if batch is None else (batch,)
    h = torch.randn(count, *middle, layer.proj_size or layer.hidden_size, **options)
    if not isinstance(layer, nn.LSTM):
        return h
    return h, torch.randn(count, *middle, layer.hidden_size, **options)


def tensors_of(result: Any) -> list[Tensor]:
    """All tensors of a module's result, in order; of a packed sequence its data."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [t for part in result for t in tensors_of(part)]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def same(a: Any, b: Any, **tolerance: float) -> None:
    """Results have the same types, shapes, dtypes, and close values."""
    assert type(a) is type(b)
    for s, t in zip(tensors_of(a), tensors_of(b), strict=True):
        torch.testing.assert_close(s, t, **tolerance)


def in_float64(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def why_no_cuda() -> str | None:
    if not fastrnn.build_info()["cuda"]:
        return "built without CUDA"
    return None if torch.cuda.is_available() else "no CUDA device"


@contextmanager
def torch_by_operators() -> Iterator[None]:
    """torch's layers without oneDNN and cuDNN, which lack derivatives or draw dropout otherwise."""
    with (
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.cudnn.flags(enabled=False, allow_tf32=False),
    ):
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Error:
    """How far a result is from the exact one, in parts of the exact one's largest value."""

    name: str
    ours: float
    torchs: float
    few_ulps: float

    @property
    def bound(self) -> float:
        return 2 * self.torchs + self.few_ulps

    def __str__(self) -> str:
        return f"{self.name} is off by {self.ours:.3g}, torch by {self.torchs:.3g}, bound {self.bound:.3g}"


def errors(
    names: Iterable[str],
    exact: Iterable[Tensor],
    reference: Iterable[Tensor],
    measured: Iterable[Tensor],
    dtype: torch.dtype,
    ulps: float = 4,
) -> list[Error]:
    """What the rule of exactness compares: our error, and the bound from torch's own.

    Args:
        exact, reference, measured: results in float64, of torch in dtype, and ours in dtype.
        ulps: how many are "a few"; where torch's own error cannot be seen, the whole bound.
    """
    found = []
    for name, e, r, m in zip(names, exact, reference, measured, strict=True):
        assert m.shape == r.shape, f"{name}: shape {tuple(m.shape)}, torch's {tuple(r.shape)}"
        assert m.dtype == r.dtype, f"{name}: {m.dtype}, torch's {r.dtype}"
        assert m.isfinite().all() or not r.isfinite().all(), f"{name} is not finite"
        if e.numel() == 0:
            continue
        e, r, m = e.detach(), r.detach().to(e.dtype), m.detach().to(e.dtype)
        scale = e.abs().max().item()
        off, torchs = (m - e).abs().max().item(), (r - e).abs().max().item()
        if scale == 0:
            assert off <= torchs, f"{name} should be zero, is off by {off:.3g}"
            continue
        found.append(Error(name, off / scale, torchs / scale, ulps * torch.finfo(dtype).eps))
    return found


class Worst:
    """What was measured of one dtype, for the report at the end of a run."""

    def __init__(self) -> None:
        self.tensors, self.redrawn, self.ratio, self.what = 0, 0, 0.0, ""

    def add(self, what: str, error: Error, redrawn: bool) -> None:
        self.tensors += 1
        self.redrawn += redrawn
        if error.ours > self.ratio * error.bound:
            self.ratio, self.what = error.ours / error.bound, f"{error.name} of {what}"

    def __str__(self) -> str:
        return (
            f"{self.tensors} tensors, {self.redrawn} of them judged over several draws; largest error "
            f"{self.ratio:.2f} of its bound, {self.what}"
        )


WORST: dict[str, Worst] = defaultdict(Worst)


def check_rule(what: str, dtype: torch.dtype, draw: Callable[[int], list[Error]], draws: int = 9) -> None:
    """The rule: no error above twice torch's own, plus a few ulp of the tensor's largest value.

    draw(i) measures the i-th random instance. In a tensor of few numbers whose terms cancel, torch's
    error may by chance be far below its usual one; so where one draw breaks the rule, the mean error over
    several, that one included, decides.
    """
    worst = WORST[str(dtype).removeprefix("torch.")]
    first = draw(0)
    again: list[list[Error]] = []
    for i, error in enumerate(first):
        redrawn = not error.ours <= error.bound
        if redrawn:
            again = again or [draw(k) for k in range(1, draws)]
            all_draws = [error, *(e for other in again for e in other if e.name == error.name)]
            error = Error(
                error.name,
                sum(e.ours for e in all_draws) / len(all_draws),
                sum(e.torchs for e in all_draws) / len(all_draws),
                error.few_ulps,
            )
            assert error.ours <= error.bound, f"{what}: {first[i]}; over {len(all_draws)} draws {error}"
        worst.add(what, error, redrawn)
