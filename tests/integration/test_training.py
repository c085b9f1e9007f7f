"""What surrounds a layer in training: autocast, checkpointing, optimizers, copies, processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import fastrnn

from .common import DEVICES, KINDS, assert_same, gradients, loss_of, pair, tensors

T, B, I, H = 6, 3, 4, 5

pytestmark = pytest.mark.parametrize("kind", KINDS)


def data(device: str = "cpu") -> Tensor:
    return torch.randn(T, B, I, device=device)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
AUTOCAST = [
    ("cpu", torch.bfloat16),
    *(pytest.param("cuda", dtype, marks=NO_GPU) for dtype in (torch.bfloat16, torch.float16)),
]


@pytest.mark.parametrize(("device", "dtype"), AUTOCAST)
def test_autocast_as_torch_does(kind: str, device: str, dtype: torch.dtype) -> None:
    """The same dtypes, and by the rule of exactness: of float64's results and gradients no more than twice
    torch.nn's error, in the mean over some draws."""
    errors = []
    for _ in range(4):
        theirs, ours = pair(kind, I, H, num_layers=2, bidirectional=True, device=device)
        exact = copy.deepcopy(theirs).double()
        x = data(device)
        expected = tensors(exact(x.double()))
        loss_of(expected).backward()
        expected += gradients(exact)
        results = []
        for module in (theirs, ours):
            with torch.autocast(device, dtype):
                out = tensors(module(x))
            loss_of([t.float() for t in out]).backward()
            assert all(g.dtype == torch.float32 for g in gradients(module))
            results.append([*out, *gradients(module)])
        assert [t.dtype for t in results[0]] == [t.dtype for t in results[1]]
        scales = [e.abs().max() for e in expected]
        errors.append(
            [
                torch.stack([(t - e).abs().max() / s for t, e, s in zip(r, expected, scales, strict=True)])
                for r in results
            ]
        )
    of_torch, of_ours = (torch.stack(e).mean(0) for e in zip(*errors, strict=True))
    few_ulps = 4 * torch.finfo(dtype).eps
    assert (of_ours <= 2 * of_torch + few_ulps).all(), (of_ours, of_torch)


@pytest.mark.parametrize("device", DEVICES)
def test_grad_scaler(kind: str, device: str) -> None:
    theirs, ours = pair(kind, I, H, device=device)
    x = data(device)
    for module in (theirs, ours):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=256.0)
        scaler.scale(loss_of(module(x))).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert_same(list(ours.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("device", DEVICES)
def test_grad_scaler_skips_a_step_that_overflows(kind: str, device: str) -> None:
    layer = getattr(fastrnn, kind)(I, H, device=device)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**120)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(1e10 * loss_of(layer(data(device)))).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**118
    assert all(torch.equal(a, p) for a, p in zip(before, layer.parameters(), strict=True))


def run_plain(module: nn.Module, x: Tensor) -> Any:
    return module(x)


def run_checkpointed(module: nn.Module, x: Tensor) -> Any:
    return checkpoint(module, x, use_reentrant=False)


def run_reentrant(module: nn.Module, x: Tensor) -> Any:
    # It knows tensors in a flat tuple only.
    return checkpoint(lambda a: tuple(tensors(module(a))), x, use_reentrant=True)


def run_saved_on_cpu(module: nn.Module, x: Tensor) -> Any:
    with torch.autograd.graph.save_on_cpu():
        return module(x)


def run_with_hooks(module: nn.Module, x: Tensor) -> Any:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        return module(x)


def run_with_anomalies_detected(module: nn.Module, x: Tensor) -> Any:
    with torch.autograd.detect_anomaly(check_nan=True):
        return module(x)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "run", [run_checkpointed, run_reentrant, run_saved_on_cpu, run_with_hooks, run_with_anomalies_detected]
)
def test_what_wraps_forward_changes_nothing(kind: str, device: str, run: Callable[..., Any]) -> None:
    layer = getattr(fastrnn, kind)(I, H, num_layers=2, device=device)
    x = data(device).requires_grad_()
    results = []
    for f in (run_plain, run):
        layer.zero_grad()
        x.grad = None
        out = f(layer, x)
        loss_of(out).backward()
        results.append((out, x.grad, gradients(layer)))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("device", DEVICES)
def test_saved_tensors_go_through_hooks(kind: str, device: str) -> None:
    """All of them: kept as numpy arrays, which nothing but the hooks makes tensors again."""
    layer = getattr(fastrnn, kind)(I, H, num_layers=2, device=device)
    x = data(device).requires_grad_()
    (expected,) = torch.autograd.grad(loss_of(layer(x)), x)
    kept: list[int] = []

    def pack(t: Tensor) -> Any:
        kept.append(t.numel())
        return t.detach().cpu().numpy().copy()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: torch.from_numpy(a).to(device)):
        out = layer(x)
    # Of each layer at least its weights, its input and its output.
    assert sum(kept) >= sum(p.numel() for p in layer.parameters()) + x.numel() + 3 * T * B * H
    assert_same(torch.autograd.grad(loss_of(out), x), expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("device", DEVICES)
def test_anomaly_mode_names_what_made_a_nan(kind: str, device: str) -> None:
    layer = getattr(fastrnn, kind)(I, H, device=device)
    with torch.no_grad():
        layer.weight_hh_l0[0, 0] = torch.nan
    x = data(device).requires_grad_()
    with torch.autograd.detect_anomaly():
        loss = layer(x)[0].nan_to_num().sum()
        with (
            pytest.warns(UserWarning, match=r"layer\(x\)"),
            pytest.raises(RuntimeError, match=r"LayerBackward.* returned nan values"),
        ):
            loss.backward()


@pytest.mark.parametrize("device", DEVICES)
def test_no_grad_and_inference_mode(kind: str, device: str) -> None:
    layer = getattr(fastrnn, kind)(I, H, num_layers=2, device=device)
    x = data(device)
    expected = layer(x)
    with torch.no_grad():
        got = layer(x)
    assert_same(got, expected)
    assert not any(t.requires_grad for t in tensors(got))
    with torch.inference_mode():
        got = layer(x)
        assert all(t.is_inference() for t in tensors(got))
        assert_same(tensors(layer(x.clone(), got[1])[0]), tensors(layer(x, got[1])[0]))
    assert_same([t.clone() for t in tensors(got)], expected)


OPTIMIZERS = {
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=2),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_clipping_and_ema_through_data(kind: str, name: str, device: str) -> None:
    theirs, ours = pair(kind, I, H, device=device, dtype=torch.float64)
    batches = torch.randn(3, T, B, I, device=device, dtype=torch.float64)
    averages = []
    for module in (theirs, ours):
        average = copy.deepcopy(module)
        optimizer = OPTIMIZERS[name](module.parameters())
        for x in batches:

            def closure(module: nn.Module = module, x: Tensor = x) -> Tensor:
                module.zero_grad()
                loss = module(x)[0].square().mean()
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), 0.1)
                return loss

            optimizer.step(closure)
            for a, p in zip(average.parameters(), module.parameters(), strict=True):
                a.data.mul_(0.9).add_(p.data, alpha=0.1)
            average(x)
        averages.append(average(batches[0]))
    assert_same(list(ours.parameters()), list(theirs.parameters()), scale=1000)
    assert_same(averages[1], averages[0], scale=1000)


@pytest.mark.parametrize("device", DEVICES)
def test_writes_through_data_are_seen(kind: str, device: str) -> None:
    theirs, ours = pair(kind, I, H, device=device)
    x = data(device)
    ours(x)
    for module in (theirs, ours):
        for i, p in enumerate(module.parameters()):
            p.data = torch.full_like(p, 0.01 * (i + 1)) if i % 2 else p.data
            p.data.mul_(0.5)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("device", DEVICES)
def test_deepcopy_in_the_middle_of_training(kind: str, device: str) -> None:
    layer = getattr(fastrnn, kind)(I, H, device=device)
    optimizer = torch.optim.Adam(layer.parameters())
    loss_of(layer(data(device))).backward()
    optimizer.step()
    twin = copy.deepcopy(layer)
    other = torch.optim.Adam(twin.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    x = data(device)
    for module, opt in ((layer, optimizer), (twin, other)):
        opt.zero_grad()
        loss_of(module(x)).backward()
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), twin.parameters(), strict=True))
    assert not any(a is b for a, b in zip(layer.parameters(), twin.parameters(), strict=True))


def train_shared(layer: nn.Module, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        layer(data())[0].square().mean().backward()
        optimizer.step()


def test_hogwild_on_shared_memory(kind: str) -> None:
    """Two processes train one set of weights, which this one sees change."""
    layer = getattr(fastrnn, kind)(I, H)
    layer.share_memory()
    before = [p.detach().clone() for p in layer.parameters()]
    x = data()
    loss = layer(x)[0].square().mean()
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=train_shared, args=(layer, seed)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert not any(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert layer(x)[0].square().mean() < loss


def send_output(layer: nn.Module, x: Tensor, queue: Any) -> None:
    queue.put(layer(x)[0].detach().tolist())


def test_multiprocessing_by_spawn(kind: str) -> None:
    """The module is pickled into a fresh process."""
    layer, x = getattr(fastrnn, kind)(I, H), data()
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=send_output, args=(layer, x, queue))
    process.start()
    output = torch.tensor(queue.get())
    process.join(60)
    assert process.exitcode == 0
    assert_same(output, layer(x)[0])


class Encoded(Dataset[Tensor]):
    """A data set whose samples a recurrent layer makes, in the worker that loads them."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            return self.layer(torch.full((T, I), float(i)))[0]


def test_data_loader_workers(kind: str) -> None:
    layer = getattr(fastrnn, kind)(I, H)
    layer(data())  # threads of this process, which a fork does not inherit
    samples = Encoded(layer)
    (batch,) = DataLoader(samples, batch_size=4, num_workers=2)
    assert_same(batch, torch.stack([samples[i] for i in range(4)]))
