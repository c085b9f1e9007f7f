"""torch.onnx.export gives ONNX's own operators, and ONNX Runtime the same numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn

from .common import KINDS, assert_same, library, tensors

library("onnxscript")
onnxruntime = library("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

T, B, I, H = 6, 3, 4, 5


def exported(model: nn.Module, args: tuple[Any, ...], path: Path, **options: Any) -> tuple[list[str], Any]:
    """The operators of the exported model, and a function that runs it in ONNX Runtime."""
    program = torch.onnx.export(model.eval(), args, dynamo=True, verbose=False, **options)
    file = str(path / "model.onnx")
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
        return [torch.from_numpy(a) for a in session.run(None, arrays)]

    return [node.op_type for node in program.model.graph], run


class Tagger(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(2 * H, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        output, state = self.rnn(x, lengths=lengths)
        return self.head(output), state


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_lengths_and_dynamic_shapes(kind: str, tmp_path: Path) -> None:
    rnn = getattr(fastrnn, kind)(I, H, num_layers=2, bidirectional=True, batch_first=True)
    model = Tagger(rnn)
    shapes = ({0: "batch", 1: "time"}, {0: "batch"})
    args = (torch.randn(B, T, I), torch.tensor([6, 2, 4]))
    operators, run = exported(model, args, tmp_path, dynamic_shapes=shapes)
    assert operators.count(kind) == 4
    args = (torch.randn(4, 9, I), torch.tensor([3, 9, 1, 5]))
    assert_same(run(*args), tensors(model(*args)))


@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_its_state(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(fastrnn, kind)(I, H, **options)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
            # A GRU's and an RNN's c stays an input of the exported model.
            output, state = self.rnn(x, (h, c) if kind == "LSTM" else h + 0 * c)
            return output, state

    args = (torch.randn(T, B, I), torch.randn(1, B, H), torch.randn(1, B, H))
    model = Step()
    operators, run = exported(model, args, tmp_path)
    assert operators.count(kind) == 1
    assert_same(run(*args), tensors(model(*args)))


@pytest.mark.parametrize("kind", KINDS)
def test_cells_and_relu(kind: str, tmp_path: Path) -> None:
    options = {"nonlinearity": "relu"} if kind == "RNN" else {}
    cell = getattr(fastrnn, f"{kind}Cell")(I, H, **options)
    operators, run = exported(cell, (torch.randn(B, I),), tmp_path)
    assert operators.count(kind) == 1
    x = torch.randn(B, I)
    assert_same(run(x), tensors(cell(x)))


@pytest.mark.parametrize("lacking", ["projection", "resets", "c of every step"])
def test_what_onnx_lacks_is_said(lacking: str, tmp_path: Path) -> None:
    layer = fastrnn.LSTM(I, H, proj_size=2 if lacking == "projection" else 0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = layer

        def forward(self, x: Tensor, reset: Tensor) -> Tensor:
            if lacking == "c of every step":
                return self.rnn(x, states=True)[2][0][1] + reset.unsqueeze(-1)
            if lacking == "resets":
                return self.rnn(x, reset=reset)[0]
            return self.rnn(x)[0] + reset.unsqueeze(-1)

    args = (torch.randn(T, B, I), torch.zeros(T, B, dtype=torch.bool))
    with pytest.raises(Exception, match="ONNX") as error:
        exported(Model(), args, tmp_path)
    chain, current = [], error.value
    while current is not None:
        chain.append(str(current))
        current = current.__cause__ or current.__context__
    assert any(lacking in message for message in chain)


def traced(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """As exported(), by the exporter that traces."""
    file = io.BytesIO()
    torch.onnx.export(model.eval(), args, file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
        return [torch.from_numpy(a) for a in session.run(None, arrays)]

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_tracing_exporter_takes_a_layer_as_the_model(kind: str, options: dict[str, Any]) -> None:
    layer = getattr(fastrnn, kind)(I, H, **options)
    x = torch.randn(T, B, I)
    assert_same(traced(layer, (x,))(x), tensors(layer(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}Cell" for kind in KINDS)])
def test_the_tracing_exporter_takes_its_state(kind: str, by_name: bool) -> None:
    layer = getattr(fastrnn, kind)(I, H)
    x, h = (
        (torch.randn(B, I), torch.randn(B, H))
        if "Cell" in kind
        else (torch.randn(T, B, I), torch.randn(1, B, H))
    )
    hx = (h, h) if kind.startswith("LSTM") else h
    run = traced(layer, (x, {"hx": hx}) if by_name else (x, hx))
    assert_same(run(x, *(hx if isinstance(hx, tuple) else (hx,))), tensors(layer(x, hx)))


@pytest.mark.parametrize("name", ["lengths", "reset", "states"])
def test_the_tracing_exporter_says_what_it_does_not_take(name: str) -> None:
    with pytest.raises(ValueError, match=f"takes {name} with dynamo=True only"):
        traced(fastrnn.GRU(I, H), (torch.randn(T, B, I), {name: torch.tensor([2, 3, 4])}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}Cell" for kind in KINDS)])
def test_a_prepacked_model_says_to_export_before(kind: str, dynamo: bool) -> None:
    model = nn.Sequential(fastrnn.prepack(getattr(fastrnn, kind)(I, H).eval())).eval()
    x = torch.randn(B, I) if "Cell" in kind else torch.randn(T, B, I)
    with pytest.raises(Exception, match=r"export the model before prepack\(\)"):
        torch.onnx.export(model, (x,), io.BytesIO(), dynamo=dynamo)


@pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="docs/compatibility.md tells of torch 2.13"
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torch_nns_layers_fail_with_dynamic_time(kind: str, tmp_path: Path) -> None:
    """Where they are exported, or, if they are, where another length is run."""

    def export_and_run_longer() -> None:
        shapes = ({0: "time"},)
        _, run = exported(getattr(nn, kind)(I, H), (torch.randn(T, B, I),), tmp_path, dynamic_shapes=shapes)
        run(torch.randn(T + 2, B, I))

    with pytest.raises(Exception, match=r"conflicts between user-spec|tensor cannot be reshaped"):
        export_and_run_longer()


@pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="docs/compatibility.md tells of torch 2.13"
)
def test_onnx_runtime_refuses_torch_nns_projected_lstm(tmp_path: Path) -> None:
    x = torch.randn(T, B, I)
    operators, run = exported(nn.LSTM(I, H, proj_size=2), (x,), tmp_path)
    assert "LSTM" in operators
    with pytest.raises(Exception, match="initial_c must have shape"):
        run(x)
