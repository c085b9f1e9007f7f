"""stream(): equal to the prepacked call bit for bit, whatever the chunks, and its state."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn

LAYERS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"proj_size": 7, "num_layers": 3}),
    (fastrnn.GRU, {"bias": False, "num_layers": 2}),
    (fastrnn.RNN, {"nonlinearity": "relu"}),
    (nn.LSTM, {}),
]


def parts(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize(("layer", "flags"), LAYERS)
@pytest.mark.parametrize(("batch", "hidden"), [(1, 64), (3, 33), (20, 16)])
def test_equals_the_prepacked_call(
    layer: type[nn.Module], flags: dict[str, Any], batch: int, hidden: int, weights: str | None
) -> None:
    torch.manual_seed(0)
    served: Any = fastrnn.prepack(layer(5, hidden, **flags).eval(), weights)
    live = fastrnn.stream(served)
    state = None
    for steps in (1, 1, 4, 2, 1, 30):
        x = torch.randn(steps, batch, 5)
        expected, state = served(x, state)
        got = live(x[0]).unsqueeze(0) if steps == 1 else live(x)
        assert torch.equal(got, expected)
        for mine, theirs in zip(parts(live.state), parts(state), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("cell", [fastrnn.LSTMCell, nn.GRUCell, fastrnn.RNNCell])
def test_cells(cell: type[nn.Module]) -> None:
    module: Any = cell(5, 8).eval()
    served, live = fastrnn.prepack(module), fastrnn.stream(module)
    state = None
    for x in torch.randn(4, 3, 5):
        state = served(x, state)
        assert torch.equal(live(x), parts(state)[0])
    for mine, theirs in zip(parts(live.state), parts(state), strict=True):
        assert torch.equal(mine, theirs)
    live.state = live.state
    assert torch.equal(live(x), parts(served(x, state))[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    module = fastrnn.LSTM(5, 8, dtype=dtype).eval()
    served, live, x = fastrnn.prepack(module), fastrnn.stream(module), torch.randn(2, 3, 5, dtype=dtype)
    assert torch.equal(live(x), served(x)[0])


def test_layouts() -> None:
    module = fastrnn.GRU(5, 8, batch_first=True).eval()
    live, x = fastrnn.stream(module), torch.randn(3, 4, 5)
    served = fastrnn.prepack(module)
    expected = served(x)[0]
    assert torch.equal(live(x), expected)
    live.reset()
    assert torch.equal(torch.stack([live(step) for step in x.unbind(1)], 1), expected)
    live.reset()
    spread = torch.randn(3, 4, 10)[..., ::2]
    assert torch.equal(live(spread), served(spread)[0])


def test_state() -> None:
    torch.manual_seed(0)
    live = fastrnn.stream(fastrnn.LSTM(5, 8, num_layers=2).eval())
    assert live.state is None
    x = torch.randn(3, 5)
    first = live(x)
    state: Any = live.state
    second = live(x)
    assert not torch.equal(first, second)
    live.state = state
    assert torch.equal(live(x), second)
    for rows in (1, [1], torch.tensor([1]), torch.tensor([False, True, False])):
        live.state = state
        live.reset(rows)
        y = live(x)
        assert torch.equal(y[1], first[1])
        assert torch.equal(y[[0, 2]], second[[0, 2]])
    live.reset()
    assert live.state is None
    assert torch.equal(live(x[:2]), first[:2])
    live.state = None
    assert torch.equal(live(x), first)


def test_copies_have_states_of_their_own() -> None:
    live, x = fastrnn.stream(fastrnn.GRU(5, 8).eval()), torch.randn(3, 5)
    first = live(x)
    for twin in (live.clone(), copy.deepcopy(live)):
        assert torch.equal(twin(x), live.clone()(x))
        assert not torch.equal(twin(x), first)
    with pytest.raises(TypeError, match="this process only"):
        pickle.dumps(live)
    assert "PrepackedGRU(5, 8" in repr(live)


def test_inference_mode_and_out_of_it() -> None:
    live, x = fastrnn.stream(fastrnn.LSTM(5, 8).eval()), torch.randn(3, 5)
    with torch.inference_mode():
        assert live(x).is_inference()
        live.reset([0])
    live.reset([1])
    assert not live(x).is_inference()
    with pytest.raises(RuntimeError, match="no gradients"):
        live(x.requires_grad_())
    with torch.no_grad():
        live(x)


def test_threads_with_a_stream_each() -> None:
    torch.manual_seed(0)
    live, x = fastrnn.stream(fastrnn.LSTM(16, 64).eval()), torch.randn(200, 1, 16)
    expected = torch.stack([live(step) for step in x])
    wrong: list[int] = []

    def serve(number: int, own: fastrnn.Stream) -> None:
        if not torch.equal(torch.stack([own(step) for step in x]), expected):
            wrong.append(number)

    live.reset()
    threads = [threading.Thread(target=serve, args=(i, live.clone())) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_compiles() -> None:
    live, twin = (fastrnn.stream(fastrnn.GRU(5, 8).eval()) for _ in range(2))
    twin = live.clone()
    compiled = torch.compile(lambda x: live(2 * x) + 1)
    for x in torch.randn(4, 3, 5):
        torch.testing.assert_close(compiled(x), twin(2 * x) + 1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4), r"should be torch.float32 of shape \[B, 5\]"),
        (torch.zeros(5), "got torch.float32 of shape"),
        (torch.zeros(3, 5, dtype=torch.float64), "got torch.float64"),
        (torch.zeros(2, 5), "got 2 sequences, expected the 3"),
        (torch.zeros(0, 3, 5), "at least one step"),
    ],
)
def test_input_that_does_not_fit(x: Tensor, message: str) -> None:
    live = fastrnn.stream(fastrnn.LSTM(5, 8).eval())
    y = live(torch.ones(3, 5))
    state: Any = live.state
    with pytest.raises(ValueError, match=message):
        live(x)
    assert torch.equal(live.state[0], state[0])
    assert torch.equal(y, state[0][0])


def test_what_cannot_be_streamed() -> None:
    with pytest.raises(ValueError, match="bidirectional"):
        fastrnn.stream(fastrnn.LSTM(5, 8, bidirectional=True).eval())
    with pytest.raises(ValueError, match="eval"):
        fastrnn.stream(fastrnn.LSTM(5, 8))
    with pytest.raises(ValueError, match="layer or cell, got a Sequential"):
        fastrnn.stream(nn.Sequential(fastrnn.LSTM(5, 8)).eval())
    live = fastrnn.stream(fastrnn.LSTM(5, 8).eval())
    with pytest.raises(ValueError, match="as the layer returns them"):
        live.state = torch.zeros(1, 3, 8)
    with pytest.raises(ValueError, match="as the layer returns them"):
        live.state = torch.zeros(1, 3, 8), torch.zeros(1, 3, 9)
