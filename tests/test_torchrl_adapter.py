"""The adapter for torchrl without torchrl: what it computes of a batch of rollouts."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn

import fastrnn

B, T, I, H = 3, 6, 4, 5


class LSTMModule(nn.Module):
    """Calls its layer as torchrl's does with the backend "scan"."""

    def __init__(self, lstm: Any) -> None:
        super().__init__()
        self.lstm, self.recurrent_backend = lstm, "pad"

    def forward(self, x: Tensor, h: Tensor, c: Tensor, is_init: Tensor) -> Any:
        if self.recurrent_backend != "scan":
            return self._lstm_pad_with_resets(x, h, c, is_init)
        first = tuple(s[:, 0].transpose(0, 1).contiguous() for s in (h, c))
        return self._lstm_scan_with_resets(x, h, c, first, is_init)

    def _lstm_pad_with_resets(self, *_: Tensor) -> str:
        return "torchrl's way"


class GRUModule(nn.Module):
    def __init__(self, gru: Any) -> None:
        super().__init__()
        self.gru, self.recurrent_backend = gru, "pad"

    def forward(self, x: Tensor, h: Tensor, is_init: Tensor) -> Any:
        if self.recurrent_backend != "scan":
            return self._gru_pad_with_resets(x, h, is_init)
        return self._gru_scan_with_resets(x, h, h[:, 0].transpose(0, 1).contiguous(), is_init)

    def _gru_pad_with_resets(self, *_: Tensor) -> str:
        return "torchrl's way"


MODULES = {"lstm": LSTMModule, "gru": GRUModule}


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    modules = ModuleType("torchrl.modules")
    modules.LSTMModule, modules.GRUModule = LSTMModule, GRUModule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchrl", ModuleType("torchrl"))
    monkeypatch.setitem(sys.modules, "torchrl.modules", modules)
    name = "fastrnn.integrations.torchrl"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name)


def rollout(cell: str, layers: int, is_init: Tensor) -> list[Tensor]:
    """x and the recorded states, zero where an episode begins after the first step."""
    x = torch.randn(B, T, I, dtype=torch.float64)
    begins = is_init.clone()
    begins[:, 0] = False
    states = [torch.randn(B, T, layers, H, dtype=torch.float64) for _ in range(2 if cell == "lstm" else 1)]
    return [x, *(s.masked_fill(begins[..., None, None], 0) for s in states)]


def by_episodes(layer: Any, x: Tensor, *rest: Tensor) -> list[Tensor]:
    """The same by a loop: each episode starts from its recorded state."""
    *states, is_init = rest
    results = [torch.zeros(B, T, H, dtype=x.dtype), *(torch.zeros_like(s) for s in states)]
    for b in range(B):
        begins = [0, *(t for t in range(1, T) if is_init[b, t]), T]
        for t0, t1 in itertools.pairwise(begins):
            hx = [s[b, t0].unsqueeze(1).contiguous() for s in states]
            y, last = layer(x[b : b + 1, t0:t1], tuple(hx) if len(hx) == 2 else hx[0])
            results[0][b, t0:t1] = y[0]
            for result, s in zip(results[1:], last if len(hx) == 2 else [last], strict=True):
                result[b, t1 - 1] = s[:, 0]
    return results


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", MODULES)
def test_equals_a_loop_over_episodes_with_their_states(adapter: Any, cell: str, layers: int) -> None:
    theirs, ours = support.twins(cell, I, H, layers, batch_first=True, dtype=torch.float64)
    module = adapter.use_reset(nn.Sequential(MODULES[cell](ours)))[0]
    is_init = torch.rand(B, T) < 0.4
    inputs = [*rollout(cell, layers, is_init), is_init]
    expected, found = by_episodes(theirs, *inputs), module(*inputs)
    torch.testing.assert_close(list(found), expected)
    grads = [
        torch.autograd.grad(sum(r.square().sum() for r in results), list(layer.parameters()))
        for results, layer in ((expected, theirs), (found, ours))
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("cell", MODULES)
def test_what_reset_does_not_serve_takes_torchrls_way(adapter: Any, cell: str) -> None:
    is_init = torch.zeros(B, T, dtype=torch.bool)
    is_init[1, 3] = True
    x, *states = rollout(cell, 1, is_init)
    module = adapter.use_reset(MODULES[cell](support.ours(cell, I, H, batch_first=True).double()))
    assert module(x, *states, is_init) != "torchrl's way"
    recorded = [s.clone() for s in states]
    recorded[-1][1, 3, 0, 2] = 0.5
    assert module(x, *recorded, is_init) == "torchrl's way"
    trained = [s.requires_grad_() for s in states]
    assert module(x, *trained, is_init) == "torchrl's way"
    both = support.ours(cell, I, H, batch_first=True, bidirectional=True).double()
    assert adapter.use_reset(MODULES[cell](both))(x, *states, is_init) == "torchrl's way"


def test_converts_the_layers_inside_and_nothing_twice(adapter: Any) -> None:
    model = nn.ModuleList([LSTMModule(nn.LSTM(I, H)), GRUModule(nn.GRU(I, H)), nn.Linear(I, H)])
    names = list(model.state_dict())
    for _ in range(2):
        assert adapter.use_reset(model) is model
        assert [type(m) for m in model[:2]] == [adapter.ResetLSTMModule, adapter.ResetGRUModule]
        assert isinstance(model[0].lstm, fastrnn.LSTM)
        assert isinstance(model[1].gru, fastrnn.GRU)
    assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match="there is no LSTMModule or GRUModule"):
        adapter.use_reset(nn.LSTM(I, H))
