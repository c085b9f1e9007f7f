"""What only a GPU can show: graphs, streams, precision flags, and the same result twice.

That results are right on the device is tested by the tests of all devices.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastrnn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")
PAIRS = {"lstm": (nn.LSTM, fastrnn.LSTM), "gru": (nn.GRU, fastrnn.GRU), "rnn": (nn.RNN, fastrnn.RNN)}
CELLS = pytest.mark.parametrize("cell", PAIRS)


def make(cell: str, *sizes: int, **options: object) -> tuple[nn.Module, nn.Module]:
    """torch.nn's module and ours with the same weights, on the GPU."""
    theirs_type, ours_type = PAIRS[cell]
    theirs = theirs_type(*sizes, device="cuda", **options)
    ours = ours_type(*sizes, device="cuda", **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    module.zero_grad()
    y, _ = module(x)
    y.backward(torch.linspace(-1, 1, y.numel(), device="cuda", dtype=y.dtype).view_as(y))
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


@CELLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_graph_of_forward_and_backward(cell: str, dtype: torch.dtype) -> None:
    _, ours = make(cell, 24, 40, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(7, 5, 24, device="cuda", dtype=dtype, requires_grad=True)
    for p in (x, *ours.parameters()):
        p.grad = torch.zeros_like(p)

    def step() -> Tensor:
        y, _ = ours(x)
        for p in (x, *ours.parameters()):
            p.grad.zero_()
        y.backward(torch.ones_like(y))
        return y

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        replayed = [y.clone(), *(p.grad.clone() for p in (x, *ours.parameters()))]
        plain = [step().clone(), *(p.grad.clone() for p in (x, *ours.parameters()))]
        for a, b in zip(replayed, plain, strict=True):
            assert torch.equal(a, b)


@CELLS
def test_callers_stream(cell: str) -> None:
    _, ours = make(cell, 64, 256)
    x = torch.randn(50, 32, 64, device="cuda")
    expected = gradients(ours, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Work before ours on this stream, which another stream would not wait for.
        late = torch.zeros_like(x)
        torch.cuda._sleep(20_000_000)
        late.copy_(x)
        got = gradients(ours, late)
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device() -> None:
    ours = fastrnn.LSTM(8, 16, device="cuda:1")
    x = torch.randn(3, 2, 8, device="cuda:1")
    assert ours(x)[0].device == x.device
    assert torch.cuda.current_device() == 0


@CELLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_twice_the_same_bit_for_bit(cell: str, dtype: torch.dtype) -> None:
    _, ours = make(cell, 100, 200, bidirectional=True, dtype=dtype)
    x = torch.randn(30, 33, 100, device="cuda", dtype=dtype)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(ours, x), gradients(ours, x)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def error(got: list[Tensor], want: list[Tensor]) -> float:
    return max(
        ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(got, want, strict=True)
    )


@CELLS
@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
def test_obeys_the_tf32_flag_of_nn(cell: str, tf32: bool) -> None:
    theirs, ours = make(cell, 128, 256)
    x = torch.randn(20, 16, 128, device="cuda")
    exact = gradients(theirs.double(), x.double())
    theirs.float()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        ours_error, theirs_error = (error(gradients(m, x), exact) for m in (ours, theirs))
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert ours_error <= 2 * theirs_error + 1e-6
    assert (ours_error > 2e-5) == tf32


@CELLS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounds_no_worse_than_cudnn(cell: str, dtype: torch.dtype) -> None:
    theirs, ours = make(cell, 128, 256, dtype=dtype)
    x = torch.randn(50, 16, 128, device="cuda", dtype=dtype)
    wide = PAIRS[cell][0](128, 256, device="cuda", dtype=torch.float64)
    wide.load_state_dict({k: v.double() for k, v in theirs.state_dict().items()})
    exact = gradients(wide, x.double())
    eps = torch.finfo(dtype).eps
    assert error(gradients(ours, x), exact) <= 2 * error(gradients(theirs, x), exact) + 4 * eps


def test_lengths_and_packing_wait_for_nothing() -> None:
    """Forward and backward enqueue their work without a copy to the host."""
    ours = fastrnn.LSTM(32, 64, device="cuda")
    x = torch.randn(200, 8, 32, device="cuda")
    lengths = torch.randint(100, 201, (8,))
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    ours(packed)[0].data.sum().backward()
    torch.cuda.synchronize()

    def call() -> Tensor:
        return ours(packed)[0].data.sum()

    assert_no_sync(call)


def assert_no_sync(call: Callable[[], Tensor]) -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        call().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
