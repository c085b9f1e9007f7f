"""The calls to time: one case in torch.nn and in fastrnn, with the same weights and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks.shapes import Case

LIBRARIES: dict[str, ModuleType] = {"torch.nn": nn, "fastrnn": fastrnn}
_CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


def build(case: Case, library: ModuleType = nn) -> nn.Module:
    name = _CLASSES[case.cell]
    dtype = getattr(torch, case.dtype)
    torch.manual_seed(0)
    if case.module == "cell":
        module: nn.Module = getattr(library, f"{name}Cell")(case.I, case.H, dtype=dtype)
    else:
        module = getattr(library, name)(
            case.I, case.H, num_layers=case.layers, bidirectional=case.bidirectional, dtype=dtype
        )
    return module.train(case.pass_ == "training")


def inputs(case: Case) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
    """x, and for cases of one step a state, as in the middle of a stream."""
    dtype = getattr(torch, case.dtype)
    torch.manual_seed(1)
    shape = (case.B, case.I) if case.module == "cell" else (case.T, case.B, case.I)
    x = torch.randn(shape, dtype=dtype, requires_grad=case.pass_ == "training")
    if case.suite not in ("step", "cell", "stream"):
        return x, None
    lead = () if case.module == "cell" else (case.layers * case.directions,)
    h = torch.randn(*lead, case.B, case.H, dtype=dtype)
    return x, (h, torch.randn_like(h)) if case.cell == "lstm" else h


def call(case: Case, library: ModuleType) -> Callable[[], object]:
    """The case as a function without arguments."""
    module = build(case, library)
    x, state = inputs(case)
    if case.pass_ == "training":
        return _training_step(module, x, case)
    args = (x,) if state is None else (x, state)

    def infer() -> object:
        with torch.no_grad():
            return module(*args)

    return infer


def _training_step(module: nn.Module, x: Tensor, case: Case) -> Callable[[], object]:
    torch.manual_seed(2)
    dy = torch.randn(case.T, case.B, case.H * case.directions, dtype=x.dtype)

    def train() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        module(x)[0].backward(dy)

    return train


def calls(case: Case) -> dict[str, Callable[[], object]]:
    return {name: call(case, library) for name, library in LIBRARIES.items()}


@contextmanager
def precision_of(case: Case) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(case.precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
