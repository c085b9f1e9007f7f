"""lengths, reset, states of every step, streaming, and sequences of unusual size."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn

from .common import DEVICES, KINDS, assert_same, gradients, loss_of, pair, tensors

T, B, I, H = 7, 4, 3, 5

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def leaves(*values: Any) -> list[Tensor]:
    return [t.requires_grad_() for t in tensors(values)]


def state_for(kind: str, count: int, device: str = "cpu", batch: int = B, **kwargs: Any) -> Any:
    h, c = torch.randn(2, count, batch, H, device=device, **kwargs)
    return (h, c) if kind == "LSTM" else h


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_equal_a_packed_sequence(kind: str, batch_first: bool, device: str) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first, "dtype": torch.float64}
    theirs, ours = pair(kind, I, H, device=device, **options)
    x = torch.randn(T, B, I, device=device, dtype=torch.float64)
    lengths = torch.tensor([3, 7, 1, 5], device=device)
    state = state_for(kind, 4, device, dtype=torch.float64)
    given = leaves(x, state)
    if batch_first:
        x = x.transpose(0, 1)
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first, enforce_sorted=False)
    expected, expected_state = theirs(packed, state)
    expected, _ = pad_packed_sequence(expected, batch_first, total_length=T)
    got = ours(x, state, lengths=lengths)
    assert_same(got, (expected, expected_state))
    assert_same(
        torch.autograd.grad(loss_of(got), [*given, *ours.parameters()]),
        torch.autograd.grad(loss_of((expected, expected_state)), [*given, *theirs.parameters()]),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_length_zero_hands_its_initial_state_back(kind: str, device: str) -> None:
    layer = getattr(fastrnn, kind)(I, H, num_layers=2, bidirectional=True, device=device)
    state = state_for(kind, 4, device)
    x = torch.randn(T, B, I, device=device)
    leaves(x, state)
    lengths = torch.tensor([3, 0, 7, 0], device=device)
    output, last = layer(x, state, lengths=lengths)
    assert not output[:, [1, 3]].any()
    for s, initial in zip(tensors(last), tensors(state), strict=True):
        assert torch.equal(s[:, [1, 3]], initial[:, [1, 3]])
        assert not torch.equal(s[:, 0], initial[:, 0])
    loss_of(last).backward()
    assert not x.grad[:, [1, 3]].any()
    for initial in tensors(state):
        (expected,) = torch.autograd.grad(loss_of(initial), initial)
        assert_same(initial.grad[:, [1, 3]], expected[:, [1, 3]])


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_of_length_zero(kind: str) -> None:
    layer = getattr(fastrnn, kind)(I, H)
    state = state_for(kind, 1)
    output, last = layer(torch.randn(T, B, I), state, lengths=torch.zeros(B, dtype=torch.int64))
    assert not output.any()
    assert all(torch.equal(a, b) for a, b in zip(tensors(last), tensors(state), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_reset_equals_a_loop_over_episodes(kind: str, batch_first: bool, device: str) -> None:
    """torch.nn's layer run piece by piece, with a zero state wherever an episode starts."""
    theirs, ours = pair(kind, I, H, batch_first=batch_first, dtype=torch.float64, device=device)
    x = torch.randn(T, 1, I, dtype=torch.float64, device=device)
    state = state_for(kind, 1, device, batch=1, dtype=torch.float64)
    given = leaves(x, state)
    starts = torch.tensor([0, 0, 1, 0, 1, 1, 0], dtype=torch.bool, device=device).unsqueeze(1)
    outputs, s = [], state
    for t in range(T):
        if starts[t]:
            s = tuple(torch.zeros_like(a) for a in s) if kind == "LSTM" else torch.zeros_like(s)
        y, s = theirs(x[t : t + 1], s)
        outputs.append(y)
    expected = torch.cat(outputs)
    if batch_first:
        x, starts, expected = x.transpose(0, 1), starts.transpose(0, 1), expected.transpose(0, 1)
    got = ours(x, state, reset=starts)
    assert_same(got, (expected, s))
    assert_same(
        torch.autograd.grad(loss_of(got), [*given, *ours.parameters()]),
        torch.autograd.grad(loss_of((expected, s)), [*given, *theirs.parameters()]),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_reset_together_equal_a_loop_over_episodes(kind: str, device: str) -> None:
    """Each row by itself, each of its episodes a call of torch.nn's layer, in both directions."""
    options = {"bidirectional": True, "dtype": torch.float64}
    theirs, ours = pair(kind, I, H, device=device, **options)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device)
    leaves(x)
    lengths = torch.tensor([3, 7, 0, 5], device=device)
    reset = torch.rand(T, B, device=device) < 0.4
    got, _ = ours(x, lengths=lengths, reset=reset)
    rows = []
    for b, n in enumerate(lengths.tolist()):
        cuts = [0, *(t for t in range(1, n) if reset[t, b]), n]
        pieces = [x[i:j, b] for i, j in itertools.pairwise(cuts) if i < j]
        rows.append(torch.cat([*(theirs(p)[0] for p in pieces), x.new_zeros(T - n, 2 * H)]))
    expected = torch.stack(rows, 1)
    assert_same(got, expected)
    assert_same(
        torch.autograd.grad(loss_of(got), [x, *ours.parameters()]),
        torch.autograd.grad(loss_of(expected), [x, *theirs.parameters()]),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_reset_in_both_directions_cuts_where_episodes_meet(kind: str, device: str) -> None:
    options = {"dtype": torch.float64, "device": device}
    layer = getattr(fastrnn, kind)(I, H, num_layers=2, bidirectional=True, **options)
    x = torch.randn(T, 1, I, **options)
    reset = torch.zeros(T, 1, dtype=torch.bool, device=device)
    reset[3] = True
    output, _ = layer(x, reset=reset)
    assert_same(output, torch.cat((layer(x[:3])[0], layer(x[3:])[0])))


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_reset_need_no_value_on_the_host(kind: str) -> None:
    """Fake tensors have none: reading one raises."""
    with FakeTensorMode():
        layer = getattr(fastrnn, kind)(I, H, num_layers=2, bidirectional=True)
        x, lengths = torch.randn(T, B, I), torch.ones(B, dtype=torch.int64)
        output, _ = layer(x, lengths=lengths, reset=torch.zeros(T, B, dtype=torch.bool))
        output.sum().backward()
    assert output.shape == (T, B, 2 * H)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_reset_do_not_synchronize(kind: str) -> None:
    layer = getattr(fastrnn, kind)(I, H, device="cuda")
    x = torch.randn(T, B, I, device="cuda")
    lengths = torch.ones(B, dtype=torch.int64, device="cuda")
    reset = torch.zeros(T, B, dtype=torch.bool, device="cuda")
    layer(x, lengths=lengths, reset=reset)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x, lengths=lengths, reset=reset)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def by_cells(layer: nn.Module, x: Tensor, kind: str) -> list[Any]:
    """The state after every step of a one-layer, one-direction module, by torch.nn's cell."""
    cell = getattr(nn, f"{kind}Cell")(I, H, dtype=x.dtype, device=x.device)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in layer.state_dict().items()})
    cell = cell.requires_grad_(False)
    state, states = None, []
    for step in x:
        state = cell(step, state)
        states.append(state if kind == "LSTM" else (state,))
    return [torch.stack(s) for s in zip(*states, strict=True)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_equal_a_loop_over_cells_with_their_gradients(kind: str, memory: str, device: str) -> None:
    layer = getattr(fastrnn, kind)(I, H, memory=memory, dtype=torch.float64, device=device)
    x = torch.randn(T, B, I, dtype=torch.float64, device=device, requires_grad=True)
    output, last, states = layer(x, states=True)
    assert len(states) == 1
    assert torch.equal(tensors(states)[0], output)
    expected = by_cells(layer, x, kind)
    assert_same(states, expected)
    assert_same([s[-1] for s in tensors(states)], [s[0] for s in tensors(last)])
    got = torch.autograd.grad(loss_of(states), x)
    assert_same(got, torch.autograd.grad(loss_of(expected), x))
    with torch.no_grad():
        assert_same(layer(x, states=True)[2], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_states(kind: str) -> None:
    layer = getattr(fastrnn, kind)(2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([3, 2])
    assert torch.autograd.gradcheck(lambda a: tuple(tensors(layer(a, lengths=lengths, states=True))), x)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_laid_out_as_the_output(kind: str) -> None:
    layer = getattr(fastrnn, kind)(I, H, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(B, T, I)
    lengths = torch.tensor([3, 7, 1, 5])
    _, last, states = layer(x, lengths=lengths, states=True)
    assert len(states) == 2
    for s, ends in zip(tensors(states[1]), tensors(last), strict=True):
        assert s.shape == (B, T, 2 * H)
        for b, n in enumerate(lengths.tolist()):
            assert torch.equal(s[b, n - 1, :H], ends[2, b])
            assert torch.equal(s[b, 0, H:], ends[3, b])
            assert not s[b, n:].any()
    _, _, unbatched = layer(x[1], states=True)
    assert_same([s[1] for s in tensors(states)], tensors(unbatched))
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    _, _, of_packed = layer(packed, states=True)
    first = of_packed[0] if kind != "LSTM" else of_packed[0][1]
    assert_same(pad_packed_sequence(first, batch_first=True)[0], tensors(states[0])[-1])


def test_states_of_a_projected_layer() -> None:
    layer = fastrnn.LSTM(I, H, proj_size=2)
    _, (_, c_n), ((h, c),) = layer(torch.randn(T, B, I), states=True)
    assert h.shape == (T, B, 2)
    assert c.shape == (T, B, H)
    assert torch.equal(c[-1], c_n[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_in_chunks_with_the_state_carried(kind: str, dtype: torch.dtype, device: str) -> None:
    layer = getattr(fastrnn, kind)(8, 16, num_layers=2, dtype=dtype, device=device)
    x = torch.randn(48, 3, 8, dtype=dtype, device=device)
    with torch.no_grad():
        expected, expected_state = layer(x)
        for size in (1, 5, 16):
            state, outputs = None, []
            for chunk in x.split(size):
                y, state = layer(chunk, state)
                outputs.append(y)
            assert_same((torch.cat(outputs), state), (expected, expected_state))


@pytest.mark.parametrize(
    ("prepacked", "batch", "size"),
    [(True, 4, 1), (True, 2, 2), (True, 1, 4), (False, 129, 1), (False, 43, 3)],
    ids=["prepacked-4x1", "prepacked-2x2", "prepacked-1x4", "129x1", "43x3"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [16, 50, 96])
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_is_exact_where_the_same_kernel_runs(
    kind: str, hidden: int, dtype: torch.dtype, prepacked: bool, batch: int, size: int
) -> None:
    """With the fewest rows a call that docs/compatibility.md asks for: weights packed beforehand are used
    for any number of steps, others where packing them pays."""
    layer = getattr(fastrnn, kind)(8, hidden, num_layers=2, dtype=dtype).eval()
    if prepacked:
        layer = fastrnn.prepack(layer)
    x = torch.randn(24, batch, 8, dtype=dtype)
    with torch.no_grad():
        expected, expected_state = layer(x)
        state, outputs = None, []
        for chunk in x.split(size):
            y, state = layer(chunk, state)
            outputs.append(y)
    assert torch.equal(torch.cat(outputs), expected)
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(expected_state), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_more_than_65535_steps(kind: str, device: str) -> None:
    steps = 65_600
    theirs, ours = pair(kind, 1, 2, dtype=torch.float64)
    ours = ours.to(device)
    x = torch.randn(steps, 1, 1, dtype=torch.float64)
    output, _ = ours(x.to(device))
    output[-1].sum().backward()
    assert len(output) == steps
    # The end of it depends on its last steps alone, as far as numbers can tell.
    tail, _ = theirs(x[-300:])
    tail[-1].sum().backward()
    assert_same(output[-1].cpu(), tail[-1])
    assert_same([g.cpu() for g in gradients(ours)], gradients(theirs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_zero_rows(kind: str, device: str) -> None:
    theirs, ours = pair(kind, I, H, num_layers=2, bidirectional=True, device=device)
    x = torch.randn(T, 0, I, device=device, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    for kwargs in ({}, {"lengths": none, "reset": none.expand(T, 0).bool()}):
        output, state = ours(x, **kwargs)
        assert output.shape == (T, 0, 2 * H)
        with torch.backends.cudnn.flags(enabled=False):
            expected = tensors(theirs(x)[1])
        assert [s.shape for s in tensors(state)] == [s.shape for s in expected]
        output.sum().backward()
        assert not any(p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize(
    "lengths", [[3, 0, 5], (3, 0, 5), *(torch.tensor([3, 0, 5], dtype=d) for d in INTEGERS)], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_as_a_list_or_in_any_integer_dtype(kind: str, lengths: Any) -> None:
    layer = getattr(fastrnn, kind)(3, 4, bidirectional=True)
    x = torch.randn(5, 3, 3)
    assert_same(layer(x, lengths=lengths), layer(x, lengths=torch.tensor([3, 0, 5])))
