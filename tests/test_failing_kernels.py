"""An error of the kernels comes out of every module; only arguments that do not fit go to torch.nn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import ops

T, B, I, H = 3, 2, 4, 6
LAYERS, CELLS = ("LSTM", "GRU", "RNN"), ("LSTMCell", "GRUCell", "RNNCell")


def argument(name: str, unbatched: bool) -> Tensor:
    if name in CELLS:
        return torch.randn(I) if unbatched else torch.randn(B, I)
    return torch.randn(T, I) if unbatched else torch.randn(T, B, I)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, NotImplementedError], ids=str)
@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("kind", ["no_grad", "grad", "vmap", "prepacked"])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_comes_out(
    name: str, kind: str, unbatched: bool, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error("the launch failed")

    module = getattr(fastrnn, name)(I, H)
    if kind == "prepacked":
        module = fastrnn.prepack(module.eval())
    monkeypatch.setattr(ops, "forward", fails)
    monkeypatch.setattr(ops, "forward_prepacked", fails)
    x = argument(name, unbatched)
    call = torch.vmap(module) if kind == "vmap" else module
    with torch.set_grad_enabled(kind == "grad"), pytest.raises(error, match="the launch failed"):
        call(x.expand(2, *x.shape) if kind == "vmap" else x)


STATES = {
    "unbatched_input": ((I,), (H, H)),  # as many rows as hidden units
    "unbatched_input_one_row": ((I,), (1, H)),
    "unbatched_state": ((B, I), (H,)),
    "unbatched_state_one_row": ((1, I), (H,)),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shapes", STATES)
@pytest.mark.parametrize("name", CELLS)
def test_ranks_of_a_cell(name: str, shapes: str, autocast: bool, grad: bool) -> None:
    """torch.nn broadcasts such a state, or reads beyond its memory."""
    cell = getattr(fastrnn, name)(I, H)
    x, h = (torch.randn(shape) for shape in STATES[shapes])
    expected = (
        rf"got a {h.dim()}-D hx for {x.dim()}-D input, expected {x.dim()}-D; pass input \[batch, {I}\]"
    )
    with torch.autocast("cpu", enabled=autocast), torch.set_grad_enabled(grad):
        with pytest.raises(RuntimeError, match=expected):
            cell(x, (h, h) if name == "LSTMCell" else h)
        if name == "LSTMCell":
            right = torch.randn(*x.shape[:-1], H)
            for hx in ((right, h), (h, right), torch.stack((h, h))):
                with pytest.raises(RuntimeError, match=expected):
                    cell(x, hx)
