"""Weights of Keras, ONNX, haste and Flax: the same results, and back without loss.

Against the real library where it is installed; against the equations it documents always.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import fastrnn
from fastrnn import interop

from .common import KINDS, assert_same, library

T, B, I, H = 6, 3, 4, 5

pytestmark = pytest.mark.filterwarnings("ignore")


def randomized(kind: str, *args: Any, **kwargs: Any) -> nn.Module:
    layer = getattr(fastrnn, kind)(*args, dtype=torch.float64, **kwargs)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.3)
    return layer


def keras_equations(kind: str, weights: list[Any], x: Tensor) -> Tensor:
    """As keras.layers documents LSTM, GRU (its reset_after told by the bias) and SimpleRNN."""
    kernel, recurrent, bias = map(torch.from_numpy, weights)
    h = c = torch.zeros(x.shape[1], len(recurrent), dtype=x.dtype)
    outputs = []
    for step in x:
        if kind == "LSTM":
            i, f, g, o = (step @ kernel + h @ recurrent + bias).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif kind == "RNN":
            h = (step @ kernel + h @ recurrent + bias).tanh()
        else:
            after = bias.dim() == 2
            x_z, x_r, x_h = (step @ kernel + (bias[0] if after else bias)).chunk(3, -1)
            r_z, r_r, r_h = recurrent.chunk(3, -1)
            b_z, b_r, b_h = bias[1].chunk(3) if after else (0, 0, 0)
            z, r = (x_z + h @ r_z + b_z).sigmoid(), (x_r + h @ r_r + b_r).sigmoid()
            candidate = x_h + (r * (h @ r_h + b_h) if after else (r * h) @ r_h)
            h = z * h + (1 - z) * candidate.tanh()
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("kind", [*KINDS, "GRUResetBefore"])
def test_keras_equations(kind: str) -> None:
    layer = randomized(kind, I, H)
    x = torch.randn(T, B, I, dtype=torch.float64)
    weights = interop.to_keras(layer)
    assert_same(keras_equations(kind, weights, x), layer(x)[0])
    other = randomized(kind, I, H)
    interop.from_keras(other, weights)
    assert_same(other(x)[0], layer(x)[0])
    assert all((a == b).all() for a, b in zip(interop.to_keras(other), weights, strict=True))


@pytest.mark.parametrize("kind", [*KINDS, "GRUResetBefore"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_keras_itself(kind: str, bidirectional: bool) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = library("keras")
    options = {"return_sequences": True}
    if kind.startswith("GRU"):
        options["reset_after"] = kind == "GRU"
    name = {"RNN": "SimpleRNN", "GRUResetBefore": "GRU"}.get(kind, kind)
    theirs = getattr(keras.layers, name)(H, **options)
    if bidirectional:
        theirs = keras.layers.Bidirectional(theirs)
    theirs.build((None, T, I))
    ours = getattr(fastrnn, kind)(I, H, batch_first=True, bidirectional=bidirectional)
    weights = interop.to_keras(ours)
    theirs.set_weights(weights)
    x = torch.randn(B, T, I)
    expected = torch.from_numpy(keras.ops.convert_to_numpy(theirs(x.numpy())))
    assert_same(ours(x)[0], expected)
    back = getattr(fastrnn, kind)(I, H, batch_first=True, bidirectional=bidirectional)
    interop.from_keras(back, theirs.get_weights())
    assert_same(back(x)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_equations(kind: str) -> None:
    """As ONNX's operators document them, in one direction."""
    layer = randomized(kind, I, H)
    x = torch.randn(T, B, I, dtype=torch.float64)
    w, r, b = (torch.from_numpy(a)[0] for a in interop.to_onnx(layer))
    w_bias, r_bias = b.chunk(2)
    h = c = torch.zeros(B, H, dtype=x.dtype)
    outputs = []
    for step in x:
        x_part, h_part = linear(step, w, w_bias), linear(h, r, r_bias)
        if kind == "LSTM":
            i, o, f, g = (x_part + h_part).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif kind == "GRU":
            (x_z, x_r, x_h), (h_z, h_r, h_h) = x_part.chunk(3, -1), h_part.chunk(3, -1)
            z, reset = (x_z + h_z).sigmoid(), (x_r + h_r).sigmoid()
            h = (1 - z) * (x_h + reset * h_h).tanh() + z * h
        else:
            h = (x_part + h_part).tanh()
        outputs.append(h)
    assert_same(torch.stack(outputs), layer(x)[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, "GRUResetBefore"])
def test_onnx_runtime_and_back(kind: str, bias: bool) -> None:
    onnx = library("onnx")
    onnxruntime = library("onnxruntime")
    layer = getattr(fastrnn, kind)(I, H, bidirectional=True, bias=bias)
    w, r, b = interop.to_onnx(layer)
    assert (b is not None) == bias
    values = {"W": w, "R": r, **({"B": b} if bias else {})}
    attributes = {"hidden_size": H, "direction": "bidirectional"}
    if kind.startswith("GRU"):
        attributes["linear_before_reset"] = int(kind == "GRU")
    node = onnx.helper.make_node(kind.removesuffix("ResetBefore"), ["X", *values], ["Y"], **attributes)
    types = [onnx.helper.make_tensor_value_info(n, 1, None) for n in ("X", "Y")]
    initializers = [onnx.numpy_helper.from_array(a, name) for name, a in values.items()]
    graph = onnx.helper.make_graph([node], "g", types[:1], types[1:], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(T, B, I)
    (y,) = session.run(None, {"X": x.numpy()})
    expected = torch.from_numpy(y).transpose(1, 2).flatten(2)
    assert_same(layer(x)[0], expected)
    back = getattr(fastrnn, kind)(I, H, bidirectional=True, bias=bias)
    interop.from_onnx(back, w, r, b)
    assert_same(back(x)[0], expected)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_haste_equations(kind: str) -> None:
    """As haste documents them."""
    layer = randomized(kind, I, H)
    x = torch.randn(T, B, I, dtype=torch.float64)
    p = interop.to_haste(layer)
    kernel, recurrent, bias = (torch.from_numpy(p[n]) for n in ("kernel", "recurrent_kernel", "bias"))
    h = c = torch.zeros(B, H, dtype=x.dtype)
    outputs = []
    for step in x:
        if kind == "LSTM":
            i, g, f, o = (step @ kernel + h @ recurrent + bias).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            x_z, x_r, x_g = (step @ kernel + bias).chunk(3, -1)
            h_z, h_r, h_g = (h @ recurrent + torch.from_numpy(p["recurrent_bias"])).chunk(3, -1)
            z, r = (x_z + h_z).sigmoid(), (x_r + h_r).sigmoid()
            h = z * h + (1 - z) * (x_g + r * h_g).tanh()
        outputs.append(h)
    assert_same(torch.stack(outputs), layer(x)[0])
    back = randomized(kind, I, H)
    interop.from_haste(back, p)
    assert_same(back(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_haste_itself(kind: str) -> None:
    haste = pytest.importorskip("haste_pytorch", reason="haste, built from source alone, is not installed")
    theirs, ours = getattr(haste, kind)(I, H), getattr(fastrnn, kind)(I, H)
    interop.from_haste(ours, theirs.state_dict())
    x = torch.randn(T, B, I)
    assert_same(ours(x)[0], theirs(x)[0])
    other = getattr(fastrnn, kind)(I, H)
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in interop.to_haste(other).items()})
    assert_same(other(x)[0], theirs(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_flax_equations_and_back(kind: str) -> None:
    """As flax.linen documents OptimizedLSTMCell, GRUCell and SimpleCell."""
    layer = randomized(kind, I, H)
    x = torch.randn(T, B, I, dtype=torch.float64)
    params = interop.to_flax(layer)

    def dense(name: str, value: Tensor) -> Tensor:
        p = {k: torch.from_numpy(v) for k, v in params[name].items()}
        return value @ p["kernel"] + p.get("bias", 0)

    h = c = torch.zeros(B, H, dtype=x.dtype)
    outputs = []
    for step in x:
        if kind == "LSTM":
            i, f, g, o = (dense(f"i{k}", step) + dense(f"h{k}", h) for k in "ifgo")
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif kind == "GRU":
            r, z = ((dense(f"i{k}", step) + dense(f"h{k}", h)).sigmoid() for k in "rz")
            n = (dense("in", step) + r * dense("hn", h)).tanh()
            h = (1 - z) * n + z * h
        else:
            h = (dense("i", step) + dense("h", h)).tanh()
        outputs.append(h)
    assert_same(torch.stack(outputs), layer(x)[0])
    back = randomized(kind, I, H)
    interop.from_flax(back, params)
    assert_same(back(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_flax_itself(kind: str) -> None:
    jax = library("jax")
    linen = library("flax.linen")
    name = {"LSTM": "OptimizedLSTMCell", "GRU": "GRUCell", "RNN": "SimpleCell"}[kind]
    theirs = getattr(linen, name)(H)
    x = torch.randn(T, B, I)
    carry = theirs.initialize_carry(jax.random.key(0), (B, I))
    params = theirs.init(jax.random.key(1), carry, x[0].numpy())["params"]
    ours = getattr(fastrnn, kind)(I, H)
    interop.from_flax(ours, params)
    again = interop.to_flax(ours)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    outputs = []
    for step in x:
        carry, y = theirs.apply({"params": again}, carry, step.numpy())
        outputs.append(torch.tensor(y.tolist()))
    assert_same(ours(x)[0], torch.stack(outputs))


def test_one_layer_of_several_and_cells() -> None:
    layer = fastrnn.GRU(I, H, num_layers=2)
    before = layer.weight_ih_l0.clone()
    interop.from_keras(layer, interop.to_keras(fastrnn.GRU(H, H)), layer=1)
    assert torch.equal(layer.weight_ih_l0, before)
    cell, single = nn.LSTMCell(I, H), fastrnn.LSTM(I, H)
    interop.from_keras(cell, interop.to_keras(single))
    x = torch.randn(B, I)
    assert_same(cell(x)[0], single(x[None])[0][0])


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"weight_ih_l0 has the shape \(15, 4\), got \(15, 5\)"):
        interop.from_keras(fastrnn.GRU(4, 5), interop.to_keras(fastrnn.GRU(5, 5)))
    with pytest.raises(
        ValueError, match=r"reset_after=False has one and goes into a fastrnn\.GRUResetBefore"
    ):
        interop.from_keras(fastrnn.GRU(4, 5), interop.to_keras(fastrnn.GRUResetBefore(4, 5)))
    with pytest.raises(ValueError, match="cannot load a nonzero bias_ih_l0: the module has bias=False"):
        interop.from_keras(fastrnn.LSTM(4, 5, bias=False), interop.to_keras(fastrnn.LSTM(4, 5)))
    with pytest.raises(ValueError, match="no layer 1"):
        interop.to_onnx(fastrnn.LSTM(4, 5), layer=1)
    with pytest.raises(ValueError, match="got an LSTM with proj_size"):
        interop.to_keras(fastrnn.LSTM(4, 5, proj_size=2))
    with pytest.raises(ValueError, match="one direction"):
        interop.to_flax(fastrnn.GRU(4, 5, bidirectional=True))
    with pytest.raises(ValueError, match=r"of 4 gates cannot have the shape \(3,\)"):
        interop.from_keras(fastrnn.LSTM(4, 5), [torch.zeros(3), torch.zeros((5, 20)), torch.zeros(20)])
    with pytest.raises(ValueError, match=r"2 directions, R has the shape \(1, 5, 5\)"):
        interop.from_onnx(
            fastrnn.RNN(4, 5, bidirectional=True), torch.zeros((2, 5, 4)), torch.zeros((1, 5, 5))
        )
    with pytest.raises(ValueError, match="haste weights should have recurrent_kernel among kernel, bias"):
        interop.from_haste(fastrnn.LSTM(4, 5), {"kernel": torch.zeros((4, 20)), "bias": torch.zeros(20)})
    with pytest.raises(ValueError, match="Flax weights should have h among i"):
        interop.from_flax(fastrnn.RNN(4, 5), {"i": {"kernel": torch.zeros((4, 5))}})
    with pytest.raises(ValueError, match=r"Flax \(h\) weights should have kernel among none"):
        interop.from_flax(fastrnn.RNN(4, 5), {"i": {"kernel": torch.zeros((4, 5))}, "h": {}})
    with pytest.raises(TypeError, match="not a Linear"):
        interop.to_keras(nn.Linear(4, 5))


def test_gru_reset_before_differs_from_gru_and_has_right_gradients() -> None:
    ours, gru = fastrnn.GRUResetBefore(2, 3, dtype=torch.float64), nn.GRU(2, 3, dtype=torch.float64)
    gru.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert not torch.allclose(ours(x)[0], gru(x)[0])
    assert torch.autograd.gradcheck(lambda a: ours(a, lengths=torch.tensor([4, 2])), x)
