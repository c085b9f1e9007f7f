"""Bad input: torch.nn's exceptions with torch.nn's messages, and one clear sentence for what is our own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import support
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

T, B, I, H = 5, 3, 4, 6
zeros = torch.zeros


def raised(call: Callable[[], Any]) -> tuple[type, str]:
    try:
        call()
    except Exception as error:
        # Python puts the class that defines a method into a TypeError.
        return type(error), re.sub(r"^\w+\.forward\(\)", "forward()", str(error))
    return type(None), "nothing was raised"


CONSTRUCTORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "nothing": ((), {}),
    "no_hidden_size": ((I,), {}),
    "zero_hidden_size": ((I, 0), {}),
    "zero_input_size": ((0, H), {}),
    "negative_input_size": ((-1, H), {}),
    "float_hidden_size": ((I, 2.0), {}),
    "float_input_size": ((2.0, H), {}),
    "no_layers": ((I, H, 0), {}),
    "bias": ((I, H), {"bias": 1}),
    "batch_first": ((I, H), {"batch_first": "yes"}),
    "dropout_above_1": ((I, H), {"dropout": 1.5}),
    "dropout_bool": ((I, H), {"dropout": True}),
    "dropout_text": ((I, H), {"dropout": "0.5"}),
    "negative_projection": ((I, H), {"proj_size": -1}),
    "large_projection": ((I, H), {"proj_size": H}),
    "projection": ((I, H), {"proj_size": 2}),
    "nonlinearity": ((I, H), {"nonlinearity": "gelu"}),
    "unknown": ((I, H), {"hidden": 3}),
    "device": ((I, H), {"device": "nowhere"}),
    "integer_dtype": ((I, H), {"dtype": torch.int64}),
}


@pytest.mark.parametrize("bad", CONSTRUCTORS)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_constructors(name: str, bad: str) -> None:
    args, kwargs = CONSTRUCTORS[bad]
    mine, torchs = (raised(lambda m=m: getattr(m, name)(*args, **kwargs)) for m in (fastrnn, nn))
    assert mine == torchs


def packed(features: int = I, dtype: torch.dtype = torch.float32) -> PackedSequence:
    return pack_padded_sequence(zeros(T, B, features, dtype=dtype), torch.tensor([5, 4, 2]))


# Arguments after the module's own; a state is [layers * directions, B, H].
LAYER_CALLS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: m(),
    "x_1d": lambda m: m(zeros(I)),
    "x_4d": lambda m: m(zeros(1, T, B, I)),
    "features": lambda m: m(zeros(T, B, I + 1)),
    "unbatched_features": lambda m: m(zeros(T, I + 1)),
    "no_features": lambda m: m(zeros(T, B, 0)),
    "no_steps": lambda m: m(zeros((B, 0, I) if m.batch_first else (0, B, I))),
    "no_steps_unbatched": lambda m: m(zeros(0, I)),
    "dtype": lambda m: m(zeros(T, B, I, dtype=torch.float64)),
    "integers": lambda m: m(zeros(T, B, I, dtype=torch.int64)),
    "list": lambda m: m([zeros(T, I)]),
    "none": lambda m: m(None),
    "meta_x": lambda m: m(zeros(T, B, I, device="meta")),
    "state_batch": lambda m: m(zeros(T, B, I), state(m, zeros(1, B + 1, H))),
    "state_layers": lambda m: m(zeros(T, B, I), state(m, zeros(2, B, H))),
    "state_size": lambda m: m(zeros(T, B, I), state(m, zeros(1, B, H + 1))),
    "state_2d": lambda m: m(zeros(T, B, I), state(m, zeros(1, H))),
    "state_4d": lambda m: m(zeros(T, B, I), state(m, zeros(1, 1, B, H))),
    "unbatched_state_3d": lambda m: m(zeros(T, I), state(m, zeros(1, 1, H))),
    "unbatched_state_size": lambda m: m(zeros(T, I), state(m, zeros(1, H + 1))),
    "state_dtype": lambda m: m(zeros(T, B, I), state(m, zeros(1, B, H, dtype=torch.float64))),
    "packed_features": lambda m: m(packed(I + 1)),
    "packed_dtype": lambda m: m(packed(dtype=torch.float64)),
    "packed_state_batch": lambda m: m(packed(), state(m, zeros(1, B + 1, H))),
    "packed_state_size": lambda m: m(packed(), state(m, zeros(1, B, H + 1))),
    "packed_state_2d": lambda m: m(packed(), state(m, zeros(B, H))),
    "keyword": lambda m: m(zeros(T, B, I), state=None),
}
LSTM_CALLS: dict[str, Callable[[Any], Any]] = {
    "one_state": lambda m: m(zeros(T, B, I), zeros(1, B, H)),
    "cell_state_size": lambda m: m(zeros(T, B, I), (zeros(1, B, H), zeros(1, B, H + 1))),
    "cell_state_batch": lambda m: m(zeros(T, B, I), (zeros(1, B, H), zeros(1, B + 1, H))),
    "cell_state_2d": lambda m: m(zeros(T, B, I), (zeros(1, B, H), zeros(1, H))),
    "unbatched_cell_state_3d": lambda m: m(zeros(T, I), (zeros(1, H), zeros(1, 1, H))),
    "packed_cell_state_size": lambda m: m(packed(), (zeros(1, B, H), zeros(1, B, H + 1))),
    "three_states": lambda m: m(zeros(T, B, I), (zeros(1, B, H),) * 3),
    "tuple_of_one": lambda m: m(zeros(T, B, I), (zeros(1, B, H),)),
    "empty_tuple": lambda m: m(zeros(T, B, I), ()),
    "stacked_states": lambda m: m(zeros(T, B, I), zeros(2, 1, B, H)),
    "tuple_of_none": lambda m: m(zeros(T, B, I), (None, None)),
}
ONE_STATE_CALLS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda m: m(zeros(T, B, I), (zeros(1, B, H), zeros(1, B, H))),
    "list": lambda m: m(zeros(T, B, I), [zeros(1, B, H)]),
    "packed_tuple": lambda m: m(packed(), (zeros(1, B, H), zeros(1, B, H))),
    "text": lambda m: m(zeros(T, B, I), "zeros"),
}
LAYER_CASES = [
    (cell, bad)
    for cell in support.LAYERS
    for bad in {**LAYER_CALLS, **(LSTM_CALLS if cell == "lstm" else ONE_STATE_CALLS)}
]
# torch.nn.LSTM does not check packed input, and its kernels then read beyond memory or fail in ways of
# their own; ours says what its other layers say.
UNCHECKED_BY_TORCH = {("lstm", bad) for bad in {**LAYER_CALLS, **LSTM_CALLS} if bad.startswith("packed_")}


def state(layer: Any, h: torch.Tensor) -> Any:
    return (h, h) if isinstance(layer, nn.LSTM | nn.LSTMCell) else h


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("cell", "bad"), LAYER_CASES)
def test_layers(cell: str, bad: str, batch_first: bool) -> None:
    call = {**LAYER_CALLS, **LSTM_CALLS, **ONE_STATE_CALLS}[bad]
    if cell != "lstm" and bad in ONE_STATE_CALLS:
        call = ONE_STATE_CALLS[bad]
    torchs, mine = support.twins(cell, I, H, batch_first=batch_first)
    got = raised(lambda: call(mine))
    if (cell, bad) in UNCHECKED_BY_TORCH:
        assert got[0] in (RuntimeError, ValueError)
        assert "\n" not in got[1]
        return
    assert got == raised(lambda: call(torchs))


CELL_CALLS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: m(),
    "x_0d": lambda m: m(zeros(())),
    "x_3d": lambda m: m(zeros(T, B, I)),
    "features": lambda m: m(zeros(B, I + 1)),
    "unbatched_features": lambda m: m(zeros(I + 1)),
    "dtype": lambda m: m(zeros(B, I, dtype=torch.float64)),
    "integers": lambda m: m(zeros(B, I, dtype=torch.int64)),
    "none": lambda m: m(None),
    "state_batch": lambda m: m(zeros(B, I), state(m, zeros(B + 1, H))),
    "state_size": lambda m: m(zeros(B, I), state(m, zeros(B, H + 1))),
    "state_3d": lambda m: m(zeros(B, I), state(m, zeros(1, B, H))),
    "state_dtype": lambda m: m(zeros(B, I), state(m, zeros(B, H, dtype=torch.float64))),
    "unbatched_state_size": lambda m: m(zeros(I), state(m, zeros(H + 1))),
    "state_triple": lambda m: m(zeros(B, I), (zeros(B, H), zeros(B, H), zeros(B, H))),
    "state_list": lambda m: m(zeros(B, I), [zeros(B, H)]),
    "state_stacked": lambda m: m(zeros(B, I), zeros(2, B, H)),
    "state_none": lambda m: m(zeros(B, I), (None, None)),
    "state_text": lambda m: m(zeros(B, I), "zeros"),
    "keyword": lambda m: m(zeros(B, I), state=None),
}


@pytest.mark.parametrize("bad", CELL_CALLS)
@pytest.mark.parametrize("cell", support.CELLS)
def test_cells(cell: str, bad: str) -> None:
    torchs, mine = support.cell_twins(cell, I, H)
    assert raised(lambda: CELL_CALLS[bad](mine)) == raised(lambda: CELL_CALLS[bad](torchs))


def test_unknown_nonlinearity_of_a_cell() -> None:
    mine, torchs = (
        raised(lambda m=m: m.RNNCell(I, H, nonlinearity="gelu")(zeros(B, I))) for m in (fastrnn, nn)
    )
    assert mine == torchs
    assert mine[0] is RuntimeError


MASKS: dict[str, tuple[dict[str, Any], str]] = {
    "lengths_shape": (
        {"lengths": torch.ones(B + 1, dtype=torch.int64)},
        "lengths should be an int64 tensor",
    ),
    "lengths_dtype": (
        {"lengths": torch.ones(B)},
        "lengths should be an int64 tensor of shape (3,), got torch.float32",
    ),
    "lengths_2d": (
        {"lengths": torch.ones(B, 1, dtype=torch.int64)},
        "lengths should be an int64 tensor of shape (3,), got torch.int64 of shape (3, 1)",
    ),
    "lengths_beyond": (
        {"lengths": torch.tensor([1, T + 1, 2])},
        "lengths should be from 0 to 5, the number of steps, got 6 in row 1",
    ),
    "lengths_negative": ({"lengths": torch.tensor([1, 2, -1])}, "got -1 in row 2"),
    "lengths_list": ({"lengths": [1.0, 2.0, 3.0]}, "lengths should be an int64 tensor"),
    "lengths_short_list": ({"lengths": [1, 2]}, "got torch.int64 of shape (2,)"),
    "reset_shape": (
        {"reset": zeros(B, T, dtype=torch.bool)},
        "reset should be a bool tensor of shape (5, 3)",
    ),
    "reset_device": (
        {"reset": zeros(T, B, dtype=torch.bool, device="meta")},
        "reset should be on cpu as the input is, got meta",
    ),
    "reset_dtype": ({"reset": zeros(T, B)}, "reset should be a bool tensor"),
    "reset_list": ({"reset": [True] * T}, "reset should be a bool tensor"),
    "lengths_device": (
        {"lengths": torch.ones(B, dtype=torch.int64, device="meta")},
        "lengths should be on cpu as the input is, got meta",
    ),
}


@pytest.mark.parametrize("bad", MASKS)
def test_masks(bad: str) -> None:
    masks, piece = MASKS[bad]
    kind, message = raised(lambda: fastrnn.GRU(I, H)(zeros(T, B, I), **masks))
    assert kind is ValueError
    assert piece in message
    assert "\n" not in message


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse invariant")
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_input_that_is_not_dense(name: str) -> None:
    layer = getattr(fastrnn, name)(I, H)
    rows = [zeros(T, I), zeros(2, I)]
    for x, kind in (
        (torch.nested.nested_tensor(rows), "a nested one"),
        (torch.nested.nested_tensor(rows, layout=torch.jagged), "a nested one"),
        (zeros(T, B, I).to_sparse(), "a sparse_coo one"),
    ):
        with pytest.raises(ValueError, match=rf"a dense tensor or a PackedSequence, got {kind}"):
            layer(x)


def test_masks_that_do_not_fit_the_input() -> None:
    layer = fastrnn.GRU(I, H)
    lengths = torch.ones(B, dtype=torch.int64)
    for masks in ({"lengths": lengths}, {"reset": zeros(T, B) > 0}):
        with pytest.raises(ValueError, match="not with a PackedSequence"):
            layer(packed(), **masks)
    with pytest.raises(ValueError, match="not with unbatched input"):
        layer(zeros(T, I), lengths=lengths)
    with pytest.raises(TypeError):
        nn.GRU(I, H)(zeros(T, B, I), lengths=lengths)


@pytest.mark.parametrize(
    "masks", [{"lengths": torch.ones(B, dtype=torch.int64)}, {"reset": zeros(T, B) > 0}]
)
def test_bad_input_beside_masks(masks: dict[str, Any]) -> None:
    """What torch.nn refuses is refused with masks, too, and nothing is silently ignored."""
    layer, torchs = fastrnn.GRU(I, H), nn.GRU(I, H)
    for x, hx in ((zeros(T, B, I + 1), None), (zeros(T, B, I), zeros(1, B, H + 1)), (zeros(0, B, I), None)):
        assert raised(lambda x=x, hx=hx: layer(x, hx, **masks)) == raised(lambda x=x, hx=hx: torchs(x, hx))


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_weights_of_the_wrong_shape(name: str) -> None:
    """Weights that a user replaced by ones that do not fit: an error, never a read beyond memory."""
    module = getattr(fastrnn, name)(I, H)
    suffix = "" if name.endswith("Cell") else "_l0"
    setattr(module, f"weight_hh{suffix}", nn.Parameter(zeros(3, 3)))
    fits = r"w_hh must have the shape \[24, 6\], got \[3, 3\]|hidden_size"
    with pytest.raises((RuntimeError, ValueError), match=fits):
        module(zeros(B, I))


@pytest.mark.parametrize("change", ["shape", "data", "dtype", "bias"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_weights_that_do_not_fit(cell: str, device: str, change: str) -> None:
    """The class of torch.nn's error, with our words: torch.nn's kernels may crash on such weights."""
    layer = support.ours(cell, I, H, dtype=torch.float64, device=device)
    other = {"dtype": torch.float32, "device": device} if change == "dtype" else {"device": device}
    other = {"dtype": torch.float64, **other}
    if change == "bias":
        layer.bias_hh_l0 = nn.Parameter(torch.zeros(H + 1, **other))
    elif change == "data":
        layer.weight_hh_l0.data = torch.zeros(H + 1, H, **other)
    else:
        shape = layer.weight_hh_l0.shape if change == "dtype" else (H + 1, H)
        layer.weight_hh_l0 = nn.Parameter(torch.zeros(shape, **other))
    name = "b_hh" if change == "bias" else "w_hh"
    with pytest.raises(RuntimeError, match=f"fastrnn: {name} must"):
        layer(torch.zeros(2, 3, I, dtype=torch.float64, device=device))


@pytest.mark.parametrize("cell", support.CELLS)
def test_sparse_input_of_a_cell_is_torch_nns(cell: str) -> None:
    theirs, ours = support.cell_twins(cell, I, H)
    x = torch.randn(3, I).to_sparse()
    support.same(ours(x), theirs(x))
