"""What only a GPU can show: graphs, streams, precision flags, and the same result twice.

That results are right on the device is tested by the tests of all devices.
"""

from __future__ import annotations

import pytest
import support
import torch
from torch import Tensor, nn

import fastrnn

pytestmark = pytest.mark.skipif(bool(support.why_no_cuda()), reason=support.why_no_cuda() or "")
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


# What is captured: the masks that a bidirectional layer is called with.
GRAPHS: dict[str, tuple[str, ...]] = {"plain": (), "masks": ("lengths", "reset")}


@CELLS
@pytest.mark.parametrize("form", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_graph_of_forward_and_backward(cell: str, dtype: torch.dtype, form: str) -> None:
    _, ours = make(cell, 24, 40, 2, dtype=dtype, bidirectional=True)
    x = torch.randn(7, 5, 24, device="cuda", dtype=dtype, requires_grad=True)
    given = {"lengths": torch.tensor([7, 1, 4, 7, 0]), "reset": torch.rand(7, 5) < 0.3}
    given = {name: given[name].cuda() for name in GRAPHS[form]}
    for p in (x, *ours.parameters()):
        p.grad = torch.zeros_like(p)

    def step() -> Tensor:
        y, _ = ours(x, **given)
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
def test_cuda_graph_of_inference(cell: str) -> None:
    _, ours = make(cell, 24, 40, 2, bidirectional=True)
    x = torch.randn(7, 5, 24, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        ours(x)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            y, _ = ours(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, ours(x)[0])


@CELLS
def test_directions_side_by_side_change_nothing(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, over calls in a row that leave each other's memory free to be used again."""
    _, ours = make(cell, 64, 128, 2, bidirectional=True)
    inputs = [torch.randn(60, 16, 64, device="cuda") for _ in range(6)]
    monkeypatch.setenv("FASTRNN_CUDA_STREAMS", "0")
    expected = [gradients(ours, x) for x in inputs]
    monkeypatch.delenv("FASTRNN_CUDA_STREAMS")
    for _ in range(3):
        got = [gradients(ours, x) for x in inputs]
        for a, b in zip((t for g in got for t in g), (t for g in expected for t in g), strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        kept = [ours(x)[0] for x in inputs]
    for y, want in zip(kept, expected, strict=True):
        assert torch.equal(y, want[0])


def test_explain_names_a_driver() -> None:
    ours = fastrnn.LSTM(8, 16, device="cuda", dtype=torch.bfloat16)
    explanation = fastrnn.explain(ours, torch.zeros(3, 2, 8, device="cuda", dtype=torch.bfloat16))
    assert explanation.driver in fastrnn.build_info()["cuda_drivers"]
    assert explanation.backward_driver in fastrnn.build_info()["cuda_drivers"]


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
    ours = fastrnn.LSTM(8, 16, bidirectional=True, device="cuda:1")
    x = torch.randn(3, 2, 8, device="cuda:1", requires_grad=True)
    y, _ = ours(x)
    y.sum().backward()
    assert y.device == x.grad.device == x.device
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


FLAGS = {
    "allow_tf32": (torch.backends.cudnn, "allow_tf32", {False: False, True: True}),
    "fp32_precision": (torch.backends.cudnn.rnn, "fp32_precision", {False: "ieee", True: "tf32"}),
}


@CELLS
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
def test_obeys_the_flags_of_nn(cell: str, tf32: bool, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = make(cell, 128, 256)
    x = torch.randn(20, 16, 128, device="cuda")
    exact = gradients(theirs.double(), x.double())
    theirs.float()
    where, name, values = FLAGS[flag]
    monkeypatch.setattr(where, name, values[tf32])
    ours_error, theirs_error = (error(gradients(m, x), exact) for m in (ours, theirs))
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


@pytest.mark.parametrize("form", ["packed", "lengths"])
def test_waits_for_nothing(form: str) -> None:
    """Forward and backward enqueue their work without a copy to the host."""
    ours = fastrnn.LSTM(32, 64, bidirectional=True, device="cuda")
    x = torch.randn(200, 8, 32, device="cuda")
    lengths = torch.randint(100, 201, (8,))
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    lengths = lengths.cuda()

    def call() -> Tensor:
        return ours(packed)[0].data.sum() if form == "packed" else ours(x, lengths=lengths)[0].sum()

    call().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- Where a driver can fail that small shapes do not show ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_nan_in_the_state_reaches_every_unit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's own NaN, whose bits are all set, through the rounding to TF32 too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    _, ours = make("lstm", 24, 40, dtype=dtype)
    state = torch.zeros(2, 1, 5, 40, device="cuda", dtype=dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    state.view(integer)[0, 0, 3, 7] = torch.iinfo(integer).max
    y, _ = ours(torch.randn(4, 5, 24, device="cuda", dtype=dtype), tuple(state))
    assert y[:, 3].isnan().all()
    assert not y[:, [0, 1, 2, 4]].isnan().any()


def test_a_pass_of_several_chunks_of_pre_activations() -> None:
    """More than 256 MiB of them, which no driver computes at once; against the same steps in two calls."""
    T, B, H = 600, 128, 256
    _, ours = make("lstm", 64, H, dtype=torch.bfloat16)
    x = torch.randn(T, B, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        y, (h, c) = ours(x)
        first, state = ours(x[:250])
        second, (h_last, c_last) = ours(x[250:], state)
    eps = torch.finfo(torch.bfloat16).eps
    for a, b in ((y, torch.cat([first, second])), (h, h_last), (c, c_last)):
        assert ((a.float() - b.float()).abs().max() / b.float().abs().max()) <= 16 * eps


def test_both_directions_of_a_layer_that_fills_the_gpu() -> None:
    """Each direction of the grid driver needs all multiprocessors."""
    _, ours = make("lstm", 64, 2048, bidirectional=True, dtype=torch.bfloat16)
    x = torch.randn(20, 16, 64, device="cuda", dtype=torch.bfloat16)
    first, second = gradients(ours, x), gradients(ours, x)
    for a, b in zip(first, second, strict=True):
        assert not a.isnan().any()
        assert torch.equal(a, b)
