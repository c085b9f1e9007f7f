"""Gradients that are formed chunk by chunk, and single steps that work where their tensors lie."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence


def compare(cell: str, flags: dict[str, Any], dtype: torch.dtype, run: Any, *sizes: int) -> None:
    """The rule of exactness for what run(layer, dtype) returns, of a layer of these sizes."""
    ulps = 4 if dtype == torch.float32 else 400  # torch's own error in float64 cannot be seen

    def draw(seed: int) -> list[support.Error]:
        torch.manual_seed(seed)
        torchs, mine = support.twins(cell, *sizes, dtype=dtype, **flags)
        results = []
        for layer, of in ((support.in_float64(torchs), torch.float64), (torchs, dtype), (mine, dtype)):
            torch.manual_seed(seed)
            results.append(run(layer, of))
        names = (f"result {i}" for i in range(len(results[0])))
        return support.errors(names, *results, dtype, ulps)

    support.check_rule(f"{cell} {flags} {sizes}", dtype, draw)


def draw_like(*sizes: int, dtype: torch.dtype) -> Tensor:
    """Random float32 numbers, the same in every dtype."""
    return torch.randn(*sizes).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_sequences_that_end_long_before_the_last(cell: str, dtype: torch.dtype) -> None:
    """A slice of a packed batch none of whose sequences lasts to the steps that backward begins with."""
    lengths = torch.tensor([600] * 8 + [30] * 8)

    def run(layer: Any, dtype: torch.dtype) -> list[Tensor]:
        x = draw_like(600, 16, 8, dtype=dtype).requires_grad_()
        y = layer(pack_padded_sequence(x, lengths))[0].data
        dy = draw_like(*y.shape, dtype=dtype)
        return list(torch.autograd.grad(y, [x, *layer.parameters()], dy))

    with support.threads(2):
        compare(cell, {"bidirectional": True}, dtype, run, 8, 16)


@pytest.mark.parametrize("size", [(1, 20000, 8, 8), (2, 30000, 4, 4)], ids=str)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_many_sequences(cell: str, size: tuple[int, int, int, int]) -> None:
    """Sums over many rows, whose terms have one sign, are as exact as torch's."""
    T, B, I, H = size

    def run(layer: Any, dtype: torch.dtype) -> list[Tensor]:
        y = layer(draw_like(T, B, I, dtype=dtype).abs())[0]
        return list(torch.autograd.grad(y.sum(), list(layer.parameters())))

    compare(cell, {}, torch.float32, run, I, H)


# T * B around the fewest rows that chunks are made of, and around one chunk and two of 480 rows.
@pytest.mark.parametrize("rows", [63, 64, 65, 479, 480, 481, 960, 961])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_rows_about_a_chunk(cell: str, rows: int) -> None:
    """Whole chunks, and rests of all sizes, of steps of one row or more; of columns narrow and wide."""
    batches = [b for b in (1, 3, 13, 31) if rows % b == 0]

    def run(layer: Any, dtype: torch.dtype) -> list[Tensor]:
        results = []
        for B in batches:
            x = draw_like(rows // B, B, layer.input_size, dtype=dtype).requires_grad_()
            y = layer(x)[0]
            dy = draw_like(*y.shape, dtype=dtype)
            results += [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]
        return results

    for count, sizes in ((1, (9, 33)), (3, (70, 17))):
        with support.threads(count):
            compare(cell, {"bidirectional": True}, torch.float32, run, *sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [1, 5, 70])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_steps_one_by_one(cell: str, batch: int, dtype: torch.dtype) -> None:
    """A state handed on from call to call is nobody else's memory, and gradients pass through all."""
    flags = {"proj_size": 7} if cell == "lstm" else {}

    def run(layer: Any, dtype: torch.dtype) -> list[Tensor]:
        wide = draw_like(4, batch, 23, dtype=dtype)  # of which input is a part, and one of zero stride
        inputs = [*wide[..., 2:21].unsqueeze(1), wide[:1, :1, :19].expand(1, batch, 19)]
        state, results, before = None, [], []
        for x in inputs:
            y, state = layer(x, state)
            results += support.tensors_of((y, state))
            before += [t.detach().clone() for t in support.tensors_of((y, state))]
        loss = sum(t.square().sum() for t in results)
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
        assert all(torch.equal(t, copy) for t, copy in zip(results, before, strict=True))
        if layer.__module__.startswith("fastrnn"):
            assert len({t.untyped_storage().data_ptr() for t in results}) == len(results)
        return [*results, *gradients]

    compare(cell, flags, dtype, run, 19, 40)
