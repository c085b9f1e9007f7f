"""torch.utils.flop_counter counts what it counts for torch.nn's layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn

from .common import KINDS, library, pair

T, B, I, H = 5, 3, 4, 6


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [t for part in result for t in tensors(part)]


def count(module: nn.Module, *args: Any, backward: bool = False) -> int:
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        result = module(*args)
        if backward:
            sum(t.sum() for t in tensors(result) if t.requires_grad).backward()
    return counter.get_total_flops()


DEEP = {"num_layers": 2, "bidirectional": True}
CASES = [
    *((kind, {}, form) for kind in KINDS for form in ("batched", "unbatched", "packed")),
    *(
        (kind, {"num_layers": 2, "bidirectional": True}, form)
        for kind in KINDS
        for form in ("batched", "packed")
    ),
    *((kind, {"bias": False, "batch_first": True}, "batched") for kind in KINDS),
    ("RNN", {"nonlinearity": "relu"}, "batched"),
    *(("LSTM", {"proj_size": 2, "bidirectional": True}, form) for form in ("batched", "packed")),
    *((f"{kind}Cell", {}, form) for kind in KINDS for form in ("batched", "unbatched")),
]


def example(kind: str, form: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    x = torch.randn(*(() if kind.endswith("Cell") else (T,)), B, I, dtype=dtype, device=device)
    if form == "unbatched":
        return x.select(-2, 0)
    return pack_padded_sequence(x, torch.tensor([5, 3, 2])) if form == "packed" else x


# In float64 torch.nn has no oneDNN layer, whose operations the counter does not see.
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize(("kind", "flags", "form"), CASES, ids=str)
def test_same_count_as_torch_nn(
    kind: str, flags: dict[str, Any], form: str, needs_x: bool, frozen: bool
) -> None:
    counts = []
    for module in pair(kind, I, H, dtype=torch.float64, **flags):
        for name, p in module.named_parameters():
            p.requires_grad_(not (frozen and "weight_hh" in name))
        x = example(kind, form, torch.float64)
        tensors(x)[0].requires_grad_(needs_x and form != "packed")
        counts.append((count(module, x), count(module, x, backward=True)))
    assert counts[0] == counts[1]
    assert counts[0][1] > counts[0][0] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_count_in_every_dtype_and_without_memory(kind: str, device: str, dtype: torch.dtype) -> None:
    module = getattr(fastrnn, kind)(I, H, dtype=dtype, device=device)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    assert count(module, example(kind, "batched", dtype, device)) == 2 * T * B * gates * H * (I + H)


@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}Cell" for kind in KINDS)])
def test_a_given_state_that_needs_gradients(kind: str) -> None:
    counts = []
    for module in pair(kind, I, H, dtype=torch.float64):
        x = example(kind, "batched", torch.float64)
        layers = () if kind.endswith("Cell") else (1,)
        h = torch.zeros(*layers, B, H, dtype=torch.float64, requires_grad=True)
        hx = (h, h * 1) if kind.startswith("LSTM") else h
        counts.append(count(module, x, hx, backward=True))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        *((kind, {}) for kind in KINDS),
        ("LSTM", {"proj_size": 2}),
        ("GRU", {"bias": False}),
        ("GRUCell", {}),
    ],
    ids=str,
)
def test_prepacked(kind: str, flags: dict[str, Any], weights: str | None) -> None:
    module = getattr(fastrnn, kind)(I, H, **flags).eval()
    served = fastrnn.prepack(module, weights)
    x = example(kind, "batched", torch.float32)
    assert count(served, x) == count(module, x) > 0


def test_gates_that_are_computed_again_count_again() -> None:
    full = fastrnn.LSTM(I, H)
    lean = fastrnn.LSTM(I, H, memory="lean")
    x = example("LSTM", "batched", torch.float32)
    products = count(full, x)
    difference = count(lean, x, backward=True) - count(full, x, backward=True)
    assert difference == products


def test_reset_before_counts_its_operators() -> None:
    layer = fastrnn.GRUResetBefore(I, H)
    x = example("GRU", "batched", torch.float32)
    assert count(layer, x) == count(fastrnn.GRU(I, H), x)


def test_counts_are_those_of_the_module() -> None:
    model = nn.Sequential(nn.Linear(I, I), fastrnn.GRU(I, H))
    x = example("GRU", "batched", torch.float32)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert set(counter.get_flop_counts()["Sequential.1"]) == {torch.ops.fastrnn.forward}


@pytest.mark.parametrize("kind", [*KINDS, "GRUCell"])
def test_counters_that_look_for_exact_classes_take_a_restored_copy(kind: str) -> None:
    thop = library("thop")
    theirs, ours = (nn.Sequential(module) for module in pair(kind, I, H))
    x = example(kind, "batched", torch.float32)
    counts = [
        thop.profile(model, (x,), verbose=False) for model in (theirs, fastrnn.restore(copy.deepcopy(ours)))
    ]
    assert counts[0] == counts[1]
    assert counts[0][1] > 0
