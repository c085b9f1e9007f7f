"""The forward of LSTM, GRU and RNN: arguments to the kernels' layout, the loop over layers, results back.

Arguments that the kernels cannot serve go to torch.nn's forward, which computes them or raises its own
error. Weights are looked up by name at every call, so that functional_call, parametrizations and pruning
take effect.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _torch, drivers, functional, ops, routing, torch_driver, tuned
from fastrnn.nn.unsupported import Limits
from fastrnn.sequence import ALL_STEPS, Sequence, check_masks

State = tuple[Tensor, Tensor | None]

CELL_OF_MODE = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


class Call(NamedTuple):
    """A forward call in the kernels' layout."""

    x: Tensor  # [T, B, I], or [rows, I] packed
    h0: Tensor | None  # [layers * directions, B, P]
    c0: Tensor | None  # [layers * directions, B, H]
    weights: list[functional.LayerWeights]
    sequence: Sequence
    unbatched: bool

    @property
    def steps(self) -> int:
        sizes = self.sequence.batch_sizes
        return self.x.shape[0] if sizes is None else len(sizes)

    @property
    def batch(self) -> int:
        return _batch(self.x, self.sequence.batch_sizes)


def pair(hx: Any) -> State | None:
    """hx as h0 and c0, or None if it is not two tensors."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        return None
    h0, c0 = hx
    return (h0, c0) if isinstance(h0, Tensor) and isinstance(c0, Tensor) else None


class Recurrent(Limits, nn.RNNBase):
    """Mixin that gives one of torch.nn's recurrent layers the forward of this package."""

    # What forward keeps for backward: "full" keeps the gates; "lean" keeps h and c only, and backward
    # computes the gates again.
    memory: str = "full"
    # The weights are parameters, as torch.nn's are; not panels.
    _torchs_weights = True

    # device and dtype are named since torch.nn.utils.skip_init looks for them in the signature.
    def __init__(
        self, *args: Any, memory: str = "full", device: Any = None, dtype: Any = None, **kwargs: Any
    ) -> None:
        if memory not in ("full", "lean"):
            raise ValueError(f"memory should be 'full' or 'lean', got: {memory!r}")
        for name, value in (("device", device), ("dtype", dtype)):
            if value is not None:
                kwargs[name] = value
        super().__init__(*args, **kwargs)
        if memory != "full":
            self.memory = memory

    @property
    def cell(self) -> str:
        """The name of this layer's cell in the registry."""
        return CELL_OF_MODE[self.mode]

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | list[int] | None = None,
        reset: Tensor | None = None,
        states: bool = False,
    ) -> Any:
        call, path = self._plan(input, hx, lengths, reset, states)
        if call is None:
            return super().forward(input, hx)
        if path.driver == "torch":
            return self._by_torchs_kernels(input, call)
        x, h0, c0, weights, sequence, unbatched = call
        # Without autocast all are of one dtype.
        autocast = _torch.autocast_enabled()
        if autocast:
            x, h0, c0, weights = self._cast(self._computes_in(call), x, h0, c0, weights)
        if h0 is None:
            h0, c0 = self._zeros(x, _batch(x, sequence.batch_sizes))
        recurrent: Any = _recurrent_without_autocast if autocast else functional.recurrent
        try:
            y, h_n, c_n, steps = recurrent(
                self.cell,
                x,
                h0,
                c0,
                weights,
                directions=self._directions,
                dropout=self.dropout if self.training else 0.0,
                sequence=sequence,
                keep=ops.KEEP_C if self.memory == "lean" else ops.KEEP_SLOTS,
                states=states,
                layer=self._layer_function(path),
            )
        except ValueError as error:
            # About weights: torch.nn raises RuntimeError for its own.
            if not self._torchs_weights or sequence.lengths is not None or sequence.batch_sizes is not None:
                raise
            raise RuntimeError(str(error)) from None
        if autocast:
            y, h_n, c_n, steps = self._as_autocast_returns(call, y, h_n, c_n, steps)
        output, state = self._restore_layout(input, y, h_n, c_n, unbatched)
        if not states:
            return output, state
        return output, state, [self._restore_steps(input, h, c, unbatched) for h, c in steps]

    def _by_torchs_kernels(self, input: Any, call: Call) -> Any:
        x, h0, c0, weights, sequence, unbatched = call
        dtype = self._computes_in(call) if _torch.autocast_enabled() else None
        # A compiled graph runs without autocast.
        casts = torch.compiler.is_compiling()
        if casts and dtype is not None:
            x, h0, c0, weights = self._cast(dtype, x, h0, c0, weights)
        if h0 is None:
            h0, c0 = self._zeros(x, call.batch)
        y, h_n, c_n = torch_driver.recurrent(
            self.cell,
            x,
            h0,
            c0,
            weights,
            directions=self._directions,
            dropout=self.dropout if self.training else 0.0,
            sequence=sequence,
            dtype=dtype,
        )
        if casts:
            y, h_n, c_n, _ = self._as_autocast_returns(call, y, h_n, c_n, [])
        return self._restore_layout(input, y, h_n, c_n, unbatched)

    def _as_autocast_returns(
        self, call: Call, y: Tensor, h_n: Tensor, c_n: Tensor | None, steps: list[State]
    ) -> tuple[Tensor, Tensor, Tensor | None, list[State]]:
        """Results in the dtypes that torch.nn's layer returns under autocast."""
        given = call.x if call.h0 is None else call.h0
        results = routing.autocast_results(*self._kind(call), given.dtype)
        if results is None:
            return y, h_n, c_n, steps
        of_h, of_c = results
        return y.to(of_h), h_n.to(of_h), _to(of_c, c_n), [(h.to(of_h), _to(of_c, c)) for h, c in steps]

    def _plan(
        self, input: Any, hx: Any, lengths: Any, reset: Any, states: bool
    ) -> tuple[Call | None, routing.Path]:
        """The call in the kernels' layout and the path that serves it; no call if torch.nn serves it."""
        torch_has_it = lengths is None and reset is None and not states and self.cell in ops.CELLS
        if torch_has_it and not torch.compiler.is_compiling() and _torch.tracing():
            return None, routing.TRACING
        call = self._arrange(input, hx, lengths, reset)
        if call is None:
            return None, routing.MISFIT
        path = routing.choose(call.x, self.cell)
        if torch_has_it and _torch.per_sample(call.weights):
            path = routing.PER_SAMPLE
        elif drivers.on_cpu or not call.x.is_cpu:
            path = self._choose_driver(path, call, torch_has_it)
        if path.name == "torch" and path.driver is None:
            if torch_has_it:
                return None, path
            path = routing.by_reference(path)
        return call, path

    def _choose_driver(self, path: routing.Path, call: Call, torch_has_it: bool) -> routing.Path:
        torch_has_it = torch_has_it and self.memory == "full" and self.cell in torch_driver.CELLS
        dtype = self._computes_in(call) if _torch.autocast_enabled() else call.x.dtype
        key = functools.partial(self._key, call, dtype)
        return drivers.choose(path, self.cell, call.x, call.steps, dtype, torch_has_it, key)

    def _key(self, call: Call, dtype: torch.dtype) -> tuple[Any, ...]:
        """A tuned.Key of the call, as a tuple, which takes a third of the time."""
        x, weights = call.x, call.weights[0]
        return (
            tuned.cpu_name() if x.is_cpu else tuned.device_name(x.device),
            self.cell,
            tuned.dtype_name(dtype),
            self.num_layers,
            self._directions,
            self.input_size,
            self.hidden_size,
            self.proj_size,
            call.sequence.batch_sizes is not None,
            functional.needs_gradient((x, call.h0, call.c0, *weights)),
            tuned.bucket(call.batch),
            tuned.bucket(call.steps),
        )

    def _kind(self, call: Call) -> tuple[str, Tensor, bool, bool]:
        """What decides how torch.nn runs the call under autocast."""
        return self.cell, call.x, call.sequence.batch_sizes is not None, self.proj_size > 0

    def _computes_in(self, call: Call) -> torch.dtype:
        return routing.autocast_dtype(*self._kind(call)) or self._like(call.weights)[0]

    def _layer_weights(self) -> list[functional.LayerWeights]:
        """Parameters of every layer and direction as functional.LayerWeights."""
        own = self._parameters
        layers: list[functional.LayerWeights] = []
        for names in self._all_weights:
            # Attribute access on a module is slow; what is not a parameter has replaced one.
            found: list[Any] = [own[name] if name in own else getattr(self, name) for name in names]
            w_hr = found.pop() if self.proj_size > 0 else None
            b_ih, b_hh = found[2:] if self.bias else (None, None)
            layers.append((found[0], found[1], b_ih, b_hh, w_hr))
        return layers

    @staticmethod
    def _cast(
        dtype: torch.dtype,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: list[functional.LayerWeights],
    ) -> tuple[Tensor, Tensor | None, Tensor | None, list[functional.LayerWeights]]:
        cast_weights: Any = [tuple(_to(dtype, w) for w in layer) for layer in weights]
        return x.to(dtype), _to(dtype, h0), _to(dtype, c0), cast_weights

    def _zeros(self, x: Tensor, batch: int) -> tuple[Tensor, Tensor | None]:
        count = self.num_layers * self._directions
        h0 = x.new_zeros(count, batch, self.proj_size or self.hidden_size)
        has_c = self.cell in ops.CELLS and ops.CELLS[self.cell]["has_c"]
        return h0, x.new_zeros(count, batch, self.hidden_size) if has_c else None

    def _split_state(self, hx: Any) -> State | None:
        """hx as h0 and c0 (None for cells without c), or None if hx is no state of this layer."""
        return (hx, None) if isinstance(hx, Tensor) else None

    def _join_state(self, h_n: Tensor, c_n: Tensor | None) -> Any:
        return h_n

    def _arrange(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> Call | None:
        """The call in the kernels' layout, or None if torch.nn must serve it."""
        if isinstance(input, PackedSequence):
            if lengths is not None or reset is not None:
                raise ValueError("lengths and reset go with a padded batch, not with a PackedSequence")
            return self._arrange_packed(input, hx)
        if not isinstance(input, Tensor):
            return None
        if input.layout is not torch.strided or input.is_nested:
            kind = "nested" if input.is_nested else str(input.layout).removeprefix("torch.")
            raise ValueError(
                f"input should be a dense tensor or a PackedSequence, got a {kind} one; of sequences of "
                "different lengths, pass a padded tensor and lengths"
            )
        if input.dim() not in (2, 3):
            return None
        unbatched = input.dim() == 2
        x = input.unsqueeze(1) if unbatched else input
        if self.batch_first and not unbatched:
            x = x.transpose(0, 1)
        h0: Tensor | None = None
        c0: Tensor | None = None
        if hx is not None:
            states = self._split_state(hx)
            if states is None:
                return None
            h0, c0 = states
            if unbatched:
                if any(state is not None and state.dim() != 2 for state in states):
                    return None
                h0 = h0.unsqueeze(1)
                c0 = None if c0 is None else c0.unsqueeze(1)
        weights = self._layer_weights()
        if x.shape[0] == 0 or not self._fits(x, h0, c0, weights, x.shape[1]):
            return None
        sequence = ALL_STEPS
        if lengths is not None or reset is not None:
            sequence = check_masks(x, unbatched, self.batch_first, lengths, reset)
        return Call(x, h0, c0, weights, sequence, unbatched)

    def _arrange_packed(self, input: PackedSequence, hx: Any) -> Call | None:
        x, batch_sizes, order, _ = input
        h0: Tensor | None = None
        c0: Tensor | None = None
        if hx is not None:
            if self._split_state(hx) is None:
                return None
            h0, c0 = self._split_state(self.permute_hidden(hx, order))  # type: ignore[misc]
        weights = self._layer_weights()
        if not self._fits(x, h0, c0, weights, _batch(x, batch_sizes)):
            # torch.nn.LSTM does not check a packed batch, and its kernels then read out of bounds.
            self._update_flat_weights()
            if hx is None:
                self.check_input(x, batch_sizes)
            else:
                self.check_forward_args(x, self._join_state(h0, c0), batch_sizes)  # type: ignore[arg-type]
            if _torch.autocast_enabled():
                return None
            _check_alike(x, h0, c0)
        return Call(x, h0, c0, weights, Sequence(batch_sizes), False)

    def _fits(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: list[functional.LayerWeights],
        batch: int,
    ) -> bool:
        """The kernels serve these sizes, dtypes and devices."""
        dtype, device = self._like(weights)
        if x.shape[-1] != self.input_size or x.device != device:
            return False
        same_dtype = x.dtype == dtype
        if h0 is not None:
            count = self.num_layers * self._directions
            if h0.shape != (count, batch, self.proj_size or self.hidden_size) or h0.device != device:
                return False
            same_dtype = same_dtype and h0.dtype == dtype
            if c0 is not None:
                if c0.shape != (count, batch, self.hidden_size) or c0.device != device:
                    return False
                same_dtype = same_dtype and c0.dtype == dtype
        return same_dtype or routing.autocast_casts(dtype, *(t.dtype for t in (x, h0, c0) if t is not None))

    def _like(self, weights: list[functional.LayerWeights]) -> tuple[torch.dtype, torch.device]:
        """The dtype and device that the input must have."""
        w_ih = weights[0][0]
        return w_ih.dtype, w_ih.device

    def _layer_function(self, path: routing.Path) -> functional.LayerFunction:
        return functional.LAYERS[path.name]

    def _restore_layout(
        self, input: Any, y: Tensor, h_n: Tensor, c_n: Tensor | None, unbatched: bool
    ) -> Any:
        """Results in the user's layout."""
        output = self._restore_sequence(input, y, unbatched)
        if isinstance(input, PackedSequence):
            return output, self.permute_hidden(self._join_state(h_n, c_n), input.unsorted_indices)
        if unbatched:
            h_n = h_n.squeeze(1)
            c_n = None if c_n is None else c_n.squeeze(1)
        return output, self._join_state(h_n, c_n)

    def _restore_steps(self, input: Any, h: Tensor, c: Tensor | None, unbatched: bool) -> Any:
        """The state after every step of one layer, laid out as the output is."""
        if c is not None:
            if _torch.exporting_to_onnx():
                raise RuntimeError(
                    "ONNX's LSTM has no c of every step: export the model without states=True"
                )
            c = self._restore_sequence(input, c, unbatched)
        return self._join_state(self._restore_sequence(input, h, unbatched), c)

    def _restore_sequence(self, input: Any, y: Tensor, unbatched: bool) -> Any:
        if isinstance(input, PackedSequence):
            return PackedSequence(y, *input[1:])
        if unbatched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    # torch.nn detects replaced weights through weak references, but a tensor that has one cannot be swapped
    # (torch.__future__.set_swap_module_params_on_conversion). Its list of weights tells as much.
    def _init_flat_weights(self) -> None:
        super()._init_flat_weights()
        self._flat_weight_refs = []

    def _weights_have_changed(self) -> bool:
        if len(self._flat_weights) != len(self._flat_weights_names):
            return True
        kept = zip(self._flat_weights, self._flat_weights_names, strict=True)
        return any(getattr(self, name, None) is not weight for weight, name in kept)

    def __getstate__(self) -> dict[str, Any]:
        # torch.nn's list of weights is a cache; computed weights (of a parametrization) cannot be copied.
        state = super().__getstate__()
        state["_flat_weights"] = []
        return state

    def __setstate__(self, d: dict[str, Any]) -> None:
        super().__setstate__(d)
        self._flat_weights = [getattr(self, name, None) for name in self._flat_weights_names]
        self._flat_weight_refs = []


_torch.let_dynamo_trace(Recurrent)


def _recurrent_without_autocast(cell: str, x: Tensor, *args: Any, **options: Any) -> Any:
    """functional.recurrent on cast arguments: autocast would cast them again, or refuse to join them."""
    with routing.without_autocast(x.device.type):
        return functional.recurrent(cell, x, *args, **options)


def _to(dtype: torch.dtype, t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(dtype)


def _batch(x: Tensor, batch_sizes: Tensor | None) -> int:
    return x.shape[1] if batch_sizes is None else int(batch_sizes[0])


def _check_alike(x: Tensor, *states: Tensor | None) -> None:
    for state in states:
        if state is None:
            continue
        if state.device != x.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, found input tensor at "
                f"{x.device} and hidden tensor at {state.device}"
            )
        if state.dtype != x.dtype:
            raise RuntimeError(
                "Input and hidden tensors are not the same dtype, found input tensor with "
                f"{x.dtype} and hidden tensor with {state.dtype}"
            )
