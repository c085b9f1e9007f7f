"""fastrnn.export.decompose: programs of aten's operators only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

import fastrnn
from fastrnn.export import decompose

from .common import KINDS, assert_same, library, tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

T, B, I, H = 5, 2, 3, 4
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}
CASES = [
    *((kind, flags) for kind in KINDS for flags in ({}, DEEP, {"bias": False})),
    ("LSTM", {"proj_size": 2}),
    ("RNN", {"nonlinearity": "relu"}),
    ("GRUResetBefore", {}),
    *((f"{kind}Cell", {}) for kind in KINDS),
]


def namespaces(program: ExportedProgram) -> set[str]:
    calls = (n.target for n in program.graph.nodes if n.op == "call_function")
    return {target.namespace for target in calls if isinstance(target, torch._ops.OpOverload)}


@pytest.mark.parametrize(("kind", "flags"), CASES, ids=str)
def test_only_aten_operators_and_the_same_numbers_for_any_batch(kind: str, flags: dict[str, Any]) -> None:
    module = getattr(fastrnn, kind)(I, H, **flags).eval()
    at = 0 if kind.endswith("Cell") or flags.get("batch_first") else 1
    x = torch.randn(B, I) if kind.endswith("Cell") else torch.randn(T, B, I)
    if flags.get("batch_first"):
        x = x.transpose(0, 1)
    program = decompose(export(module, (x,), dynamic_shapes=({at: Dim("batch", min=2)},)))
    assert namespaces(program) == {"aten"}
    assert list(program.state_dict) == list(module.state_dict())
    longer = torch.cat((x, x + 1, x - 1), at)
    assert_same(tensors(program.module()(longer)), tensors(module(longer)))


def test_lengths_reset_and_states() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = fastrnn.LSTM(I, H, bidirectional=True)

        def forward(self, x: Tensor, lengths: Tensor, reset: Tensor) -> Any:
            return self.rnn(x, lengths=lengths, reset=reset, states=True)

    model = Model().eval()
    args = (torch.randn(T, 3, I), torch.tensor([5, 1, 3]), torch.rand(T, 3) < 0.3)
    program = decompose(export(model, args))
    assert namespaces(program) == {"aten"}
    assert_same(tensors(program.module()(*args)), tensors(model(*args)))


def test_what_has_no_form_in_aten_is_said() -> None:
    x = torch.randn(T, B, I)
    with pytest.raises(RuntimeError, match="got a dynamic number of steps"):
        decompose(export(fastrnn.GRU(I, H), (x,), dynamic_shapes=({0: Dim("time", min=2)},)))
    served = nn.Sequential(fastrnn.prepack(fastrnn.GRU(I, H).eval())).eval()
    with pytest.raises(RuntimeError, match=r"export the model before prepack\(\)"):
        decompose(export(served, (x,)))


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_reads_it(kind: str) -> None:
    openvino = library("openvino")
    model = nn.Sequential(getattr(fastrnn, kind)(I, H)).eval()
    x = torch.randn(T, B, I)
    program = decompose(export(model, (x,)))
    compiled = openvino.compile_model(openvino.convert_model(program), "CPU", F32)
    got = compiled([x.numpy()])
    expected = tensors(model(x))
    for i, e in enumerate(expected):
        torch.testing.assert_close(torch.from_numpy(got[i]), e, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["PeepholeLSTM", "LiGRU"])
def test_declared_cells(name: str) -> None:
    layer, x = getattr(fastrnn, name)(I, H, bidirectional=True).eval(), torch.randn(5, 2, I)
    program = decompose(export(layer, (x,)))
    assert not any("fastrnn" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])
