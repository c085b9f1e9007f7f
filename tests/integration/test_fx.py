"""torch.fx takes this package's layers and cells as leaves, as it takes torch.nn's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

import fastrnn

from .common import KINDS, assert_same

MODULES: dict[str, Any] = {
    **{kind: lambda kind=kind: getattr(fastrnn, kind)(4, 8) for kind in KINDS},
    **{f"{kind}Cell": lambda kind=kind: getattr(fastrnn, f"{kind}Cell")(4, 8) for kind in KINDS},
    "GRUResetBefore": lambda: fastrnn.GRUResetBefore(4, 8),
    "prepacked": lambda: fastrnn.prepack(fastrnn.LSTM(4, 8).eval()),
    "parametrized": lambda: parametrizations.weight_norm(fastrnn.GRU(4, 8), "weight_hh_l0"),
}


class Net(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        result = self.rnn(x)
        if not isinstance(self.rnn, nn.GRUCell | nn.RNNCell):
            result = result[0]
        return self.head(result)


@pytest.mark.parametrize("name", MODULES)
def test_symbolic_trace_takes_layers_as_leaves(name: str) -> None:
    model = Net(MODULES[name]())
    traced = fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["rnn", "head"]
    x = torch.randn(3, 4) if name.endswith("Cell") else torch.randn(5, 3, 4)
    assert torch.equal(traced(x), model(x))
    assert torch.equal(copy.deepcopy(traced)(x), model(x))


def test_symbolic_trace_with_state_lengths_and_reset() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = fastrnn.GRU(4, 8)

        def forward(self, x: Tensor, h: Tensor, lengths: Tensor, reset: Tensor) -> Tensor:
            return self.rnn(x, h, lengths=lengths, reset=reset)[0]

    model = Masked()
    traced = fx.symbolic_trace(model)
    args = (torch.randn(5, 3, 4), torch.randn(1, 3, 8), torch.tensor([5, 2, 3]), torch.rand(5, 3) < 0.3)
    assert torch.equal(traced(*args), model(*args))


def test_a_user_tracer_keeps_its_own_leaves() -> None:
    model = Net(fastrnn.RNN(4, 8))
    model.head = nn.Sequential(nn.Linear(8, 2))

    class Heads(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return m is model.head or super().is_leaf_module(m, module_qualified_name)

    graph = Heads().trace(model)
    assert [n.target for n in graph.nodes if n.op == "call_module"] == ["rnn", "head"]


def test_accelerate_changes_a_traced_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 8))
    traced = fx.symbolic_trace(model)
    x = torch.randn(5, 3, 4)
    expected = traced(x)
    _, report = fastrnn.accelerate(traced)
    assert list(report.replaced) == ["1"]
    assert_same(traced(x), expected)
    assert_same(fx.symbolic_trace(traced)(x), expected)


def test_torchvision_feature_extraction() -> None:
    # Not among the required libraries: a build of it loads with one build of torch only.
    try:
        from torchvision.models import feature_extraction as extraction
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not load: {error}")
    model = fastrnn.accelerate(Net(nn.LSTM(4, 8)).eval())[0]
    assert "rnn" in extraction.get_graph_node_names(model)[1]
    features = extraction.create_feature_extractor(model, {"rnn": "states", "head": "scores"})
    x = torch.randn(5, 3, 4)
    got = features(x)
    assert torch.equal(got["scores"], model(x))
    assert torch.equal(got["states"][0], model.rnn(x)[0])


@pytest.mark.filterwarnings("ignore")
def test_fx_quantization_says_what_to_do() -> None:
    from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    x = torch.randn(5, 3, 4)
    model = Net(fastrnn.LSTM(4, 8)).eval()
    left = convert_fx(prepare_fx(copy.deepcopy(model), mapping, (x,)))
    assert type(left.rnn) is fastrnn.LSTM
    quantized = convert_fx(prepare_fx(fastrnn.restore(copy.deepcopy(model)), mapping, (x,)))
    assert "quantized" in type(quantized.rnn).__module__
    torch.testing.assert_close(quantized(x), model(x), atol=0.05, rtol=0)
