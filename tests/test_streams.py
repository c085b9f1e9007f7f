"""Work on several streams: who waits for whom, and that results stay the same.

Streams that only note what is asked of them stand in for CUDA's, so that this is seen without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import ops, streams

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
    monkeypatch.setattr(streams, "_side_streams", {})
    monkeypatch.setattr(streams, "usable", lambda *problem: True)
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
        streams.run_concurrently(torch.zeros(1), runs_once, [(True,), (False,)])
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


def test_streams_are_for_gpus_alone() -> None:
    x = torch.zeros(1)
    assert not streams.usable(x, "lstm", T, B, H, False)
    assert not streams.usable(x.to("meta"), "lstm", T, B, H, False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("drivers", [("step", "step"), ("grid", "step"), ("step", "grid")])
def test_launches_that_fill_the_gpu_stay_on_one_stream(
    drivers: tuple[str, str], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable, asked = streams.usable, []

    def cuda_driver(x: Tensor, *problem: Any) -> tuple[str, str]:
        asked.append((x.dtype, *problem))
        return drivers[problem[-1]], ""

    prepare(monkeypatch)
    monkeypatch.setattr(streams, "usable", usable)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(ops, "cuda_driver", cuda_driver)
    layer, x = fastrnn.LSTM(I, H, bidirectional=True), torch.randn(T, B, I)
    with torch.no_grad():
        layer(nn.utils.rnn.pack_padded_sequence(x, [T, 5, 2]) if packed else x)
    assert set(asked) <= {(torch.float32, "lstm", T, B, H, False, b) for b in (False, True)}
    assert {entry[0] for entry in Stream.log} == ({"main"} if "grid" in drivers else {"main", "side 1"})
