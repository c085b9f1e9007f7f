"""Converts weights from and to Keras, ONNX, haste and Flax.

Each pair of functions takes a module of torch.nn or of this package (one layer of it at a time; a cell is
one layer) and the arrays as the other framework stores them. ``from_*`` writes into the module's
parameters; ``to_*`` returns numpy arrays. The frameworks differ in whether a weight is stored transposed,
in the order of the gates, and in which of the two biases they have:

    torch    w [G * H, I]     LSTM i, f, g, o    GRU r, z, n    b_ih and b_hh
    Keras    w [I, G * H]     LSTM i, f, c, o    GRU z, r, h    LSTM one; GRU two, [2, 3 * H]
    ONNX     w [D, G * H, I]  LSTM i, o, f, c    GRU z, r, h    two, side by side [D, 2 * G * H]
    haste    w [I, G * H]     LSTM i, g, f, o    GRU z, r, h    LSTM one; GRU two
    Flax     w [I, H] a gate  by name            by name        LSTM h's; GRU x's, and h's of n

From a framework with one bias, b_hh (Flax's LSTM: b_ih) becomes zero; to one, the two are summed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn.nn import GRUResetBefore
from fastrnn.onnx import GATE_ORDER

# Positions in torch's order of the other side's gates.
_KERAS = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "RNN": (0,)}
_ONNX = {"LSTM": GATE_ORDER["lstm"], "GRU": GATE_ORDER["gru"], "RNN": (0,)}
_HASTE = {"LSTM": (0, 2, 1, 3), "GRU": (1, 0, 2)}
_FLAX: dict[str, tuple[str, ...]] = {"LSTM": tuple("ifgo"), "GRU": tuple("rzn"), "RNN": ("",)}

Array = Any  # a numpy array, or what numpy.asarray makes one of


class Weights(NamedTuple):
    """One layer in one direction, as torch has it."""

    w_ih: Tensor  # [G * H, I]
    w_hh: Tensor  # [G * H, H]
    b_ih: Tensor | None  # [G * H]
    b_hh: Tensor | None  # [G * H]


def from_keras(module: nn.Module, weights: Sequence[Array], layer: int = 0) -> None:
    """Loads the ``get_weights()`` of a Keras LSTM, GRU, SimpleRNN or Bidirectional of one of them.

    A Keras GRU with ``reset_after=True``, its default, is torch.nn's; one with ``reset_after=False`` is
    `fastrnn.GRUResetBefore`.

    Args:
        module: LSTM, GRU, RNN or a cell of the same sizes, bidirectional where the weights are.
        weights: kernel [I, G * H], recurrent_kernel [H, G * H] and bias, and for Bidirectional the
            backward layer's after them.
        layer: which of the module's layers to write.

    Raises:
        ValueError: the weights do not fit the module.

    Example:
        >>> import torch, fastrnn
        >>> layer = fastrnn.LSTM(3, 4)
        >>> fastrnn.interop.from_keras(layer, fastrnn.interop.to_keras(torch.nn.LSTM(3, 4)))
    """
    kind, order = _order(module, _KERAS)
    directions = _directions(module)
    count = len(weights) // directions
    if len(weights) % directions or count not in (2, 3):
        raise ValueError(
            f"Keras has 2 or 3 weights for each of {directions} directions, got {len(weights)}"
        )
    for direction in range(directions):
        kernel, recurrent, *bias = map(_tensor, weights[direction * count : (direction + 1) * count])
        b_ih = b_hh = None
        if bias:
            two = kind == "GRU" and not isinstance(module, GRUResetBefore)
            if (bias[0].dim() == 2) != two:
                raise ValueError(
                    "a Keras GRU with reset_after=True has two biases and goes into a GRU; one with "
                    "reset_after=False has one and goes into a fastrnn.GRUResetBefore"
                    if kind == "GRU"
                    else f"a Keras {kind} has one bias, got the shape {tuple(bias[0].shape)}"
                )
            b_ih, b_hh = bias[0] if two else (bias[0], torch.zeros_like(bias[0]))
        _write(module, layer, direction, _from_order(order, Weights(kernel.T, recurrent.T, b_ih, b_hh)))


def to_keras(module: nn.Module, layer: int = 0) -> list[Array]:
    """What ``set_weights`` of the Keras layer takes; see `from_keras`.

    Build the Keras layer with ``use_bias`` equal to the module's ``bias``.
    """
    kind, order = _order(module, _KERAS)
    arrays: list[Array] = []
    for direction in range(_directions(module)):
        w = _to_order(order, _read(module, layer, direction))
        arrays += [_array(w.w_ih.T), _array(w.w_hh.T)]
        if w.b_ih is not None and w.b_hh is not None:
            two = kind == "GRU" and not isinstance(module, GRUResetBefore)
            arrays.append(_array(torch.stack((w.b_ih, w.b_hh)) if two else w.b_ih + w.b_hh))
    return arrays


def from_onnx(
    module: nn.Module,
    W: Array,
    R: Array,
    B: Array | None = None,
    layer: int = 0,
) -> None:
    """Loads W, R and B of an ONNX LSTM, GRU or RNN operator.

    An ONNX GRU with ``linear_before_reset=1`` is torch.nn's; with 0, its default, it is
    `fastrnn.GRUResetBefore`.

    Args:
        module: LSTM, GRU, RNN or a cell of the same sizes, bidirectional where D is 2.
        W: [D, G * H, I]
        R: [D, G * H, H]
        B: [D, 2 * G * H], or None for zero.
        layer: which of the module's layers to write.

    Raises:
        ValueError: the weights do not fit the module.
    """
    _, order = _order(module, _ONNX)
    w, r, b = _tensor(W), _tensor(R), None if B is None else _tensor(B)
    for name, t in (("W", w), ("R", r), ("B", b)):
        if t is not None and t.shape[:1] != (_directions(module),):
            raise ValueError(
                f"the module has {_directions(module)} directions, {name} has the shape {tuple(t.shape)}"
            )
    for direction in range(len(w)):
        b_ih, b_hh = (None, None) if b is None else b[direction].chunk(2)
        _write(
            module, layer, direction, _from_order(order, Weights(w[direction], r[direction], b_ih, b_hh))
        )


def to_onnx(module: nn.Module, layer: int = 0) -> tuple[Array, Array, Array | None]:
    """W, R and B of the ONNX operator, B is None if the module has no bias; see `from_onnx`."""
    _, order = _order(module, _ONNX)
    ws, rs, bs = [], [], []
    for direction in range(_directions(module)):
        w = _to_order(order, _read(module, layer, direction))
        ws.append(w.w_ih)
        rs.append(w.w_hh)
        if w.b_ih is not None and w.b_hh is not None:
            bs.append(torch.cat((w.b_ih, w.b_hh)))
    return _array(torch.stack(ws)), _array(torch.stack(rs)), _array(torch.stack(bs)) if bs else None


def from_haste(module: nn.Module, parameters: Mapping[str, Array], layer: int = 0) -> None:
    """Loads the ``state_dict()`` of a haste LSTM or GRU.

    Args:
        module: LSTM, GRU or a cell of the same sizes, in one direction.
        parameters: kernel [I, G * H], recurrent_kernel [H, G * H], bias [G * H], and for a GRU
            recurrent_bias [G * H].
        layer: which of the module's layers to write.

    Raises:
        ValueError: the parameters do not fit the module.
    """
    _, order = _order(module, _HASTE)
    _one_direction(module, "haste")
    _require(parameters, "haste", "kernel", "recurrent_kernel", "bias")
    p = {name: _tensor(array) for name, array in parameters.items()}
    b_hh = p.get("recurrent_bias", torch.zeros_like(p["bias"]))
    weights = Weights(p["kernel"].T, p["recurrent_kernel"].T, p["bias"], b_hh)
    _write(module, layer, 0, _from_order(order, weights))


def to_haste(module: nn.Module, layer: int = 0) -> dict[str, Array]:
    """The ``state_dict()`` of the haste layer, as numpy arrays; see `from_haste`."""
    kind, order = _order(module, _HASTE)
    _one_direction(module, "haste")
    w = _with_biases(_to_order(order, _read(module, layer, 0)))
    arrays = {"kernel": _array(w.w_ih.T), "recurrent_kernel": _array(w.w_hh.T)}
    if kind == "GRU":
        return {**arrays, "bias": _array(w.b_ih), "recurrent_bias": _array(w.b_hh)}
    return {**arrays, "bias": _array(w.b_ih + w.b_hh)}


def from_flax(module: nn.Module, params: Mapping[str, Mapping[str, Array]], layer: int = 0) -> None:
    """Loads the params of a flax.linen OptimizedLSTMCell (LSTMCell), GRUCell or SimpleCell.

    Args:
        module: LSTM, GRU, RNN or a cell of the same sizes, in one direction.
        params: by gate, "ii" .. "ho" or "ir" .. "hn" ("i" and "h" of a SimpleCell), of kernel
            [I or H, H] and bias [H].
        layer: which of the module's layers to write.

    Raises:
        ValueError: the params do not fit the module.
    """
    kind = _kind(module)
    _one_direction(module, "Flax")
    gates = _FLAX[kind]
    _require(params, "Flax", *(side + gate for side in "ih" for gate in gates))

    def joined(side: str) -> tuple[Tensor, Tensor]:
        for gate in gates:
            _require(params[side + gate], f"Flax ({side + gate})", "kernel")
        entries = [params[side + gate] for gate in gates]
        kernels = [_tensor(entry["kernel"]).T for entry in entries]
        biases = [
            _tensor(entry["bias"]) if "bias" in entry else torch.zeros(len(kernel))
            for entry, kernel in zip(entries, kernels, strict=True)
        ]
        return torch.cat(kernels), torch.cat(biases)

    (w_ih, b_ih), (w_hh, b_hh) = joined("i"), joined("h")
    _write(module, layer, 0, Weights(w_ih, w_hh, b_ih, b_hh))


def to_flax(module: nn.Module, layer: int = 0) -> dict[str, dict[str, Array]]:
    """The params of the flax.linen cell, as numpy arrays; see `from_flax`."""
    kind = _kind(module)
    _one_direction(module, "Flax")
    gates = _FLAX[kind]
    w = _with_biases(_read(module, layer, 0))
    params: dict[str, dict[str, Array]] = {}
    parts = [t.chunk(len(gates)) for t in (w.w_ih, w.w_hh, w.b_ih, w.b_hh)]
    for gate, w_ih, w_hh, b_ih, b_hh in zip(gates, *parts, strict=True):
        x, h = params["i" + gate], params["h" + gate] = (
            {"kernel": _array(w_ih.T)},
            {"kernel": _array(w_hh.T)},
        )
        if kind == "LSTM":
            h["bias"] = _array(b_ih + b_hh)
        elif gate == "n":
            x["bias"], h["bias"] = _array(b_ih), _array(b_hh)
        else:
            x["bias"] = _array(b_ih + b_hh)
    return params


def _kind(module: nn.Module) -> str:
    for kind in ("LSTM", "GRU", "RNN"):
        if isinstance(module, getattr(nn, kind) | getattr(nn, f"{kind}Cell")):
            if getattr(module, "proj_size", 0):
                raise ValueError("got an LSTM with proj_size, which other layouts do not support")
            return kind
    raise TypeError(f"takes an LSTM, a GRU, an RNN or a cell, not a {type(module).__qualname__}")


def _order(module: nn.Module, orders: dict[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
    kind = _kind(module)
    if kind not in orders:
        raise ValueError(f"there is no {kind} in this layout")
    return kind, orders[kind]


def _directions(module: nn.Module) -> int:
    return 2 if getattr(module, "bidirectional", False) else 1


def _one_direction(module: nn.Module, other: str) -> None:
    if _directions(module) != 1:
        raise ValueError(f"a {other} layer has one direction, and the module two")


def _require(given: Mapping[str, Any], other: str, *names: str) -> None:
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"{other} weights should have {', '.join(missing)} among {', '.join(given) or 'none'}"
        )


def _names(module: nn.Module, layer: int, direction: int) -> list[str]:
    suffix = f"_l{layer}{'_reverse' if direction else ''}" if isinstance(module, nn.RNNBase) else ""
    names = [f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    if not hasattr(module, names[0]):
        raise ValueError(f"the module has no layer {layer}")
    return names


def _read(module: nn.Module, layer: int, direction: int) -> Weights:
    found = (getattr(module, name, None) for name in _names(module, layer, direction))
    return Weights(*(None if t is None else t.detach() for t in found))  # type: ignore[arg-type]


def _write(module: nn.Module, layer: int, direction: int, weights: Weights) -> None:
    targets = [(name, getattr(module, name, None)) for name in _names(module, layer, direction)]
    for (name, target), value in zip(targets, weights, strict=True):
        if target is None and value is not None and bool(value.any()):
            raise ValueError(f"cannot load a nonzero {name}: the module has bias=False")
        if target is not None and value is not None and target.shape != value.shape:
            raise ValueError(f"{name} has the shape {tuple(target.shape)}, got {tuple(value.shape)}")
    with torch.no_grad():
        for (_, target), value in zip(targets, weights, strict=True):
            if target is not None:
                target.zero_() if value is None else target.copy_(value)


def _with_biases(weights: Weights) -> Any:
    """The same with zeros for absent biases."""
    zeros = torch.zeros(len(weights.w_ih), dtype=weights.w_ih.dtype, device=weights.w_ih.device)
    return weights if weights.b_ih is not None else weights._replace(b_ih=zeros, b_hh=zeros)


def _to_order(order: tuple[int, ...], weights: Weights) -> Weights:
    def permuted(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        gates = t.chunk(len(order)) if t.dim() > 0 else ()
        if len(gates) != len(order):
            raise ValueError(f"the weights of {len(order)} gates cannot have the shape {tuple(t.shape)}")
        return torch.cat([gates[i] for i in order])

    return Weights(*map(permuted, weights))  # type: ignore[arg-type]


def _from_order(order: tuple[int, ...], weights: Weights) -> Weights:
    return _to_order(tuple(order.index(i) for i in range(len(order))), weights)


def _tensor(array: Array) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    import numpy

    return torch.from_numpy(numpy.array(array))


def _array(t: Tensor) -> Array:
    return t.detach().cpu().contiguous().numpy()
