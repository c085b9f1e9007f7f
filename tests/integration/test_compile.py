"""torch.compile, torch.export and AOTInductor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

from .common import DEVICES, KINDS, assert_same, gradients, loss_of, pair, tensors

T, B, I, H = 6, 3, 4, 5

# What is checked is tracing; inductor itself, which takes long, is run where it is named.
TRACED = {"backend": "aot_eager"}


class Model(nn.Module):
    def __init__(self, kind: str, device: str = "cpu") -> None:
        super().__init__()
        self.rnn = getattr(fastrnn, kind)(
            I, H, num_layers=2, bidirectional=True, batch_first=True, device=device
        )
        self.head = nn.Linear(2 * H, 2, device=device)

    def forward(self, x: Tensor, lengths: Tensor | None = None, reset: Tensor | None = None) -> Tensor:
        return self.head(self.rnn(x, lengths=lengths, reset=reset)[0])


def assert_compiles(
    model: nn.Module, run: Callable[..., Any], *args: Any, calls: int = 1, **options: Any
) -> None:
    """The compiled function gives the same results and gradients, at every one of its calls."""
    torch._dynamo.reset()
    compiled = torch.compile(run, **options)
    results = []
    for f in (run, *[compiled] * calls):
        model.zero_grad()
        out = f(*args)
        loss_of(out).backward()
        # A CUDA graph's results live until its next run.
        results.append(([t.clone() for t in tensors(out)], gradients(model)))
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("device", DEVICES)
def test_compile_default(device: str) -> None:
    """Without fullgraph: a break of the graph between two layers leaves both compiled."""
    layers = nn.ModuleList([Model(kind, device) for kind in KINDS])

    def run(x: Tensor) -> list[Tensor]:
        lstm, gru, rnn = layers
        first = lstm(x)
        torch._dynamo.graph_break()
        return [first, gru(x), rnn(x)]

    assert_compiles(layers, run, torch.randn(B, T, I, device=device), **TRACED)
    counter = CompileCounterWithBackend("eager")
    torch.compile(run, backend=counter)(torch.randn(B, T, I, device=device))
    ours = [str(n.target) for graph in counter.graphs for n in graph.graph.nodes]
    assert counter.frame_count == 2
    assert ours.count("fastrnn.forward.default") == 12


@pytest.mark.parametrize("device", DEVICES)
def test_compile_fullgraph(device: str) -> None:
    """All kinds of layers in one graph, by inductor, with lengths and reset."""
    layers = nn.ModuleList([Model(kind, device) for kind in KINDS])
    lengths = torch.tensor([6, 0, 3], device=device)
    reset = torch.rand(B, T, device=device) < 0.3

    def run(x: Tensor) -> list[Tensor]:
        plain = [layer(x) for layer in layers]
        return [*plain, *(layer(x, lengths, reset) for layer in layers)]

    assert_compiles(layers, run, torch.randn(B, T, I, device=device), fullgraph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, and CUDA graphs need one")
@pytest.mark.parametrize("kind", KINDS)
def test_compile_reduce_overhead(kind: str) -> None:
    """The first calls warm up and record a CUDA graph, which the later ones replay."""
    from torch._dynamo.utils import counters

    model = Model(kind, "cuda")
    x = torch.randn(B, T, I, device="cuda")
    assert_compiles(model, model, x, calls=5, mode="reduce-overhead", fullgraph=True)
    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_compile_with_lengths_and_reset(kind: str) -> None:
    model = Model(kind)
    reset = torch.rand(B, T) < 0.3
    lengths = torch.tensor([6, 0, 3])
    assert_compiles(model, model, torch.randn(B, T, I), lengths, reset, fullgraph=True, **TRACED)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_states_and_unbatched(kind: str) -> None:
    model = getattr(fastrnn, kind)(I, H, num_layers=2)
    for shape in ((T, B, I), (T, I)):
        x = torch.randn(shape)
        assert_compiles(model, lambda a: model(a, states=True), x, fullgraph=True, **TRACED)


def test_compile_projection() -> None:
    model = fastrnn.LSTM(I, H, proj_size=2)
    assert_compiles(model, model, torch.randn(T, B, I), fullgraph=True, **TRACED)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_compile_dynamic_does_not_trace_again(kind: str, device: str) -> None:
    model = Model(kind, device)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    loss_of(compiled(torch.randn(3, 6, I, device=device))).backward()
    once = counter.frame_count
    for steps, batch in ((9, 4), (4, 7)):
        x = torch.randn(batch, steps, I, device=device)
        got, expected = compiled(x), model(x)
        assert_same(got, expected)
        parameters = list(model.parameters())
        assert_same(
            torch.autograd.grad(loss_of(got), parameters),
            torch.autograd.grad(loss_of(expected), parameters),
        )
    assert counter.frame_count == once


@pytest.mark.parametrize("kind", KINDS)
def test_compile_packed_sequence(kind: str) -> None:
    model = getattr(fastrnn, kind)(I, H)
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([6, 4, 1]))
    assert_compiles(model, lambda p: model(p)[0].data, packed, **TRACED)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_without_gradients(kind: str) -> None:
    model = Model(kind).eval()
    torch._dynamo.reset()
    x = torch.randn(B, T, I)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same(torch.compile(model, fullgraph=True, **TRACED)(x), model(x))


@pytest.mark.parametrize("kind", KINDS)
def test_compile_a_loop_over_cells(kind: str) -> None:
    cell = getattr(fastrnn, f"{kind}Cell")(I, H)

    def run(x: Tensor) -> Any:
        state = None
        for step in x:
            state = cell(step, state)
        return state

    assert_compiles(cell, run, torch.randn(3, B, I), fullgraph=True, **TRACED)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_and_a_gradient_penalty(kind: str) -> None:
    """AOTAutograd has no second derivative of any layer; the "eager" backend and the model itself have."""
    layer = getattr(fastrnn, kind)(I, H)
    x = torch.randn(T, B, I)

    def penalty(model: Callable[..., Any]) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(model(leaf)[0].sum(), leaf, create_graph=True)
        return list(torch.autograd.grad(dx.pow(2).sum(), list(layer.parameters())[:2]))

    torch.testing.assert_close(penalty(torch.compile(layer, backend="eager")), penalty(layer))
    with pytest.raises(RuntimeError, match="aot_autograd does not currently support double backward"):
        penalty(torch.compile(layer, backend="aot_eager"))


def test_compile_leaves_torch_layers_as_they_were() -> None:
    """Our way into torch.compile does not change what it does with torch.nn's own layers."""
    theirs, ours = pair("GRU", I, H)
    torch._dynamo.reset()
    x = torch.randn(T, B, I)
    torch.compile(ours, fullgraph=True, **TRACED)(x)
    assert torch._dynamo.config.allow_rnn is False
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(theirs, fullgraph=True, **TRACED)(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_export_with_dynamic_batch_and_time(kind: str, strict: bool, device: str) -> None:
    model = Model(kind, device)
    shapes = {"x": {0: Dim("batch", min=2), 1: Dim("time", min=2)}}
    x = torch.randn(B, T, I, device=device)
    program = export(model, (x,), dynamic_shapes=shapes, strict=strict)
    x = torch.randn(5, 9, I, device=device)
    assert_same(program.module()(x), model(x))
    assert_same(program.run_decompositions().module()(x), model(x))
    targets = [str(n.target) for n in program.graph.nodes]
    assert targets.count("fastrnn.forward.default") == 4


@pytest.mark.parametrize("kind", KINDS)
def test_export_with_lengths_and_reset(kind: str) -> None:
    model = Model(kind).eval()
    args = (torch.randn(B, T, I), torch.tensor([6, 0, 3]), torch.rand(B, T) < 0.3)
    with torch.no_grad():
        program = export(model, args)
        lengths = torch.tensor([1, 5, 2])
        assert_same(program.module()(args[0], lengths, args[2]), model(args[0], lengths, args[2]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_exported_program_is_trainable(kind: str, device: str) -> None:
    model = Model(kind, device)
    x = torch.randn(B, T, I, device=device)
    exported = export(model, (x,)).module()
    loss_of(exported(x)).backward()
    loss_of(model(x)).backward()
    assert_same(gradients(exported), gradients(model))


def test_exported_program_saves_and_loads(tmp_path: Path) -> None:
    model = Model("LSTM").eval()
    x = torch.randn(B, T, I)
    torch.export.save(export(model, (x,)), tmp_path / "model.pt2")
    assert_same(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))


# What docs/compatibility.md asks of a process that runs a package: that it has fastrnn's operators.
LOADER = """
import sys, torch, fastrnn
package, data = sys.argv[1:]
saved = torch.load(data)
outputs = torch._inductor.aoti_load_package(package)(*saved["args"])
for output, expected in zip(outputs, saved["expected"], strict=True):
    torch.testing.assert_close(output, expected)
"""


@pytest.mark.parametrize("device", DEVICES)
def test_aot_inductor_package(device: str, tmp_path: Path) -> None:
    """Of all kinds of layers, for any batch and time, run here and in a process of its own."""
    layers = nn.ModuleList([getattr(fastrnn, kind)(I, H, device=device) for kind in KINDS])

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
            return [layer(x, lengths=lengths)[0] for layer in self.layers]

    chain = Chain().eval()
    args = (torch.randn(T, B, I, device=device), torch.tensor([6, 0, 3], device=device))
    batch = Dim("batch", min=2)
    shapes = {"x": {0: Dim("time", min=2), 1: batch}, "lengths": {0: batch}}
    with torch.no_grad():
        program = export(chain, args, dynamic_shapes=shapes)
        path = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(tmp_path / "model.pt2"),
            # The code around the operators, which is not what is checked, compiles in half the time.
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
        )
        assert_same(torch._inductor.aoti_load_package(path)(*args), chain(*args))
        args = (torch.randn(9, 4, I, device=device), torch.tensor([3, 9, 1, 5], device=device))
        torch.save({"args": args, "expected": chain(*args)}, tmp_path / "data.pt")
    subprocess.run([sys.executable, "-c", LOADER, path, tmp_path / "data.pt"], check=True)
