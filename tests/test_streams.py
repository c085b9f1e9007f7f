"""Work on several streams: who waits for whom, and that results stay the same.

Streams that only note what is asked of them stand in for CUDA's, so that this is seen without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import support
import torch
from torch import Tensor

import fastrnn
from fastrnn import ops, streams, wavefront

T, B, I, H = 7, 3, 5, 6


class Stream:
    """Notes in `log` what it waits for, what runs on it, what it shares memory of, and what it views."""

    log: list[tuple[str, str, str]]
    made: int
    current: Stream

    def __init__(self, device: torch.device) -> None:
        self.device, self.name = device, f"side {Stream.made}"
        Stream.made += 1

    def wait_stream(self, other: Stream) -> None:
        Stream.log.append((self.name, "waits for", other.name))


@contextmanager
def on(stream: Stream) -> Iterator[None]:
    before, Stream.current = Stream.current, stream
    try:
        yield
    finally:
        Stream.current = before


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> type[Stream]:
    prepare(monkeypatch)
    return Stream


def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts such streams in the place of CUDA's, and has GPUs' ways taken without one."""
    Stream.log, Stream.made = [], 0
    Stream.current = Stream(torch.device("cpu"))
    Stream.current.name = "main"
    forward = ops.forward

    def run(cell: str, x: Tensor, *rest: Any) -> Any:
        Stream.log.append((Stream.current.name, "runs", "reverse" if rest[-2] else f"{x.shape[0]} steps"))
        return forward(cell, x, *rest)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)
    monkeypatch.setattr(torch.cuda, "stream", on)
    view_as = Tensor.view_as

    def view(t: Tensor, other: Tensor) -> Tensor:
        Stream.log.append((Stream.current.name, "views", ""))
        return view_as(t, other)

    monkeypatch.setattr(Tensor, "view_as", view)
    monkeypatch.setattr(Tensor, "record_stream", lambda t, s: Stream.log.append((s.name, "shares", "")))
    monkeypatch.setattr(streams, "_beside", {})
    monkeypatch.setattr(streams, "usable", lambda x: True)
    monkeypatch.setattr(ops, "forward", run)


SIDE_BY_SIDE = [
    ("side 1", "waits for", "main"),
    ("main", "runs", f"{T} steps"),
    ("side 1", "runs", "reverse"),
    ("main", "waits for", "side 1"),
]


def test_directions_run_side_by_side(noted: type[Stream]) -> None:
    """Of each layer, with the same stream beside; what backward keeps is shared, what is freed is not."""
    layer, x = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True), torch.randn(T, B, I)
    with torch.no_grad():
        layer(x)
    assert noted.log == SIDE_BY_SIDE * 2
    noted.log.clear()
    layer(x)
    shared = [entry[0] for entry in noted.log if entry[1] == "shares"]
    # x, h0, c0 and four parameters there, y, h_n, c_n and c here.
    assert shared == (["side 1"] * 7 + ["main"] * 4) * 2
    # Four parameters, whose gradients are to come back.
    assert [entry[0] for entry in noted.log if entry[1] == "views"] == ["main"] * 8
    assert [entry for entry in noted.log if entry[1] not in ("shares", "views")] == SIDE_BY_SIDE * 2


@pytest.mark.parametrize("cell", support.LAYERS)
def test_side_by_side_computes_the_same(cell: str) -> None:
    """To the last bit: gradients are summed up in the same order."""
    layer = support.ours(cell, I, H, num_layers=2, bidirectional=True)
    x, hx = torch.randn(T, B, I), support.initial_state(layer, B)
    expected = results(layer, x, hx, "lengths")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        got = results(layer, x, hx, "lengths")
    assert ("side 1", "runs", "reverse") in Stream.log
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_streams_meet_again_after_an_error(noted: type[Stream]) -> None:
    def runs_once(first: bool) -> None:
        if first:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        streams.side_by_side(torch.zeros(1), runs_once, [(True,), (False,)])
    assert noted.log == [("side 1", "waits for", "main"), ("main", "waits for", "side 1")]
    assert noted.current.name == "main"


def masks(form: str) -> dict[str, Tensor]:
    given = {}
    if "lengths" in form:
        given["lengths"] = torch.tensor([T, 2, 5])
    if "reset" in form:
        given["reset"] = torch.rand(T, B) < 0.3
    return given


def results(layer: Any, x: Tensor, hx: Any, form: str) -> list[Tensor]:
    """Outputs, last states, states of every step, and gradients of everything."""
    inputs = [*support.leaves(x, *support.tensors_of(hx)), *layer.parameters()]
    state = inputs[1] if isinstance(hx, Tensor) else tuple(inputs[1:3])
    outputs = support.tensors_of(layer(inputs[0], state, **masks(form), states=True))
    weighted = sum(
        (o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in outputs
    )
    return [*outputs, *torch.autograd.grad(weighted, inputs)]


FORMS = ("plain", "lengths", "reset", "lengths+reset")


def calls_of_the_op(call: Callable[[], object]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        seen, forward = [], ops.forward
        patch.setattr(ops, "forward", lambda *args: seen.append(args) or forward(*args))
        call()
    return len(seen)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunks", [2, 3, T])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_a_wavefront_computes_the_same(
    cell: str, chunks: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = support.ours(cell, I, H, num_layers=3, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    hx = support.initial_state(layer, B, dtype=torch.float64)
    torch.manual_seed(1)
    expected = results(layer, x, hx, form)
    monkeypatch.setattr(wavefront, "chunks_for", lambda x: chunks)
    torch.manual_seed(1)
    assert calls_of_the_op(lambda: layer(x, hx)) == 3 * chunks
    for got, want in zip(results(layer, x, hx, form), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_wavefront_keeps_the_rule_of_exactness(
    cell: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks hand states on in dtype, and add up the gradients of weights in it."""
    monkeypatch.setattr(wavefront, "chunks_for", lambda x: 4)

    def draw(i: int) -> list[support.Error]:
        torch.manual_seed(i)
        torchs, mine = support.twins(cell, 16, 24, num_layers=2, dtype=dtype)
        x = torch.randn(32, 4, 16, dtype=dtype)
        found = []
        for layer, dtype_of in (
            (support.in_float64(torchs), torch.float64),
            (torchs, dtype),
            (mine, dtype),
        ):
            leaf = x.to(dtype_of).requires_grad_()
            y = layer(leaf)[0]
            y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype_of).view(y.shape))
            found.append([y, leaf.grad, *(p.grad for p in layer.parameters())])
        names = ["output", "gradient of x", *(f"gradient of {n}" for n, _ in mine.named_parameters())]
        return support.errors(names, *found, dtype)

    support.check_rule(f"{cell} in a wavefront", dtype, draw)


def test_layers_run_one_chunk_behind_each_other(
    noted: type[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_CUDA_WAVEFRONT", "2")
    with torch.no_grad():
        fastrnn.GRU(I, H, num_layers=2)(torch.randn(T, B, I))
    assert [entry for entry in noted.log if entry[1] != "shares"] == [
        ("main", "runs", "4 steps"),
        ("side 1", "waits for", "main"),
        ("side 1", "runs", "4 steps"),
        ("main", "runs", "3 steps"),
        ("side 1", "waits for", "main"),
        ("side 1", "runs", "3 steps"),
        ("main", "waits for", "side 1"),
    ]


def test_what_a_wavefront_does_not_serve(noted: type[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws for all steps at once, a packed batch shrinks, and two directions meet at both ends."""
    monkeypatch.setenv("FASTRNN_CUDA_WAVEFRONT", "2")
    x = torch.randn(T, B, I)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([T, T, 2]))
    for options, given in (
        ({"dropout": 0.5}, x),
        ({}, packed),
        ({"bidirectional": True}, x),
        ({"num_layers": 1}, x),
        ({}, x[:1]),
    ):
        noted.log.clear()
        layer = fastrnn.GRU(I, H, **{"num_layers": 2, **options})
        layer(given)
        assert sum(entry[1] == "runs" for entry in noted.log) == layer.num_layers * layer._directions
    monkeypatch.setenv("FASTRNN_CUDA_WAVEFRONT", "two")
    with pytest.raises(ValueError, match="FASTRNN_CUDA_WAVEFRONT must be a number of chunks, not 'two'"):
        fastrnn.GRU(I, H, num_layers=2)(x)


def test_streams_are_for_gpus_alone() -> None:
    x = torch.zeros(1)
    assert not streams.usable(x)
    assert not streams.usable(x.to("meta"))
