"""Every dtype of weights, input and state under autocast: the dtype, values and errors of torch.nn."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import support
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

T, B, I, H = 4, 3, 4, 6
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int64)
# Limits of torch.nn alone: no float16 in oneDNN on some processors, no mix of float16 and bfloat16.
LIMITS = re.compile("could not create a primitive descriptor|at::autocast::prioritize")


def outcome(module: Any, given: Any, hx: Any) -> list[Tensor] | tuple[type, str]:
    try:
        return support.tensors_of(module(given, hx))
    except Exception as error:
        return type(error), str(error)


def check(torchs: Any, mine: Any, x: Tensor, state: torch.dtype | None, packed: bool) -> None:
    is_cell = x.dim() == 2
    hx: Any = None
    if state is not None:
        hx = torch.randn(B, H) if is_cell else support.initial_state(torchs, B)
        if isinstance(torchs, torch.nn.LSTMCell):
            hx = hx, hx
        hx = hx.to(state) if isinstance(hx, Tensor) else tuple(h.to(state) for h in hx)
    given: Any = x
    if packed:  # outside autocast, which concatenates its parts
        with torch.autocast("cpu", enabled=False):
            given = pack_padded_sequence(x, torch.tensor([4, 2, 1]))
    expected, found = outcome(torchs, given, hx), outcome(mine, given, hx)
    what = f"weights {next(mine.parameters()).dtype}, input {x.dtype}, state {state}"
    if isinstance(expected, tuple) and LIMITS.search(expected[1]):
        return
    if isinstance(expected, tuple) or isinstance(found, tuple):
        assert found == expected, what
        return
    assert [t.dtype for t in found] == [t.dtype for t in expected], what
    for a, b in zip(found, expected, strict=True):
        tolerance = 1e-12 if a.dtype == torch.float64 else 3e-2
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}")


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weights", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("cell", "form"),
    [
        *((c, f) for c in support.LAYERS for f in ("padded", "packed", "bidirectional", "cell_module")),
        ("lstm", "projected"),
    ],
)
def test_as_torch_does(cell: str, form: str, weights: torch.dtype, autocast: torch.dtype) -> None:
    make = support.cell_twins if form == "cell_module" else support.twins
    torchs, mine = (m.to(weights) for m in make(cell, I, H, **support.FLAGS.get(form, {})))
    shape = (B, I) if form == "cell_module" else (T, B, I)
    for dtype, state in itertools.product(DTYPES, (None, *DTYPES)):
        x = torch.randn(shape).to(dtype)
        with torch.autocast("cpu", autocast):
            check(torchs, mine, x, state, form == "packed")


@pytest.mark.parametrize("cell", support.LAYERS)
def test_lengths_and_states_in_float64(cell: str) -> None:
    layer = support.ours(cell, I, H, dtype=torch.float64)
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([4, 1, 2])
    expected = support.tensors_of(layer(x, lengths=lengths, states=True))
    with torch.autocast("cpu", torch.bfloat16):
        found = support.tensors_of(layer(x, lengths=lengths, states=True))
        for wrong in (x.float(), x.long()):
            with pytest.raises(RuntimeError):
                layer(wrong, lengths=lengths, states=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_prepacked(kind: str) -> None:
    layer = fastrnn.prepack(getattr(fastrnn, kind)(I, H, dtype=torch.float64).eval())
    x = torch.randn(T, B, I, dtype=torch.float64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x)[0].dtype == torch.float64
        with pytest.raises(RuntimeError, match="do not fit"):
            layer(x.long())
