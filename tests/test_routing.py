"""What the kernels do not serve gives torch's answer by another path, and explain() says which and why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import fastrnn
from fastrnn import _build
from fastrnn.sequence import Sequence

T, B, I, H = 4, 3, 5, 6


def double_twins(cell: str, device: str, **flags: Any) -> tuple[Any, Any]:
    torchs, mine = support.twins(cell, I, H, **flags)
    return torchs.to(device).double(), mine.to(device).double()


def torchs_by_hand(layer: Any, x: Tensor) -> Tensor:
    """The output of torch's layer by operators that every transform knows."""
    with support.torch_by_operators():
        return layer(x)[0]


@pytest.mark.parametrize("cell", support.LAYERS)
def test_complex(cell: str, device: str) -> None:
    if cell == "rnn_relu":
        pytest.skip("there is no relu of complex numbers")
    if device == "cuda":
        pytest.skip("torch.nn has no complex layers on a GPU to compare with")
    torchs, mine = support.twins(cell, I, H, num_layers=2, bidirectional=True, dtype=torch.complex64)
    torchs, mine = torchs.to(device), mine.to(device)
    x = torch.randn(T, B, I, dtype=torch.complex64, device=device, requires_grad=True)
    a, b = mine(x), torchs(x)
    support.same(a, b)
    gradients = [
        torch.autograd.grad(r[0].abs().sum(), [x, *m.parameters()]) for r, m in ((a, mine), (b, torchs))
    ]
    torch.testing.assert_close(*gradients)
    assert fastrnn.explain(mine, x).path == "reference"


@pytest.mark.parametrize("cell", support.CELLS)
def test_complex_cells(cell: str, device: str) -> None:
    if cell == "rnn_relu":
        pytest.skip("there is no relu of complex numbers")
    if device == "cuda":
        pytest.skip("torch.nn has no complex cells on a GPU to compare with")
    torchs, mine = (m.to(device) for m in support.cell_twins(cell, I, H, dtype=torch.complex64))
    x = torch.randn(B, I, dtype=torch.complex64, device=device)
    support.same(mine(x), torchs(x))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_vmap(cell: str, device: str) -> None:
    _, mine = double_twins(cell, device, num_layers=2)
    x = torch.randn(7, T, B, I, dtype=torch.float64, device=device)
    y = vmap(lambda x: mine(x)[0])(x)
    torch.testing.assert_close(y, torch.stack([mine(each)[0] for each in x]))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_per_sample_gradients(cell: str, device: str) -> None:
    _, mine = double_twins(cell, device)
    x = torch.randn(B, T, I, dtype=torch.float64, device=device)
    weights = {n: p.detach() for n, p in mine.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(mine, weights, (x,))[0].square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for i in range(B):
        one = torch.autograd.grad(mine(x[i])[0].square().sum(), list(mine.parameters()))
        for (name, _), g in zip(mine.named_parameters(), one, strict=True):
            torch.testing.assert_close(found[name][i], g)


@pytest.mark.parametrize("cell", support.LAYERS)
def test_jacobians(cell: str, device: str) -> None:
    torchs, mine = double_twins(cell, device)
    x = torch.randn(2, 1, I, dtype=torch.float64, device=device)
    expected = torch.autograd.functional.jacobian(lambda x: torchs_by_hand(torchs, x), x)
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(lambda x: mine(x)[0])(x), expected)
    tangent = torch.randn_like(x)
    product = jvp(lambda x: mine(x)[0], (x,), (tangent,))[1]
    torch.testing.assert_close(product, (expected * tangent).flatten(3).sum(-1))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_forward_ad(cell: str, device: str) -> None:
    _, mine = double_twins(cell, device)
    x, tangent = torch.randn(2, T, B, I, dtype=torch.float64, device=device)
    expected = jvp(lambda x: mine(x)[0], (x,), (tangent,))[1]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        assert fastrnn.explain(mine, dual).path == "reference"
        y = forward_ad.unpack_dual(mine(dual)[0])
        torch.testing.assert_close(y.tangent, expected)


@pytest.mark.parametrize("cell", support.CELLS)
def test_transforms_of_cells(cell: str, device: str) -> None:
    _, mine = (m.to(device).double() for m in support.cell_twins(cell, I, H))
    x = torch.randn(7, B, I, dtype=torch.float64, device=device)
    y = vmap(lambda x: support.tensors_of(mine(x))[0])(x)
    torch.testing.assert_close(y, torch.stack([support.tensors_of(mine(each))[0] for each in x]))
    jacobians = [t(lambda x: support.tensors_of(mine(x))[0])(x[0]) for t in (jacrev, jacfwd)]
    torch.testing.assert_close(*jacobians)


@pytest.mark.parametrize("masks", ["lengths", "reset"])
def test_masks_under_transforms(masks: str, device: str) -> None:
    _, mine = double_twins("gru", device, bidirectional=True)
    given = {
        "lengths": {"lengths": torch.tensor([1, 4, 2], device=device)},
        "reset": {"reset": torch.rand(T, B, device=device) < 0.5},
    }[masks]
    x = torch.randn(2, T, B, I, dtype=torch.float64, device=device)
    y = vmap(lambda x: mine(x, **given)[0])(x)
    torch.testing.assert_close(y, torch.stack([mine(each, **given)[0] for each in x]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("cell", support.LAYERS)
def test_trace(cell: str, device: str) -> None:
    _, mine = (m.to(device).eval() for m in support.twins(cell, I, H))
    x = torch.randn(T, B, I, device=device)
    traced = torch.jit.trace(mine, x)
    support.same(traced(x), mine(x))
    other = torch.randn(T, B + 1, I, device=device)
    support.same(traced(other)[0], mine(other)[0])


def test_trace_warns_no_more_than_torch_nn_does() -> None:
    code = """
import torch
from torch.nn.utils.rnn import pack_sequence, PackedSequence
{imports}
x = torch.randn(5, 2, 3)
for name in ("LSTM", "GRU", "RNN"):
    for options in ({{}}, {{"num_layers": 2, "bidirectional": True, "batch_first": True}}):
        layer = getattr({library}, name)(3, 4, **options).requires_grad_(False)
        torch.jit.trace(layer, x, check_trace=False)
        torch.jit.trace(layer, x[:, 0], check_trace=False)
        packed = lambda data, sizes: layer(PackedSequence(data, sizes))[0].data
        torch.jit.trace(packed, tuple(pack_sequence([x[:, 0], x[:3, 1]])[:2]), check_trace=False)
    cell = getattr({library}, name + "Cell")(3, 4)
    torch.jit.trace(cell, x[0], check_trace=False)
"""
    theirs, ours = (
        python(code.format(imports=f"import {library}", library=library))
        for library in ("torch.nn", "fastrnn")
    )
    assert theirs.returncode == ours.returncode == 0, ours.stderr
    assert ours.stderr.count("TracerWarning") == theirs.stderr.count("TracerWarning") == 0


@pytest.mark.parametrize("cell", support.LAYERS)
def test_lengths_and_reset_by_the_reference(cell: str, device: str) -> None:
    """The path for devices without kernels gives what the kernels give."""
    from fastrnn import functional

    _, mine = double_twins(cell, device, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device)
    state = support.tensors_of(support.initial_state(mine, B, dtype=torch.float64, device=device))
    results = [
        functional.recurrent(
            mine.cell,
            x,
            state[0],
            state[1] if len(state) == 2 else None,
            mine._layer_weights(),
            directions=2,
            sequence=Sequence(
                lengths=torch.tensor([1, 4, 2], device=device),
                reset=torch.rand(T, B, generator=torch.Generator().manual_seed(0)).to(device) < 0.5,
            ),
            layer=layer,
        )
        for layer in (functional.fused_layer, functional.reference_layer)
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jacfwd", "reset_before"])
def test_padding_with_nan_in_it(transform: str, device: str) -> None:
    """What lies beyond a sequence's end makes no difference by the other paths either."""
    layer = (
        (fastrnn.GRUResetBefore if transform == "reset_before" else fastrnn.GRU)(I, H).to(device).double()
    )
    lengths = torch.tensor([1, T, 2], device=device)
    weights = dict(layer.named_parameters())

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,), {"lengths": lengths})[0].square().sum()

    calls = {
        "grad": grad(run),
        "vmap": vmap(grad(run), in_dims=(None, 0)),
        "jacfwd": jacfwd(run),
        "reset_before": grad(run),
    }
    x = torch.randn(T, B, I, dtype=torch.float64, device=device)
    beyond = (torch.arange(T, device=device).unsqueeze(1) >= lengths).unsqueeze(-1)
    results = []
    for fill in (0.0, torch.nan):
        filled = x.masked_fill(beyond, fill)
        results.append(
            calls[transform](weights, filled.expand(2, T, B, I) if transform == "vmap" else filled)
        )
    torch.testing.assert_close(*results)


# explain().


def explained(module: nn.Module, *args: Any, **kwargs: Any) -> str:
    return str(fastrnn.explain(module, *args, **kwargs))


def test_explain_fused() -> None:
    target = fastrnn.build_info()["cpu_target"]
    x = torch.zeros(T, B, I)
    assert explained(fastrnn.LSTM(I, H), x) == (
        f"fused on {target} in float32: kernels serve this device and dtype"
    )
    explanation = fastrnn.explain(fastrnn.GRUCell(I, H).double(), torch.zeros(B, I).double())
    assert (explanation.path, explanation.target, explanation.dtype) == ("fused", target, torch.float64)
    assert explained(fastrnn.GRU(I, H, device="meta"), x.to("meta")) == (
        "fused in float32: kernels serve this device and dtype"
    )


EXPLANATIONS: dict[str, tuple[Callable[[], str], str]] = {
    "complex": (
        lambda: explained(
            fastrnn.GRU(I, H, dtype=torch.complex64), torch.zeros(T, I, dtype=torch.complex64)
        ),
        "reference in complex64: there are no kernels for torch.complex64",
    ),
    "misfit": (
        lambda: explained(fastrnn.GRU(I, H), torch.zeros(T, B, I + 1)),
        "torch: the arguments do not fit this module; torch.nn says how",
    ),
    "misfit_cell": (
        lambda: explained(fastrnn.GRUCell(I, H), torch.zeros(B, I + 1)),
        "torch: the arguments do not fit this module; torch.nn says how",
    ),
    "misfit_type": (
        lambda: explained(fastrnn.GRU(I, H), [1, 2]),
        "torch: the arguments do not fit this module; torch.nn says how",
    ),
}


@pytest.mark.parametrize("case", EXPLANATIONS)
def test_explain(case: str) -> None:
    call, expected = EXPLANATIONS[case]
    assert call() == expected


def test_explain_transforms_and_autocast() -> None:
    layer, cell, x = fastrnn.LSTM(I, H), fastrnn.LSTMCell(I, H), torch.zeros(2, T, B, I)
    texts: list[str] = []

    def inside(x: Tensor) -> Tensor:
        texts.append(explained(layer, x))
        return x

    vmap(inside)(x)
    grad(lambda x: grad(lambda x: inside(x).sum())(x).sum())(x[0])
    with torch.autocast("cpu", torch.bfloat16):
        texts += [explained(layer, x[0]), explained(cell, x[0, 0]), explained(fastrnn.GRU(I, H), x[0])]
    target = fastrnn.build_info()["cpu_target"]
    assert texts == [
        f"fused on {target} in float32: kernels serve this device and dtype",
        "reference in float32: a torch.func transform is active that kernels have no rule for",
        f"fused on {target} in bfloat16: kernels serve this device and dtype",
        "torch: autocast is active, which torch.nn's cells follow",
        f"fused on {target} in float32: kernels serve this device and dtype",
    ]


def test_explain_computes_nothing() -> None:
    for layer in (fastrnn.GRU(I, H), nn.GRU(I, H)):
        layer.register_forward_hook(lambda *a: pytest.fail("explain called forward"))
    fastrnn.explain(nn.GRU(I, H), torch.zeros(T, B, I))
    fastrnn.explain(layer, torch.zeros(T, B, I))


# What is known about the build.


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code.split(" ", 1)] if code.startswith("-m") else [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_build_info() -> None:
    info = fastrnn.build_info()
    assert info["fastrnn"] == fastrnn.__version__
    assert info["torch"] == torch.__version__
    assert info["torch_built_against"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert info["cpu_targets"][0] == "portable"
    assert set(info["cpu_targets_usable"]) <= set(info["cpu_targets"])
    assert info["cuda"] == bool(info["cuda_archs"])
    assert info["threads"] == torch.get_num_threads()


def test_bug_report() -> None:
    printed = python("-m fastrnn")
    assert printed.returncode == 0, printed.stderr
    lines = dict(line.split(maxsplit=1) for line in printed.stdout.splitlines() if len(line.split()) > 1)
    assert lines["fastrnn"] == fastrnn.__version__
    assert lines["torch"] == torch.__version__
    assert lines["cpu_targets"].startswith("portable")
    assert set(fastrnn.build_info()) <= {line.split()[0] for line in printed.stdout.splitlines()}


def test_invalid_cpu_capability() -> None:
    call = "import torch, fastrnn; fastrnn.GRU(2, 3)(torch.zeros(1, 1, 2))"
    failed = python(call, FASTRNN_CPU_CAPABILITY="sse9")
    assert failed.returncode != 0
    last = failed.stderr.strip().splitlines()[-1]
    assert "FASTRNN_CPU_CAPABILITY=sse9 cannot be run here; this processor runs: portable" in last


def test_cpu_capability_is_obeyed() -> None:
    code = "import fastrnn; print(fastrnn.build_info()['cpu_target'])"
    assert python(code, FASTRNN_CPU_CAPABILITY="portable").stdout.strip() == "portable"


def test_a_torch_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ImportError, match=r"needs torch 2\.10 or later, got 2\.9\.1\+cpu; install a later"):
        _build.load()


def test_a_torch_that_is_newer_than_all_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "3.0.0")
    with pytest.warns(UserWarning, match=r"tested with torch 2\.10 to .*, got 3\.0\.0"):
        _build.load()


def test_a_checkout_without_a_compiled_part(tmp_path: Path) -> None:
    """As after `pip install .` there: the source folder is found before the installed package."""
    package = tmp_path / "fastrnn"
    shutil.copytree(Path(fastrnn.__file__).parent, package, ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / "setup.py").touch()
    failed = subprocess.run(
        [sys.executable, "-m", "fastrnn"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    last = failed.stderr.strip().splitlines()[-1]
    assert "is a checkout without a compiled part" in last
    assert "run Python in another directory, or build here with" in last


def test_compiled_part_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_build, "LIBRARY", tmp_path / "_C.so")
    with pytest.raises(
        ImportError, match=r"compiled part does not load with torch .*; build it again with"
    ):
        _build.load()
