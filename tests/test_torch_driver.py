"""torch's own kernels as a driver: torch.nn's results, and all that fastrnn's layers add to them."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import drivers, routing, torch_driver

T, B, I, H = 5, 3, 4, 6


@contextmanager
def by_torch() -> Iterator[list[Any]]:
    """The driver is asked for, and must run."""
    ran: list[Any] = []
    recurrent = torch_driver.recurrent

    def counted(*args: Any, **options: Any) -> Any:
        ran.append(args)
        return recurrent(*args, **options)

    torch_driver.recurrent = counted
    try:
        with drivers.forced("torch"):
            yield ran
    finally:
        torch_driver.recurrent = recurrent
    assert ran, "the driver that was asked for did not run"


def gradients(outputs: Any, inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    loss = sum(((i + 1) * t).square().sum() for i, t in enumerate(support.tensors_of(outputs)))
    # What packed the input may be common to several graphs.
    return torch.autograd.grad(loss, inputs, allow_unused=True, **{"retain_graph": True, **options})


def case(cell: str, flag: str, form: str, dtype: torch.dtype) -> tuple[Any, Any, Any, Any, list[Tensor]]:
    """Twins, an input and a state for them, and the leaves of these."""
    theirs, ours = (m.to(dtype) for m in support.twins(cell, I, H, **support.FLAGS[flag]))
    x = torch.randn(T, I) if form == "unbatched" else torch.randn(T, B, I)
    if theirs.batch_first and form != "unbatched":
        x = x.transpose(0, 1)
    x = x.to(dtype).requires_grad_()
    hx = support.initial_state(theirs, None if form == "unbatched" else B, dtype=dtype, requires_grad=True)
    given: Any = x
    if form == "packed":
        lengths = torch.tensor([3, 5, 1])
        given = pack_padded_sequence(x, lengths, theirs.batch_first, enforce_sorted=False)
    return theirs, ours, given, hx, [x, *support.tensors_of(hx)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["padded", "packed", "unbatched"])
@pytest.mark.parametrize(("cell", "flag"), support.layer_cases())
def test_torchs_results(cell: str, flag: str, form: str, training: bool) -> None:
    theirs, ours, x, hx, leaves = case(cell, flag, form, torch.float32)
    theirs.train(training)
    ours.train(training)
    found = []
    with by_torch():
        for layer in (theirs, ours):
            result = layer(x, hx)
            found.append((result, gradients(result, [*leaves, *layer.parameters()])))
            with torch.no_grad():
                found[-1] += (layer(x, hx),)
        assert fastrnn.explain(ours, x, hx).driver == "torch"
    (a, da, na), (b, db, nb) = found
    support.same(a, b, rtol=0, atol=0)
    support.same(na, nb, rtol=0, atol=0)
    torch.testing.assert_close(da, db, rtol=0, atol=0)


@pytest.mark.parametrize("cell", support.LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_dropout_draws_torchs_numbers(cell: str, training: bool) -> None:
    theirs, ours = support.twins(cell, I, H, num_layers=3, bidirectional=True, dropout=0.5)
    x = torch.randn(T, B, I, requires_grad=True)
    found = []
    with by_torch():
        for layer in (theirs.train(training), ours.train(training)):
            torch.manual_seed(7)
            result = layer(x)
            found.append((*support.tensors_of(result), *gradients(result, [x]), torch.rand(1)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_second_derivatives(cell: str, form: str, dropout: float) -> None:
    flag = "projected" if cell == "lstm" else "deep_bidirectional"
    _, ours, x, hx, leaves = case(cell, flag, form, torch.float64)
    ours.num_layers == 1 or setattr(ours, "dropout", dropout)
    inputs = [*leaves, *ours.parameters()]
    found = []
    for driver in ("torch", "fused"):
        with drivers.forced(driver):
            torch.manual_seed(3)
            first = gradients(ours(x, hx), inputs, create_graph=True)
        scalar = sum(g.sin().sum() for g in first)
        found.append((first, torch.autograd.grad(scalar, inputs, retain_graph=True)))
    torch.testing.assert_close(*found)


def test_gradgradcheck() -> None:
    layer = fastrnn.GRU(2, 3, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    with by_torch():
        inputs = (x, *layer.parameters())
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs)


def test_batched_gradients() -> None:
    _, ours, x, hx, leaves = case("lstm", "two_layers", "padded", torch.float64)
    with by_torch():
        y = ours(x, hx)[0]
        grads = torch.randn(7, *y.shape, dtype=y.dtype)
        batched = torch.autograd.grad(y, leaves, grads, is_grads_batched=True, retain_graph=True)
        for i, g in enumerate(grads):
            one = torch.autograd.grad(y, leaves, g, retain_graph=True)
            torch.testing.assert_close([b[i] for b in batched], list(one))


def test_retain_graph_and_a_second_backward_without() -> None:
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I, requires_grad=True)
    with by_torch():
        loss = layer(x)[0].square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x), first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, x)


def test_memory_is_given_back_when_backward_has_run() -> None:
    """While the loss, and with it the graph, is still there."""
    layer = fastrnn.LSTM(I, H)
    kept: list[Any] = []

    def keep(t: Tensor) -> Tensor:
        alias = t.detach()
        kept.append(weakref.ref(alias))
        return alias

    with by_torch(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = layer(torch.randn(T, B, I))[0].sum()
    assert kept
    assert all(alias() is not None for alias in kept)
    loss.backward()
    gc.collect()
    assert not [alias for alias in kept if alias() is not None]


def test_changes_in_place() -> None:
    """As torch.nn: what torch has saved must not change, the rest may."""
    for library in (nn, fastrnn):
        layer, x = library.GRU(I, H), torch.randn(T, B, I, requires_grad=True)
        with drivers.forced("torch"):
            y = layer(x.clone())[0]
            y.mul_(2)
            y.sum().backward()
            given = x.clone()
            y = layer(given)[0]
            given.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_weights_are_looked_up_and_handed_over_uncopied() -> None:
    layer, x = fastrnn.LSTM(I, H, num_layers=2), torch.randn(T, B, I)
    given: list[list[Tensor]] = []
    strided = torch.zeros(B, 2, H).transpose(0, 1)
    lstm = torch_driver._KERNELS["lstm"]

    def spy(x: Tensor, hx: Any, weights: list[Tensor], *options: Any) -> Any:
        given.append(weights)
        assert hx[0].is_contiguous()  # cuDNN takes no other state
        return lstm(x, hx, weights, *options)

    torch_driver._KERNELS["lstm"] = spy
    try:
        with by_torch(), warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(x, (strided, strided))
            layer.weight_ih_l0 = nn.Parameter(torch.zeros(4 * H, I))
            replaced = layer(x)[0]
    finally:
        torch_driver._KERNELS["lstm"] = lstm
    assert [w.data_ptr() for w in given[1]] == [w.data_ptr() for w in layer.parameters()]
    assert given[0][0].data_ptr() != given[1][0].data_ptr()
    support.same(replaced, copy.deepcopy(layer)(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_autocast(cell: str, dtype: torch.dtype) -> None:
    """torch.nn's results, bit for bit; with its derivatives, and second ones."""
    theirs, ours = support.twins(cell, I, H, num_layers=2)
    x = torch.randn(T, B, I, requires_grad=True)
    with torch.autocast("cpu", dtype), drivers.forced("torch"):
        if cell == "lstm" and dtype is torch.float16:
            assert "oneDNN's LSTM takes no float16" in fastrnn.explain(ours, x).reason
            return
        a, b = theirs(x), ours(x)
    support.same(a, b, rtol=0, atol=0)
    da, db = gradients(a, [x]), gradients(b, [x])
    torch.testing.assert_close(da, db, rtol=0, atol=0)
    (derivable,) = gradients(b, [x], create_graph=True)
    torch.testing.assert_close(derivable, db[0], rtol=0.1, atol=0.1)
    assert torch.autograd.grad(derivable.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("flags", [{}, {"num_layers": 2, "dropout": 0.5, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_compile(cell: str, flags: dict[str, Any], dynamic: bool | None) -> None:
    torch._dynamo.reset()
    layer, x = support.ours(cell, I, H, **flags), torch.randn(T, B, I, requires_grad=True)
    hx = support.initial_state(layer, B)
    found = []
    with by_torch():
        for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)):
            torch.manual_seed(5)
            result = run(x, hx)
            found.append(support.tensors_of(result))
            found[-1] += gradients(result, [x, *layer.parameters()], retain_graph=False)
    torch.testing.assert_close(*found)


def test_compile_under_autocast() -> None:
    torch._dynamo.reset()
    for layer in (fastrnn.LSTM(I, H), fastrnn.GRU(I, H)):
        x = torch.randn(T, B, I)
        with by_torch(), torch.autocast("cpu", torch.bfloat16):
            expected = layer(x)
            found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        support.same(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_operators(cell: str, packed: bool) -> None:
    layer = support.ours(cell, I, H, num_layers=2)
    x = torch.randn(6, I, requires_grad=True) if packed else torch.randn(T, B, I, requires_grad=True)
    hx = support.tensors_of(support.initial_state(layer, B, requires_grad=True))
    batch_sizes = torch.tensor([3, 2, 1]) if packed else None
    c0 = hx[1] if cell == "lstm" else None
    args = (cell, x, hx[0], c0, list(layer.parameters()), batch_sizes, 2, 1, True)
    torch.library.opcheck(torch.ops.fastrnn.torch_forward.default, args)


def test_what_torch_cannot_be_given_runs_here() -> None:
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    lean = fastrnn.LSTM(I, H, memory="lean")
    with drivers.forced("torch"):
        explained = [
            fastrnn.explain(layer, x, lengths=[1, 2, 3]),
            fastrnn.explain(layer, x, reset=torch.zeros(T, B, dtype=torch.bool)),
            fastrnn.explain(layer, x, states=True),
            fastrnn.explain(lean, x),
        ]
        assert fastrnn.explain(fastrnn.prepack(layer.eval()), x).path == "fused"
        support.same(torch.vmap(lambda x: layer(x)[0])(x[None])[0], layer(x)[0])
        program = torch.export.export(layer, (x,))
    for explanation in explained:
        assert explanation.path == "fused"
        assert "FASTRNN_DRIVER asks for torch, but torch.nn has no such call" in explanation.reason
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert torch.ops.fastrnn.forward.default in called


def test_weights_of_the_wrong_shape() -> None:
    layer = fastrnn.LSTM(I, H)
    layer.weight_hh_l0 = nn.Parameter(torch.zeros(3, 3))
    with drivers.forced("torch"), pytest.raises(ValueError, match=r"w_hh must have the shape \[24, 6\]"):
        layer(torch.zeros(T, B, I))


def test_a_driver_that_does_not_exist() -> None:
    named = "FASTRNN_DRIVER=warp names no driver; there are: torch, fused"
    with pytest.raises(ValueError, match=named), drivers.forced("warp"):
        pass


@pytest.mark.parametrize(
    ("driver", "cuda_driver", "asked"),
    [("torch", "block", "torch"), ("fused", "block", "fused"), ("", "block", "fused"), ("", "", "None")],
)
def test_the_settings(driver: str, cuda_driver: str, asked: str) -> None:
    """A name that only FASTRNN_CUDA_DRIVER takes is an error in FASTRNN_DRIVER, which would not use it."""
    code = "from fastrnn import drivers; print(drivers._asked)"
    settings = {"FASTRNN_DRIVER": driver, "FASTRNN_CUDA_DRIVER": cuda_driver, "FASTRNN_TUNED": "0"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **settings, **more}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert run().stdout.strip() == asked
    assert "FASTRNN_DRIVER=step names no driver" in run(FASTRNN_DRIVER="step").stderr


@pytest.mark.parametrize("kernels", [True, False])
def test_the_default_on_a_gpu(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake tensors: which driver is chosen, and the shapes it gives."""
    monkeypatch.setattr(routing, "KERNEL_DEVICES", {"cpu", "meta", *(["cuda"] if kernels else [])})
    monkeypatch.setattr(fastrnn.LSTM, "reset_parameters", lambda self: None)
    with FakeTensorMode(), torch.no_grad():
        layer = fastrnn.LSTM(I, H, device="cuda")
        x = torch.empty(T, B, I, device="cuda")
        explained = fastrnn.explain(layer, x)
        assert (explained.path, explained.driver) == ("torch", "torch")
        assert "on a GPU, torch's kernels run unless another driver was faster" in explained.reason
        assert layer(x)[0].shape == (T, B, H)
        long = torch.empty(65536, 1, I, device="cuda")
        assert layer._plan(long, None, None, None, False)[1].driver is None
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        assert layer._plan(x, None, None, None, False)[1].driver is None
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        assert layer._plan(x, None, None, None, False)[1].driver == "torch"
