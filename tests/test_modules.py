"""The modules' contract: what torch.nn's do, line by line, ours do as well."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fastrnn

T, B, I, H = 5, 3, 4, 6
CASES = support.layer_cases()
NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


def layer_twins(cell: str, flag: str, device: str, **more: Any) -> tuple[Any, Any]:
    torchs, mine = support.twins(cell, I, H, **support.FLAGS[flag], **more)
    return torchs.to(device), mine.to(device)


def batch(layer: Any, device: str, requires_grad: bool = False) -> Tensor:
    shape = (B, T, I) if layer.batch_first else (T, B, I)
    return torch.randn(shape, device=device, requires_grad=requires_grad)


# Construction.


@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_is_torch_nns(cell: str, flag: str) -> None:
    torchs, mine = layer_twins(cell, flag, "cpu")
    assert isinstance(mine, type(torchs))
    assert isinstance(mine, nn.RNNBase)
    assert repr(mine) == repr(torchs)
    assert mine.extra_repr() == torchs.extra_repr()
    for name in type(torchs).__constants__:
        assert getattr(mine, name) == getattr(torchs, name)


@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_same_weights_under_the_same_seed(cell: str, flag: str) -> None:
    made = []
    for make in (support.ours, support.theirs):
        torch.manual_seed(1)
        made.append(make(cell, I, H, **support.FLAGS[flag]))
    mine, torchs = made
    assert list(mine.state_dict()) == list(torchs.state_dict())
    for (name, p), (torchs_name, q) in zip(mine.named_parameters(), torchs.named_parameters(), strict=True):
        assert name == torchs_name
        assert type(p) is type(q)
        assert torch.equal(p, q)
    mine.reset_parameters()
    assert not torch.equal(mine.weight_ih_l0, torchs.weight_ih_l0)


def test_positional_arguments() -> None:
    mine = fastrnn.LSTM(I, H, 2, False, True, 0.5, True, 3)
    assert repr(mine) == repr(nn.LSTM(I, H, 2, False, True, 0.5, True, 3))
    assert fastrnn.GRU(I, H, 1, True, False, 0.0, False, 0, "meta", torch.half).weight_hh_l0.is_meta
    mine = fastrnn.RNN(I, H, 2, "relu", False, True)
    assert repr(mine) == repr(nn.RNN(I, H, 2, "relu", False, True))
    assert mine.nonlinearity == "relu"
    assert repr(fastrnn.RNNCell(I, H, False, "relu")) == repr(nn.RNNCell(I, H, False, "relu"))


@pytest.mark.parametrize("name", NAMES)
def test_cells_and_layers_have_torchs_names(name: str) -> None:
    mine, torchs = getattr(fastrnn, name)(I, H), getattr(nn, name)(I, H)
    assert repr(mine) == repr(torchs)
    assert isinstance(mine, getattr(nn, name))
    assert type(mine).__name__ == name
    for dtype in (torch.float64, torch.bfloat16):
        for p in getattr(fastrnn, name)(I, H, device="cpu", dtype=dtype).parameters():
            assert p.dtype == dtype


def test_memory_is_checked() -> None:
    with pytest.raises(ValueError, match="memory should be 'full' or 'lean', got: 'none'"):
        fastrnn.GRU(I, H, memory="none")


# Calls.


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_results(cell: str, flag: str, state: bool, device: str) -> None:
    torchs, mine = layer_twins(cell, flag, device)
    x, hx = batch(mine, device), support.initial_state(mine, B, device=device) if state else None
    expected, got = torchs(x, hx), mine(x, hx)
    support.same(got, expected)
    assert got[0].stride() == expected[0].stride()
    support.same(mine(x, hx=hx), expected)
    support.same(mine(input=x, hx=hx), expected)
    unbatched = batch(mine, device)[:, 0] if not mine.batch_first else batch(mine, device)[0]
    hx = support.initial_state(mine, None, device=device) if state else None
    support.same(mine(unbatched, hx), torchs(unbatched, hx))


@pytest.mark.parametrize("sorted_already", [True, False])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_packed(cell: str, flag: str, state: bool, sorted_already: bool, device: str) -> None:
    torchs, mine = layer_twins(cell, flag, device)
    lengths = torch.tensor([5, 3, 1] if sorted_already else [1, 5, 3])
    packed = pack_padded_sequence(
        batch(mine, device), lengths, batch_first=mine.batch_first, enforce_sorted=sorted_already
    )
    hx = support.initial_state(mine, B, device=device) if state else None
    expected, got = torchs(packed, hx), mine(packed, hx)
    support.same(got, expected)
    for part in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(got[0], part), getattr(expected[0], part)
        assert (a is None and b is None) or torch.equal(a, b)


def test_packed_sequences_of_one_length(device: str) -> None:
    torchs, mine = layer_twins("gru", "bidirectional", device)
    packed = pack_sequence([torch.randn(1, I, device=device)])
    support.same(mine(packed), torchs(packed))


def test_state_may_be_a_list(device: str) -> None:
    torchs, mine = layer_twins("lstm", "two_layers", device)
    x, hx = batch(mine, device), list(support.initial_state(mine, B, device=device))
    support.same(mine(x, hx), torchs(x, hx))


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", support.CELLS)
def test_cell_results(cell: str, bias: bool, state: bool, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.cell_twins(cell, I, H, bias=bias))
    for leading in ((B,), (0,), ()):
        x = torch.randn(*leading, I, device=device, requires_grad=True)
        hx = torch.randn(*leading, H, device=device) if state else None
        hx = (hx, hx.flip(-1)) if cell == "lstm" and hx is not None else hx
        a, b = mine(x, hx), torchs(x, hx)
        support.same(a, b)
        gradients = [
            torch.autograd.grad(sum(t.sin().sum() for t in support.tensors_of(r)), [x, *m.parameters()])
            for r, m in ((a, mine), (b, torchs))
        ]
        torch.testing.assert_close(*gradients)
    if cell == "lstm":
        x, hx = torch.randn(B, I, device=device), [torch.randn(B, H, device=device)] * 2
        support.same(mine(x, hx), torchs(x, hx))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_dropout_between_layers(cell: str, device: str) -> None:
    torchs, mine = support.twins(cell, I, H, num_layers=3, bidirectional=True, dropout=0.4)
    torchs, mine = torchs.to(device), mine.to(device)
    x = batch(mine, device)
    got = []
    for m in (mine, torchs):
        torch.manual_seed(2)
        with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):  # cuDNN draws otherwise
            got.append(m(x))
    support.same(*got)
    support.same(mine.eval()(x), torchs.eval()(x))
    with pytest.raises(AssertionError):
        support.same(mine.train()(x), torchs.eval()(x))


@pytest.mark.parametrize("dropout", [0, 1, 1.0])
def test_extreme_dropout(dropout: float, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.twins("lstm", I, H, num_layers=2, dropout=dropout))
    x = batch(mine, device)
    with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
        support.same(mine(x), torchs(x))


def test_dropout_of_one_layer_warns() -> None:
    texts = []
    for made in (fastrnn.GRU, nn.GRU):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made(I, H, dropout=0.5)
        texts.append([str(w.message) for w in caught])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_empty_batch(cell: str, flag: str, device: str) -> None:
    torchs, mine = layer_twins(cell, flag, device)
    x = torch.empty((0, T, I) if mine.batch_first else (T, 0, I), device=device, requires_grad=True)
    with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
        a, b = mine(x), torchs(x)
    support.same(a, b)
    for p in torch.autograd.grad(a[0].sum(), list(mine.parameters())):
        assert p.abs().sum() == 0


@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_input_of_any_layout(cell: str, flag: str, device: str) -> None:
    torchs, mine = layer_twins(cell, flag, device)
    x, wide = batch(mine, device), torch.randn(2 * T, 2 * B, 2 * I, device=device)
    views = [
        wide[:T, :B, ::2] if not mine.batch_first else wide[:B, :T, ::2],
        x.flip(0).flip(0).transpose(0, 1).contiguous().transpose(0, 1),
        x[:1].expand(x.shape),
        x[..., :1].expand(x.shape),
        torch.zeros((), device=device).expand(x.shape),
    ]
    state = support.initial_state(mine, B, device=device)
    spread = [torch.stack([s, s], -1)[..., 0] for s in support.tensors_of(state)]
    for view in views:
        hx = tuple(spread) if cell == "lstm" else spread[0]
        support.same(mine(view, hx), torchs(view, hx))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_inference_mode(cell: str, device: str) -> None:
    torchs, mine = layer_twins(cell, "deep_bidirectional", device)
    x = batch(mine, device)
    with torch.inference_mode():
        a, b = mine(x), torchs(x)
        assert a[0].is_inference()
    with torch.no_grad():
        support.same(a, mine(x))
    support.same(a, b)
    mine(x)[0].sum().backward()
    with torch.inference_mode():
        made = support.ours(cell, I, H).to(device)
        assert made(x)[0].is_inference()


AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", AUTOCAST_DTYPES, ids=str)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_autocast(cell: str, dtype: torch.dtype, device: str) -> None:
    torchs, mine = layer_twins(cell, "two_layers", device)
    x, hx = batch(mine, device, requires_grad=True), support.initial_state(mine, B, device=device)
    with torch.autocast(device, dtype):
        mine_result = mine(x, hx)
        try:
            torchs_result = torchs(x, hx)
        except RuntimeError:
            torchs_result = None  # torch has no float16 layer for every processor
    tolerance = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}
    if torchs_result is not None:
        support.same(mine_result, torchs_result, **tolerance)
    expected = torch.float32 if cell == "gru" and device == "cpu" else dtype
    assert {t.dtype for t in support.tensors_of(mine_result)} == {expected}
    mine_result[0].float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    for p in mine.parameters():
        assert p.grad.dtype == torch.float32
        assert p.grad.abs().sum() > 0


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("x", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_mixed_dtypes_under_autocast(
    cell: str, x: torch.dtype, state: torch.dtype | None, weights: torch.dtype, device: str
) -> None:
    """What operators before a layer have cast, and states from elsewhere."""
    torchs, mine = (m.to(weights) for m in layer_twins(cell, "deep_bidirectional", device))
    hx = None if state is None else support.initial_state(mine, B, device=device, dtype=state)
    given = batch(mine, device).to(x)
    with torch.autocast(device, torch.bfloat16):
        support.same(mine(given, hx), torchs(given, hx), rtol=0, atol=8 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("cell", support.CELLS)
def test_cells_under_autocast(cell: str, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.cell_twins(cell, I, H))
    x = torch.randn(B, I, device=device)
    with torch.autocast(device, torch.bfloat16):
        support.same(mine(x), torchs(x))
        support.same(mine(x.bfloat16()), torchs(x.bfloat16()))


def test_autocast_switched_off_inside(device: str) -> None:
    torchs, mine = layer_twins("lstm", "plain", device)
    x = batch(mine, device)
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        support.same(mine(x), torchs(x))


# Copies, files, devices and dtypes.


@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_state_dict_both_ways(cell: str, flag: str, device: str) -> None:
    torchs, mine = (
        support.theirs(cell, I, H, **support.FLAGS[flag]),
        support.ours(cell, I, H, **support.FLAGS[flag]),
    )
    x = batch(mine, "cpu")
    assert str(mine.load_state_dict(torchs.state_dict())) == "<All keys matched successfully>"
    support.same(mine(x), torchs(x))
    other = support.theirs(cell, I, H, **support.FLAGS[flag])
    assert str(other.load_state_dict(mine.state_dict(), assign=True)) == "<All keys matched successfully>"
    support.same(other(x), torchs(x))


def torch_saved(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": torch_saved,
    "copy": copy.copy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", NAMES)
def test_copies(name: str, way: str, device: str) -> None:
    module = getattr(fastrnn, name)(I, H, device=device)
    x = torch.randn(B, I, device=device)
    module(x)
    made = COPIES[way](module)
    assert type(made) is type(module)
    assert repr(made) == repr(module)
    support.same(made(x), module(x))
    if way == "copy":
        return
    for p, q in zip(made.parameters(), module.parameters(), strict=True):
        assert p is not q
        assert torch.equal(p, q)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    assert not support.tensors_of(made(x))[0].any()
    assert support.tensors_of(module(x))[0].any()


def test_lean_memory_is_copied() -> None:
    for way in COPIES.values():
        assert way(fastrnn.GRU(I, H, memory="lean")).memory == "lean"
        assert way(fastrnn.GRU(I, H)).memory == "full"


def test_old_checkpoints(device: str) -> None:
    """States as torch before 1.4 and before 1.8 pickled them."""
    module = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True, device=device)
    x = batch(module, device)
    state = dict(module.__getstate__())
    del state["proj_size"]
    before_1_8 = fastrnn.LSTM.__new__(fastrnn.LSTM)
    before_1_8.__setstate__(copy.copy(state))
    assert before_1_8.proj_size == 0
    support.same(before_1_8(x), module(x))
    state["all_weights"] = [list(p) for p in module.all_weights]
    for name in ("_all_weights", "_flat_weights", "_flat_weights_names"):
        state.pop(name, None)
    before_1_4 = fastrnn.LSTM.__new__(fastrnn.LSTM)
    before_1_4.__setstate__(state)
    assert before_1_4._flat_weights_names == module._flat_weights_names
    support.same(before_1_4(x), module(x))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_dtypes_and_devices(cell: str, device: str) -> None:
    torchs, mine = layer_twins(cell, "two_layers", device)
    x = batch(mine, device)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32):
        assert mine.to(dtype) is mine
        torchs.to(dtype)
        support.same(mine(x.to(dtype)), torchs(x.to(dtype)), rtol=0, atol=16 * torch.finfo(dtype).eps)
        assert all(w.dtype == dtype for w in mine._flat_weights)
    assert mine.to("meta")(x.to("meta"))[0].device.type == "meta"


@pytest.mark.parametrize(("cell", "flag"), CASES)
def test_meta(cell: str, flag: str) -> None:
    flags = {**support.FLAGS[flag], "device": "meta"}
    torchs, mine = support.theirs(cell, I, H, **flags), support.ours(cell, I, H, **flags)
    x = torch.empty((B, T, I) if mine.batch_first else (T, B, I), device="meta", requires_grad=True)
    a, b = mine(x), torchs(x)
    for s, t in zip(support.tensors_of(a), support.tensors_of(b), strict=True):
        assert s.device.type == "meta"
        assert s.shape == t.shape
    a[0].sum().backward()
    assert mine.weight_ih_l0.grad.shape == mine.weight_ih_l0.shape
    mine.to_empty(device="cpu")
    twin = support.theirs(cell, I, H, **support.FLAGS[flag])
    mine.load_state_dict(twin.state_dict())
    x = batch(mine, "cpu")
    support.same(mine(x), twin(x))


@pytest.mark.parametrize("name", NAMES)
def test_skip_init(name: str) -> None:
    made = nn.utils.skip_init(getattr(fastrnn, name), I, H)
    assert type(made) is getattr(fastrnn, name)
    made.load_state_dict(getattr(nn, name)(I, H).state_dict())
    made(torch.randn(B, I))


def test_share_memory() -> None:
    module = fastrnn.GRU(I, H).share_memory()
    assert all(p.is_shared() for p in module.parameters())
    module(torch.randn(T, B, I))
