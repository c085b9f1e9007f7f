"""torch.compile traces our layers whole, forward and backward, and leaves torch.nn's as they were."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

T, B, I, H = 5, 3, 4, 6


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Model(nn.Module):
    """A layer amid other operators, so that what surrounds it is compiled with it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any, hx: Any = None, **masks: Tensor) -> Tensor:
        # Users' code asks this of every module it meets.
        assert isinstance(self.layer, nn.RNNBase)
        y, state = self.layer(x, hx, **masks)
        return y.sin() + sum(s.sum() for s in support.tensors_of(state)).cos()


def compare(layer: Any, x: Tensor, hx: Any = None, backend: Any = "aot_eager", **masks: Tensor) -> None:
    model = Model(layer)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    results = []
    for run in (model, compiled):
        given = x.detach().clone().requires_grad_()
        y = run(given, hx, **masks)
        results.append((y, *torch.autograd.grad(y.square().sum(), [given, *layer.parameters()])))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("cell", support.LAYERS)
def test_layers(cell: str, device: str) -> None:
    flags = {"proj_size": 2} if cell == "lstm" else {}
    layer = support.ours(cell, I, H, num_layers=2, bidirectional=True, **flags, device=device)
    compare(layer, torch.randn(T, B, I, device=device), support.initial_state(layer, B, device=device))


@pytest.mark.parametrize(
    "form", ["batch_first", "no_bias", "lean", "unbatched", "lengths", "reset", "eval"]
)
def test_forms(form: str, device: str) -> None:
    flags = {"batch_first": {"batch_first": True}, "no_bias": {"bias": False}, "lean": {"memory": "lean"}}
    layer = fastrnn.LSTM(I, H, **flags.get(form, {}), device=device)
    masks = {}
    if form == "lengths":
        masks["lengths"] = torch.tensor([1, 5, 3], device=device)
    if form == "reset":
        masks["reset"] = torch.rand(T, B, device=device) < 0.5
    if form == "eval":
        layer.eval()
    compare(layer, torch.randn((T, I) if form == "unbatched" else (T, B, I), device=device), **masks)


@pytest.mark.parametrize("cell", support.CELLS)
def test_cells(cell: str, device: str) -> None:
    module = support.cell_twins(cell, I, H)[1].to(device)

    def loop(x: Tensor) -> Tensor:
        hx = module(x[0])
        for t in range(1, T):
            hx = module(x[t], hx)
        return support.tensors_of(hx)[0]

    x = torch.randn(T, B, I, device=device, requires_grad=True)
    results = []
    for run in (loop, torch.compile(loop, fullgraph=True, backend="aot_eager")):
        y = run(x)
        results.append((y, *torch.autograd.grad(y.sum(), [x, *module.parameters()])))
    torch.testing.assert_close(*results)


def test_inductor(device: str) -> None:
    layer = fastrnn.GRU(I, H, num_layers=2, dropout=0.0, device=device)
    compare(layer, torch.randn(T, B, I, device=device), backend="inductor")


@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_no_recompilation_for_other_lengths_and_batches(
    cell: str, dynamic: bool | None, device: str
) -> None:
    """By default the second shape makes sizes symbolic; dynamic=True begins so. Then no more."""
    counter = CompileCounterWithBackend("aot_eager")
    layer = support.ours(cell, I, H, device=device)
    model = torch.compile(Model(layer), fullgraph=True, backend=counter, dynamic=dynamic)
    counts = []
    for steps, batch in ((5, 3), (7, 4), (7, 3), (5, 4), (50, 20), (6, 2)):
        x = torch.randn(steps, batch, I, device=device, requires_grad=True)
        model(x).sum().backward()
        counts.append(counter.frame_count)
    settled = 0 if dynamic else 1
    assert len(set(counts[settled:])) == 1


@pytest.mark.parametrize("dynamic", [True, None])
def test_no_recompilation_with_states_and_masks(dynamic: bool | None, device: str) -> None:
    """What is checked of sizes at tracing compares them with each other, and with no number."""
    counter = CompileCounterWithBackend("aot_eager")
    layer = fastrnn.LSTM(I, H, device=device)
    model = torch.compile(Model(layer), fullgraph=True, backend=counter, dynamic=dynamic)
    counts = []
    for steps, batch in ((5, 3), (7, 4), (7, 3), (5, 4), (50, 20), (6, 2)):
        x = torch.randn(steps, batch, I, device=device, requires_grad=True)
        hx = support.initial_state(layer, batch, device=device)
        lengths = torch.randint(0, steps + 1, (batch,), device=device)
        reset = torch.rand(steps, batch, device=device) < 0.5
        model(x, hx, lengths=lengths, reset=reset).sum().backward()
        counts.append(counter.frame_count)
    assert len(set(counts[0 if dynamic else 1 :])) == 1


def test_one_tensor_in_two_places(device: str) -> None:
    """Dynamo takes no autograd.Function that gets a tensor twice; ours may."""
    cell = fastrnn.LSTMCell(H, H, device=device)
    x = torch.randn(B, H, device=device, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return cell(x, (x, x))[0]

    results = [
        torch.autograd.grad(f(x).sum(), x)
        for f in (run, torch.compile(run, fullgraph=True, backend="aot_eager"))
    ]
    torch.testing.assert_close(*results)


def test_packed(device: str) -> None:
    layer = fastrnn.LSTM(I, H, bidirectional=True, device=device)

    def run(packed: Any) -> Tensor:
        y, state = layer(packed)
        return y.data.sin().sum() + state[0].sum()

    x = torch.randn(T, B, I, device=device, requires_grad=True)
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
    compiled = torch.compile(run, backend="aot_eager")
    results = [torch.autograd.grad(f(packed), x, retain_graph=True) for f in (run, compiled)]
    torch.testing.assert_close(*results)


def test_autocast(device: str) -> None:
    layer = fastrnn.LSTM(I, H, device=device)
    x = torch.randn(T, B, I, device=device)

    def run(x: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return layer(x)[0]

    y = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, run(x))


def test_functional_call_with_other_weights(device: str) -> None:
    layer = fastrnn.GRU(I, H, device=device)
    x = torch.randn(T, B, I, device=device)

    def run(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,))[0]

    other = {n: torch.randn_like(p) for n, p in layer.named_parameters()}
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(other), run(other))


def test_torchs_layers_are_as_they_were() -> None:
    """Dynamo still breaks the graph at torch.nn's, before and after it has traced one of ours."""
    x = torch.randn(T, B, I)
    torchs = torch.compile(Model(nn.LSTM(I, H)), fullgraph=True, backend="eager")
    for _ in range(2):
        assert not torch._dynamo.config.allow_rnn
        with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
            torchs(x)
        torch.compile(Model(fastrnn.LSTM(I, H)), fullgraph=True, backend="eager")(x)
    torch._dynamo.reset()
    broken = torch.compile(Model(nn.LSTM(I, H)), backend="eager")
    broken(x)


def test_a_model_with_both(device: str) -> None:
    ours, torchs = fastrnn.GRU(I, I, device=device), nn.GRU(I, I, device=device)
    x = torch.randn(T, B, I, device=device)

    def run(x: Tensor) -> Tensor:
        return ours(torchs(ours(x)[0])[0])[0]

    torch.testing.assert_close(torch.compile(run, backend="aot_eager")(x), run(x))


def test_export(device: str) -> None:
    layer = fastrnn.LSTM(I, H, device=device).eval()
    sizes = ({0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)},)
    program = torch.export.export(layer, (torch.randn(T, B, I, device=device),), dynamic_shapes=sizes)
    targets = [str(n.target) for n in program.graph.nodes]
    assert targets.count("fastrnn.forward.default") == 1
    for steps, batch in ((7, 3), (2, 9)):
        x = torch.randn(steps, batch, I, device=device)
        support.same(program.module()(x), layer(x))


# Dynamo may be imported before or after this package.
ORDERS = {
    "before": "import torch, torch._dynamo, fastrnn",
    "after": "import torch, fastrnn, torch._dynamo",
    "never": "import sys, torch, fastrnn; assert 'torch._dynamo.variables.builder' not in sys.modules",
}


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_imports(order: str) -> None:
    code = ORDERS[order] + (
        "; layer = fastrnn.GRU(2, 3); x = torch.randn(4, 1, 2)"
        "; y = torch.compile(layer, fullgraph=True, backend='eager')(x)[0]"
        "; assert torch.equal(y, layer(x)[0])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
