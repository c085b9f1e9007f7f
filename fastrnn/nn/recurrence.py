"""A layer of any declared cell."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _torch, functional, ops, routing
from fastrnn.cells.declaration import Cell, CellError
from fastrnn.cells.plugin import register
from fastrnn.sequence import ALL_STEPS, Sequence, check_masks

_ARGUMENTS = ("self", "input", "hx", "lengths", "reset", "states")
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Call(NamedTuple):
    """A forward call in the kernels' layout."""

    x: Tensor  # [T, B, I], or [rows, I] packed
    h0: Tensor  # [layers * directions, B, H]
    c0: Tensor | None  # [layers * directions, B, K * H], the states behind h side by side
    # w_ih, w_hh, b_ih, b_hh, no projection; the cell's unit weights [W * H] and step inputs [.., E * H]
    weights: list[Any]
    sequence: Sequence


class Recurrence(nn.Module):
    """A recurrent layer of a declared cell. It does what `fastrnn.LSTM` does, except ``proj_size``.

    The cell is differentiated and compiled for this processor once, and kept in a cache. If it can't be
    compiled, or there is no C++ compiler, the layer computes the same with torch's operators, slowly, step
    by step; `fastrnn.explain` tells the reason.

    Args:
        cell: a cell, declared by `fastrnn.cell`.
        input_size: I, the size of the input.
        hidden_size: H, the number of units.
        num_layers: number of layers; each takes the output of the one before as input.
        bias: whether the gates have biases.
        batch_first: input and output are [B, T, ..] instead of [T, B, ..].
        dropout: probability of zeroing a number between layers, in training.
        bidirectional: run each layer in both directions and concatenate their outputs.
        memory: what forward keeps for backward. "full" keeps what the cell's derivative needs of every
            step; "lean" keeps only the states and computes the rest again, for long sequences.
        device, dtype: of the parameters.

    Parameters are named as torch.nn's: ``weight_ih_l0`` [G * H, I], ``weight_hh_l0`` [G * H, H],
    ``bias_ih_l0`` and ``bias_hh_l0`` [G * H], with the gates' rows in the order of the cell's signature,
    and one for each of the cell's weights, such as ``p_i_l0`` [H]. Names of reverse directions end in
    ``_reverse``. Initial values are uniform between -1/sqrt(H) and 1/sqrt(H).

    ``forward(input, hx=None, *, lengths=None, reset=None, states=False, **inputs)``:

        input: [T, B, I], [B, T, I] with ``batch_first``, [T, I] unbatched, or a PackedSequence.
        hx: initial states [layers * directions, B, H]: a tensor for a cell of one state, else a tuple; zero
            if None.
        lengths: int [B], or a list. Sequence b ends after ``lengths[b]`` steps: its output is zero beyond.
        reset: bool [T, B], or [B, T] with ``batch_first``. All states are zero before the marked steps.
        states: return a third value, a list with the states after every step of each layer.
        inputs: the cell's step inputs by name: [T, B, H], laid out as the input is; [B, H] for the same
            numbers at every step; [H] for the same in every sequence too; or a list of these, one for each
            layer and direction. Dimensions of size 1 are broadcast.

    forward returns the output [T, B, directions * H], laid out as the input, and the last states, as hx.

    Raises:
        CellError: ``cell`` is not a declared cell.
        ValueError: sizes or options are invalid; in a call, the arguments don't fit.
        TypeError: a call misses one of the cell's inputs, or has an unknown one.

    Example:
        >>> import torch, fastrnn
        >>> @fastrnn.cell
        ... def minimal_gated(f, n_x, n_h, h):
        ...     f = torch.sigmoid(f)
        ...     return (1 - f) * h + f * torch.tanh(n_x + f * n_h)
        >>> layer = fastrnn.Recurrence(minimal_gated, 10, 20, num_layers=2)
        >>> output, h_n = layer(torch.randn(5, 3, 10))
        >>> output.shape
        torch.Size([5, 3, 20])
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        memory: str = "full",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(cell, Cell):
            raise CellError(f"got {cell!r}, expected a cell; declare it by @fastrnn.cell")
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} should be a positive integer, got {size!r}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout should be from 0 to 1, got {dropout!r}")
        if memory not in ("full", "lean"):
            raise ValueError(f"memory should be 'full' or 'lean', got {memory!r}")
        if clash := set(cell.inputs).intersection(_ARGUMENTS):
            raise CellError(f"{cell.__name__} names an input {clash.pop()!r}, as an argument of forward")
        if clash := set(cell.weights).intersection(_WEIGHTS):
            raise CellError(f"{cell.__name__} names a weight {clash.pop()!r}, as the layer's own weights")
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.memory = bidirectional, memory
        self._register()
        self._names: list[list[str]] = []  # of the parameters of each layer and direction
        gates = len(cell.gates) * hidden_size
        for layer, suffix in self._directions():
            width = input_size if layer == 0 else hidden_size * (2 if bidirectional else 1)
            shapes: dict[str, tuple[int, ...]] = {}
            shapes |= {"weight_ih": (gates, width), "weight_hh": (gates, hidden_size)}
            if bias:
                shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
            shapes |= dict.fromkeys(cell.weights, (hidden_size,))
            self._names.append([name + suffix for name in shapes])
            for name, shape in shapes.items():
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(name + suffix, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters anew, uniform between -1/sqrt(H) and 1/sqrt(H)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        states: bool = False,
        **inputs: Any,
    ) -> Any:
        call, path = self._plan(input, hx, lengths, reset, inputs)
        y, h_n, c_n, steps = functional.recurrent(
            self._name,
            call.x,
            call.h0,
            call.c0,
            call.weights,
            directions=2 if self.bidirectional else 1,
            dropout=self.dropout if self.training else 0.0,
            sequence=call.sequence,
            keep=ops.KEEP_C if self.memory == "lean" else ops.KEEP_SLOTS,
            states=states,
            layer=self._layer_function(path),
        )
        output, last = self._restore(input, y), self._last_states(input, h_n, c_n)
        if not states:
            return output, last
        return output, last, [self._every_state(input, *step) for step in steps]

    def _plan(
        self, input: Any, hx: Any, lengths: Any, reset: Any, inputs: dict[str, Any]
    ) -> tuple[Call, routing.Path]:
        """The call in the kernels' layout, and the path that serves it."""
        weights = self._layer_weights()
        dtype, device = self._like(weights)
        x, sequence, order = self._input(input, lengths, reset)
        batch = x.shape[1] if sequence.batch_sizes is None else int(sequence.batch_sizes[0])
        states = self._initial_states(input, hx, batch)
        if states is not None and order is not None:
            states = [s.index_select(1, order) for s in states]
        given = self._step_inputs(input, inputs, x, sequence, batch)
        autocast = self._autocast_dtype(x, sequence) if _torch.autocast_enabled() else None
        for t in (x, *(states or ()), *given):
            if t is None or (t.dtype == dtype and t.device == device):
                continue
            if t.device != device or not (autocast and t.is_floating_point()):
                raise ValueError(f"got a tensor of {t.dtype} on {t.device}, expected {dtype} on {device}")
        h0, c0 = self._joined_states(states, x, batch)
        layers = self._with_inputs(weights, given)
        if autocast:
            x, h0, c0 = x.to(autocast), h0.to(autocast), None if c0 is None else c0.to(autocast)
            layers = self._cast(layers, autocast)
        return Call(x, h0, c0, layers, sequence), self._path(x)

    def _like(self, weights: list[Any]) -> tuple[torch.dtype, torch.device]:
        """The dtype and device that the input must have."""
        w_ih = weights[0][0]
        return w_ih.dtype, w_ih.device

    def _autocast_dtype(self, x: Tensor, sequence: Sequence) -> torch.dtype | None:
        packed = sequence.batch_sizes is not None
        return routing.autocast_dtype(self._name, x, packed, projected=False)

    def _with_inputs(self, weights: list[Any], inputs: list[Tensor | None]) -> list[Any]:
        return [(*w, i) for w, i in zip(weights, inputs, strict=True)]

    def _cast(self, layers: list[Any], dtype: torch.dtype) -> list[Any]:
        return [tuple(None if t is None else t.to(dtype) for t in layer) for layer in layers]

    def _layer_function(self, path: routing.Path) -> functional.LayerFunction:
        return functional.LAYERS[path.name]

    def _path(self, x: Tensor) -> routing.Path:
        if self._no_kernels is not None:
            return routing.Path("reference", self._no_kernels)
        if x.is_cuda:
            return routing.Path("reference", "declared cells are compiled for CPUs only")
        path = routing.choose(x)
        return path if path.name == "fused" else routing.Path("reference", path.reason)

    def _input(self, input: Any, lengths: Any, reset: Any) -> tuple[Tensor, Sequence, Tensor | None]:
        """The input as [T, B, I] or packed, its masks, and the order of a packed batch's sequences."""
        if isinstance(input, PackedSequence):
            if lengths is not None or reset is not None:
                raise ValueError("lengths and reset go with a padded batch, not with a PackedSequence")
            x, sequence, order = input.data, Sequence(input.batch_sizes), input.sorted_indices
        else:
            if not isinstance(input, Tensor) or input.dim() not in (2, 3):
                got = f"a {type(input).__name__}"
                if isinstance(input, Tensor):
                    got = f"{input.dim()} dimensions"
                raise ValueError(f"got {got} as input, expected a tensor of 2 or 3, or a PackedSequence")
            unbatched = input.dim() == 2
            x, order = self._by_step(input), None
            sequence = ALL_STEPS
            if lengths is not None or reset is not None:
                sequence = check_masks(x, unbatched, self.batch_first, lengths, reset)
        if x.shape[-1] != self.input_size:
            raise ValueError(f"got an input of size {x.shape[-1]}, expected input_size={self.input_size}")
        if x.shape[0] == 0:
            raise ValueError("got a sequence of no steps, expected at least one")
        return x, sequence, order

    def _by_step(self, t: Tensor) -> Tensor:
        """A padded tensor, as the user lays it out, as [T, B, ..]."""
        if t.dim() == 2:
            return t.unsqueeze(1)
        return t.transpose(0, 1) if self.batch_first else t

    def _initial_states(self, input: Any, hx: Any, batch: int) -> list[Tensor] | None:
        """Checked, [layers * directions, B, H] each; None for zeros."""
        if hx is None:
            return None
        names = self.cell.states
        states = [hx] if isinstance(hx, Tensor) else hx
        right = isinstance(states, (tuple, list)) and all(isinstance(s, Tensor) for s in states)
        if not right or len(states) != len(names):
            what = "a tensor" if len(names) == 1 else f"a tuple of {len(names)} tensors"
            got = f"{len(states)}" if right else f"a {type(hx).__name__}"
            raise ValueError(f"got {got} for hx, expected {what}: {', '.join(names)}")
        unbatched = isinstance(input, Tensor) and input.dim() == 2
        count = self.num_layers * (2 if self.bidirectional else 1)
        shape = (count, self.hidden_size) if unbatched else (count, batch, self.hidden_size)
        for name, s in zip(names, states, strict=True):
            if s.shape != shape:
                raise ValueError(f"got hx of shape {tuple(s.shape)} for {name}, expected {shape}")
        return [s.unsqueeze(1) if unbatched else s for s in states]

    def _joined_states(
        self, states: list[Tensor] | None, x: Tensor, batch: int
    ) -> tuple[Tensor, Tensor | None]:
        own = len(self.cell.states) - 1
        if states is None:
            count, H = self.num_layers * (2 if self.bidirectional else 1), self.hidden_size
            return x.new_zeros(count, batch, H), x.new_zeros(count, batch, own * H) if own else None
        return states[0], _side_by_side(states[1:])

    def _step_inputs(
        self, input: Any, inputs: dict[str, Any], x: Tensor, sequence: Sequence, batch: int
    ) -> list[Tensor | None]:
        """Each layer and direction's step inputs side by side, [T, B, E * H] or [rows, E * H] packed."""
        names = self.cell.inputs
        if set(inputs) != set(names):
            wrong = ", ".join(sorted(set(inputs) ^ set(names)))
            which = "misses" if set(names) - set(inputs) else "has no"
            takes = ", ".join(names) or "none"
            raise TypeError(f"{self.cell.__name__} {which} input {wrong}; it takes {takes}")
        count = self.num_layers * (2 if self.bidirectional else 1)
        if not names:
            return [None] * count
        by_name = [self._of_layers(n, inputs[n], input, x, sequence, batch, count) for n in names]
        if all(len(set(map(id, of_layers))) == 1 for of_layers in by_name):
            return [_side_by_side([of_layers[0] for of_layers in by_name])] * count
        return [_side_by_side([of_layers[k] for of_layers in by_name]) for k in range(count)]

    def _of_layers(
        self, name: str, given: Any, input: Any, x: Tensor, sequence: Sequence, batch: int, count: int
    ) -> list[Tensor]:
        """An input of each layer and direction, in full shape."""
        if isinstance(given, (Tensor, PackedSequence)):
            return [self._in_full(name, given, input, x, sequence, batch)] * count
        if not isinstance(given, (tuple, list)) or len(given) != count:
            got = f"{len(given)}" if isinstance(given, (tuple, list)) else f"a {type(given).__name__}"
            raise ValueError(
                f"got {got} for {name}, expected a tensor, or {count}: one for each layer and direction"
            )
        return [self._in_full(name, g, input, x, sequence, batch) for g in given]

    def _in_full(
        self, name: str, given: Any, input: Any, x: Tensor, sequence: Sequence, batch: int
    ) -> Tensor:
        """An input as [T, B, H], or [rows, H] packed; without a copy unless it must be sorted."""
        full = (*x.shape[:-1], self.hidden_size)
        t = given.data if isinstance(given, PackedSequence) else given
        try:
            if isinstance(given, PackedSequence) or t.dim() == 1:
                return t.expand(full)
            if sequence.batch_sizes is not None:
                return _rows_of(t, input, sequence.batch_sizes).expand(full)
            if input.dim() == 3 and t.dim() == 2:
                return t.expand(full)
            return self._by_step(t).expand(full)
        except RuntimeError:
            H = self.hidden_size
            raise ValueError(
                f"got {name} of shape {tuple(t.shape)}, expected {H} numbers for each step and sequence of "
                f"the input, [{batch}, {H}] or [{H}]"
            ) from None

    def _layer_weights(self) -> list[Any]:
        """Of each layer and direction: weights, biases, no projection, and unit weights side by side."""
        own = self._parameters
        layers: list[Any] = []
        for names in self._names:
            # Attribute access on a module is slow; what is not a parameter has replaced one.
            found: list[Any] = [own[name] if name in own else getattr(self, name) for name in names]
            w_ih, w_hh, *others = found
            b_ih, b_hh = others[:2] if self.bias else (None, None)
            layers.append((w_ih, w_hh, b_ih, b_hh, None, _side_by_side(others[2 if self.bias else 0 :])))
        return layers

    def _directions(self) -> list[tuple[int, str]]:
        """Each layer's number and the ending of its parameters' names, for each direction."""
        endings = ("", "_reverse") if self.bidirectional else ("",)
        return [(i, f"_l{i}{ending}") for i in range(self.num_layers) for ending in endings]

    def _last_states(self, input: Any, h_n: Tensor, c_n: Tensor | None) -> Any:
        states = self._split(h_n, c_n)
        if isinstance(input, PackedSequence):
            if input.unsorted_indices is not None:
                states = [s.index_select(1, input.unsorted_indices) for s in states]
        elif input.dim() == 2:
            states = [s.squeeze(1) for s in states]
        return states[0] if len(states) == 1 else tuple(states)

    def _every_state(self, input: Any, h: Tensor, c: Tensor | None) -> Any:
        """The states after every step of one layer, laid out as the output is."""
        directions = 2 if self.bidirectional else 1
        if c is not None and directions == 2:
            # From the private states of each direction to the directions of each state.
            by_direction = c.unflatten(-1, (2, len(self.cell.states) - 1, self.hidden_size))
            c = by_direction.transpose(-2, -3).flatten(-3)
        states = [self._restore(input, s) for s in self._split(h, c)]
        return states[0] if len(states) == 1 else tuple(states)

    def _split(self, h: Tensor, c: Tensor | None) -> list[Tensor]:
        return [h] if c is None else [h, *c.chunk(len(self.cell.states) - 1, -1)]

    def _restore(self, input: Any, y: Tensor) -> Any:
        """A sequence in the user's layout."""
        if isinstance(input, PackedSequence):
            return PackedSequence(y, *input[1:])
        if input.dim() == 2:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def _register(self) -> None:
        self._name, self._no_kernels = register(self.cell)

    # How the cell is called and whether it could be compiled is this process's own.
    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_name"], state["_no_kernels"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register()

    def extra_repr(self) -> str:
        parts = [self.cell.__name__, str(self.input_size), str(self.hidden_size)]
        for name, default in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
            ("memory", "full"),
        ):
            if (value := getattr(self, name)) != default:
                parts.append(f"{name}={value}")
        return ", ".join(parts)


def _side_by_side(tensors: list[Tensor]) -> Tensor | None:
    if not tensors:
        return None
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, -1)


def _rows_of(t: Tensor, input: PackedSequence, batch_sizes: Tensor) -> Tensor:
    """[B, H] of sequences in the user's order as the rows of a packed batch."""
    if t.dim() != 2:
        raise RuntimeError
    batch = int(batch_sizes[0])
    order = input.sorted_indices
    if order is None:
        order = torch.arange(batch, device=t.device)
    return t.expand(batch, t.shape[1]).index_select(0, torch.cat([order[:n] for n in batch_sizes.tolist()]))
