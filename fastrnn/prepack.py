"""Layers for inference: weights packed once, for the kernels of this process, optionally narrower.

A packed layer has no parameters. What would read or change them (loading weights, a move to another device
or dtype, gradients) raises an error that says what to do; state_dict warns.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from fastrnn import _torch, functional, ops, routing
from fastrnn.convert import accelerate
from fastrnn.nn import (
    GRU,
    LSTM,
    RNN,
    CoupledLSTM,
    GRUCell,
    LiGRU,
    LSTMCell,
    PeepholeLSTM,
    Recurrence,
    RNNCell,
)
from fastrnn.nn.base import Call, Recurrent, State
from fastrnn.nn.cells import RecurrentCell
from fastrnn.sequence import ALL_STEPS, Sequence

Model = TypeVar("Model", bound=nn.Module)


class PackedWeights(NamedTuple):
    """One layer in one direction: its matrices as ``torch.ops.fastrnn.prepack`` made them."""

    panels: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    hidden_size: int
    weights: str
    given: tuple[Tensor | None, ...] = ()  # of a declared cell: its unit weights, and a call's step inputs


def _pack(cell: str, layer: tuple[Any, ...], weights: str) -> PackedWeights:
    w_ih, w_hh, b_ih, b_hh, w_hr, *unit_weights = layer
    own = "own" if weights == str(w_ih.dtype).removeprefix("torch.") else weights
    with torch.no_grad():
        panels = ops.prepack(cell, w_ih, w_hh, w_hr, own)
        hidden = w_ih.shape[0] // ops.facts(cell)["gates"]
        b_ih, b_hh, *given = (None if t is None else t.clone() for t in (b_ih, b_hh, *unit_weights))
    return PackedWeights(panels, b_ih, b_hh, hidden, own, tuple(given))


def packed_layer(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    packed: PackedWeights,
    sequence: Sequence = ALL_STEPS,
    keep: int = ops.KEEP_NOTHING,
    states: bool = False,
) -> functional.LayerResult:
    """One layer in one direction, as functional.fused_layer, from packed weights."""
    panels, b_ih, b_hh, hidden, weights, given = packed
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *given)):
        raise RuntimeError("a prepacked layer has no gradients: use the original, or torch.no_grad()")
    keep = ops.KEEP_C if states else ops.KEEP_NOTHING
    arguments = (cell, x, h0, c0, panels, b_ih, b_hh, hidden, weights, *sequence, keep)
    return ops.forward_prepacked(*arguments, given=given)


class Prepacked(nn.Module):
    """Mixin for this package's modules with packed weights."""

    weights: str
    dtype: torch.dtype
    packed: list[PackedWeights]

    def train(self: Model, mode: bool = True) -> Model:
        """Stays in eval mode: the model around it may switch modes, and this layer has nothing to train."""
        return super().train(False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        warnings.warn(
            f"the state_dict has no weights of the prepacked layer {prefix.rstrip('.') or '(the model)'}: "
            "save the original model's",
            stacklevel=2,
        )

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise RuntimeError(
            "a prepacked layer cannot be moved or cast: do so with the original and prepack it"
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            raise RuntimeError(
                "weights cannot be loaded into a prepacked layer: load them into the original"
            )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a prepacked layer fits this process only: save the original and prepack it again")

    def __copy__(self) -> Prepacked:
        twin = type(self).__new__(type(self))
        twin.__dict__ = dict(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepacked:
        twin = type(self).__new__(type(self))
        twin.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        return twin

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weights}"

    def _like(self, *_: Any) -> tuple[torch.dtype, torch.device]:
        return self.dtype, torch.device("cpu")

    def _misfit(self) -> RuntimeError:
        return RuntimeError(f"the arguments do not fit {type(self).__name__}({self.extra_repr()})")

    def _require_kernels(self, path: routing.Path, dtype: torch.dtype) -> None:
        """The path is that of the kernels, and the input's dtype, or what it will be cast to, theirs."""
        if path is routing.TRACING or _torch.exporting_to_onnx():
            raise RuntimeError(
                "a prepacked layer has no form in ONNX or TorchScript: export the model before prepack()"
            )
        if path.name != "fused" or dtype != self.dtype:
            reason = path.reason if path.name != "fused" else f"the input is {dtype}, not {self.dtype}"
            raise RuntimeError(f"a prepacked layer has no fallback for calls without kernels: {reason}")

    def _layer_function(self, path: routing.Path) -> functional.LayerFunction:
        return packed_layer


class PrepackedLayer(Prepacked, Recurrent):
    _torchs_weights = False

    def _plan(self, *args: Any) -> tuple[Call | None, routing.Path]:
        call, path = super()._plan(*args)
        if path is routing.MISFIT:
            raise self._misfit()
        cast = call is None or _torch.autocast_enabled()
        self._require_kernels(path, self.dtype if cast else call.x.dtype)  # type: ignore[union-attr]
        return call, path

    def _choose_driver(self, path: routing.Path, *_: Any) -> routing.Path:
        """Packed weights are in the order that one driver reads."""
        return path

    def check_input(self, *_: Any) -> NoReturn:
        """torch.nn's, which reads parameters, comes here with arguments that did not fit."""
        raise self._misfit()

    def _computes_in(self, call: Call) -> torch.dtype:
        return self.dtype

    @staticmethod
    def _cast(dtype: torch.dtype, x: Tensor, h0: Any, c0: Any, weights: Any) -> Any:
        """The input to what the packed weights are."""
        return *Recurrent._cast(dtype, x, h0, c0, [])[:3], weights

    def flatten_parameters(self) -> None:
        """Does nothing: the layer has no parameters."""

    def _layer_weights(self) -> Any:
        return self.packed


class PrepackedCell(Prepacked, RecurrentCell):
    def _plan(self, input: Any, hx: Any, check: bool = False) -> tuple[State | None, routing.Path]:
        state, path = super()._plan(input, hx, check)
        if state is None and path is routing.MISFIT:
            raise self._misfit()
        self._require_kernels(path, input.dtype)
        return state, path

    def _path(self, input: Any) -> routing.Path:
        path = super()._path(input)
        return routing.choose(input) if path is routing.AUTOCAST else path

    def _by_torch(self, input: Any, hx: Any) -> NoReturn:
        raise self._misfit()

    def _weights(self) -> Any:
        return self.packed[0]


class PrepackedRecurrence(Prepacked, Recurrence):
    def _plan(self, *args: Any) -> tuple[Any, routing.Path]:
        call, path = super()._plan(*args)
        self._require_kernels(path, call.x.dtype)
        return call, path

    def _autocast_dtype(self, *_: Any) -> torch.dtype:
        return self.dtype

    def _with_inputs(self, weights: list[Any], inputs: list[Tensor | None]) -> list[Any]:
        return [w._replace(given=(*w.given, i)) for w, i in zip(weights, inputs, strict=True)]

    def _cast(self, layers: list[Any], dtype: torch.dtype) -> list[Any]:
        """The step inputs, to what the packed weights are."""
        return [
            w._replace(given=tuple(None if t is None else t.to(dtype) for t in w.given)) for w in layers
        ]

    def _layer_weights(self) -> list[Any]:
        return self.packed


class PrepackedPeepholeLSTM(PrepackedRecurrence, PeepholeLSTM): ...


class PrepackedCoupledLSTM(PrepackedRecurrence, CoupledLSTM): ...


class PrepackedLiGRU(PrepackedRecurrence, LiGRU): ...


class PrepackedLSTM(PrepackedLayer, LSTM): ...


class PrepackedGRU(PrepackedLayer, GRU): ...


class PrepackedRNN(PrepackedLayer, RNN): ...


class PrepackedLSTMCell(PrepackedCell, LSTMCell): ...


class PrepackedGRUCell(PrepackedCell, GRUCell): ...


class PrepackedRNNCell(PrepackedCell, RNNCell): ...


_PACKED: dict[type[nn.Module], type[nn.Module]] = {
    LSTM: PrepackedLSTM,
    GRU: PrepackedGRU,
    RNN: PrepackedRNN,
    LSTMCell: PrepackedLSTMCell,
    GRUCell: PrepackedGRUCell,
    RNNCell: PrepackedRNNCell,
    Recurrence: PrepackedRecurrence,
    PeepholeLSTM: PrepackedPeepholeLSTM,
    CoupledLSTM: PrepackedCoupledLSTM,
    LiGRU: PrepackedLiGRU,
}


def prepack(model: Model, weights: str | None = None) -> Model:
    """Copies a layer, cell or model and packs its recurrent weights once, for inference on a CPU.

    Input, output and state keep the layer's dtype. docs/serving.md has the speed and error of each form.

    Args:
        model: a module in eval mode: a recurrent module of this package or of torch.nn, or a model that
            contains some. It stays unchanged.
        weights: None keeps their dtype. For float32 layers also
            "int8": products of 8 bits, with a scale for each row of the weights, the input and the state;
            rounding errors are at most 1/254 of the row's largest magnitude; or
            "bfloat16": products of bfloat16, with a relative rounding error of at most 2^-9. Only on
            processors with such products.

    Returns:
        The copy. Its recurrent modules have no parameters: prepack again after changing the original.

    Raises:
        ValueError: unknown ``weights``, or "bfloat16" on a processor where it would be no faster; a module
            in training mode; a recurrent module that cannot be packed, or no recurrent module.

    Example:
        >>> import torch, fastrnn
        >>> served = fastrnn.prepack(fastrnn.GRU(3, 4).eval(), weights="int8")
        >>> output, state = served(torch.randn(1, 1, 3))
    """
    if weights not in (None, "float32", "bfloat16", "int8"):
        raise ValueError(f"weights should be None, 'float32', 'bfloat16' or 'int8', got: {weights!r}")
    if any(module.training for module in model.modules()):
        raise ValueError("prepack is for inference: call eval() on the model first")
    twin, report = accelerate(copy.deepcopy(model))
    if report.left:
        name, reason = next(iter(report.left.items()))
        raise ValueError(f"{name or 'the model'} cannot be packed: {reason}")
    layers = [
        (n, m) for n, m in twin.named_modules() if isinstance(m, Recurrent | RecurrentCell | Recurrence)
    ]
    layers = [(name, module) for name, module in layers if not isinstance(module, Prepacked)]
    if not layers:
        raise ValueError("there is no recurrent layer to pack in this model")
    for name, module in layers:
        _become_packed(name, module, weights)
    return twin


def _become_packed(name: str, module: Any, weights: str | None) -> None:
    if isinstance(module, Recurrence):
        cell, has_kernels, layers = module._name, module._no_kernels is None, module._layer_weights()
        used = [module._parameters.get(name) for names in module._names for name in names]
    else:
        cell, has_kernels = module.cell, module.cell in ops.CELLS
        layers = [module._weights()] if isinstance(module, RecurrentCell) else module._layer_weights()
        used = [t for layer in layers for t in layer if t is not None]
    if not has_kernels:
        raise ValueError(
            f"{name or 'the layer'} ({type(module).__name__}) cannot be packed: it has no kernels"
        )
    if type(module) not in _PACKED or not all(isinstance(t, nn.Parameter) for t in used):
        raise ValueError(
            f"{name or 'the layer'} ({type(module).__name__}) cannot be packed: its weights are computed "
            "or its class is not this package's own; remove parametrizations and pruning first"
        )
    dtype, device = layers[0][0].dtype, layers[0][0].device
    if device.type != "cpu" or dtype not in routing.KERNEL_DTYPES:
        raise ValueError(
            f"{name or 'the layer'} cannot be packed: there are no kernels for {dtype} on {device}"
        )
    chosen = weights or str(dtype).removeprefix("torch.")
    if dtype != torch.float32 and weights is not None:
        raise ValueError(f"only float32 layers can be packed as {weights}; {name or 'this one'} is {dtype}")
    module.packed = [_pack(cell, layer, chosen) for layer in layers]
    module.weights, module.dtype = chosen, dtype
    module._parameters.clear()
    module.__class__ = _PACKED[type(module)]
    if isinstance(module, Recurrent):
        module._flat_weights, module._flat_weights_names, module._all_weights = [], [], []
