"""Per-sample gradients of this package's layers for Opacus.

Opacus takes them from hooks, which see one input tensor and the gradient of one output tensor. `PerSample`
gives a layer that form: input, states and masks of a sample are one row, output and last states another.
Once fastrnn is imported, `opacus.validators.ModuleValidator.fix(model)` puts it around our layers.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastrnn import _torch, ops
from fastrnn._imports import after_import
from fastrnn.nn import GRU, LSTM, RNN, GRUCell, GRUResetBefore, LSTMCell, RNNCell
from fastrnn.nn.base import Recurrent
from fastrnn.sequence import check_masks


class RowsLayer(Recurrent):
    """One layer, in one or both directions, batch first, on rows.

    Each sample's input is x [T, I], h0 and c0 [directions, P or H], and one number for each step in two
    masks: the step exists; the state is zero before it. Its output is y [T, directions * P], h_n and c_n.
    """

    max_batch_len: int  # for Opacus

    def forward(self, rows: Tensor) -> Tensor:  # type: ignore[override]
        """From [B, 1, inputs] to [B, 1, outputs], or from [1, B, inputs] to [1, B, outputs]."""
        batch = rows.shape[0] * rows.shape[1]
        if batch != 1 and _torch.innermost_transform() is not None:
            raise RuntimeError(
                "Opacus takes the batch for another dimension than it is: give GradSampleModule the "
                "batch_first that the recurrent layers have"
            )
        sizes = self.state_sizes()
        steps = (rows.shape[-1] - sum(sizes)) // (self.input_size + 2)
        widths = [steps * self.input_size, *sizes, steps, steps]
        x, *states, exists, reset = rows.flatten(0, 1).split(widths, -1)
        hx = [s.unflatten(1, (self._directions, -1)).transpose(0, 1) for s in states]
        y, last = super().forward(
            x.unflatten(1, (steps, self.input_size)),
            hx if len(hx) == 2 else hx[0],
            lengths=exists.sum(-1).long(),
            reset=reset != 0,
        )
        results = (y, *(s.transpose(0, 1) for s in (last if len(hx) == 2 else [last])))
        return torch.cat([t.flatten(1) for t in results], -1).unflatten(0, rows.shape[:2])

    def state_sizes(self) -> list[int]:
        """Numbers of a sample's h, and of its c if there is one."""
        sizes = [self._directions * (self.proj_size or self.hidden_size)]
        if self.cell in ops.CELLS and ops.CELLS[self.cell]["has_c"]:
            sizes.append(self._directions * self.hidden_size)
        return sizes


class RowsLSTM(RowsLayer, LSTM): ...  # type: ignore[misc]


class RowsGRU(RowsLayer, GRU): ...  # type: ignore[misc]


class RowsRNN(RowsLayer, RNN): ...  # type: ignore[misc]


class RowsGRUResetBefore(RowsLayer, GRUResetBefore): ...  # type: ignore[misc]


_ROWS: dict[type[nn.Module], type[RowsLayer]] = {
    LSTM: RowsLSTM,
    GRU: RowsGRU,
    RNN: RowsRNN,
    GRUResetBefore: RowsGRUResetBefore,
}


def grad_sample(
    layer: RowsLayer, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """The gradient of each trained weight by each sample, [B, *weight.shape]: a grad sampler of Opacus.

    Args:
        activations: the layer's input.
        backprops: the gradient of its output.
    """
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    batch = backprops.numel() // backprops.shape[-1]
    if batch == 0:
        return {p: p.new_zeros(0, *p.shape) for p in trained.values()}
    # Opacus may have exchanged the first two dimensions, one of which is 1.
    rows, gradient = (t.reshape(batch, 1, 1, -1) for t in (activations[0], backprops))
    unhooked = _Unhooked(layer)

    def loss(weights: dict[str, Tensor], rows: Tensor, gradient: Tensor) -> Tensor:
        return (functional_call(unhooked, weights, (rows,)) * gradient).sum()

    weights = {f"layer.{name}": p.detach() for name, p in trained.items()}
    found = vmap(grad(loss), (None, 0, 0))(weights, rows, gradient)
    return {p: found[f"layer.{name}"] for name, p in trained.items()}


class _Unhooked(nn.Module):
    """A layer without the hooks of Opacus, which would count this call too."""

    def __init__(self, layer: RowsLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer.forward(rows)


class PerSample(nn.Module):
    """Wraps a layer of this package so that Opacus collects per-sample gradients of its weights.

    It computes what the layer computes, and has the same parameters and state_dict. Its ``forward`` takes a
    batch and no ``states``.

    Args:
        layer: LSTM, GRU, RNN or GRUResetBefore of this package. The wrapper shares its parameters.

    Raises:
        TypeError: the layer is another module or a subclass of one of these, or its weights are computed.

    Example:
        >>> import torch, fastrnn
        >>> from fastrnn.integrations.opacus import PerSample
        >>> layer = fastrnn.GRU(3, 4, batch_first=True)
        >>> output, h_n = PerSample(layer)(torch.randn(2, 5, 3))
    """

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        if type(layer) not in _ROWS:
            raise TypeError(f"PerSample takes fastrnn.LSTM, GRU, RNN or GRUResetBefore, got {type(layer)}")
        self.batch_first, self.dropout = layer.batch_first, layer.dropout
        self.layers: Any = nn.ModuleList(_one_layer(layer, k) for k in range(layer.num_layers))
        self.register_state_dict_post_hook(_rename_for_saving)
        self.register_load_state_dict_pre_hook(_rename_for_loading)
        self.train(layer.training)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | list[int] | None = None,
        reset: Tensor | None = None,
    ) -> Any:
        """As the layer's, for a batch, without ``states``."""
        if isinstance(input, PackedSequence):
            if lengths is not None or reset is not None:
                raise ValueError("lengths and reset go with a padded batch, not with a PackedSequence")
            x, lengths = pad_packed_sequence(input, batch_first=True)
            y, state = self._run(x, hx, lengths.to(x.device), None)
            return _packed_like(input, y, lengths), state
        if input.dim() != 3:
            raise ValueError(f"got {input.dim()}-D input, expected a batch [B, T, I] or [T, B, I]")
        if self.batch_first:
            return self._run(input, hx, lengths, reset)
        y, state = self._run(
            input.transpose(0, 1), hx, lengths, None if reset is None else reset.transpose(0, 1)
        )
        return y.transpose(0, 1), state

    def _run(self, x: Tensor, hx: Any, lengths: Any, reset: Any) -> tuple[Tensor, Any]:
        """The layers one after the other, on a padded batch, batch first."""
        batch, steps = x.shape[:2]
        self.layers[0].check_input(x, None)
        masks = self._masks(x, lengths, reset)
        states = self._initial_states(x, hx)
        last = []
        for k, layer in enumerate(self.layers):
            _expect(layer, batch)
            rows = torch.cat([t.flatten(1) for t in (x, *states[k], *masks)], -1)
            dim = 1 if self.batch_first else 0  # as Opacus expects samples, if told of batch_first
            results = layer(rows.unsqueeze(dim)).squeeze(dim)
            sizes = layer.state_sizes()
            y, *of_layer = results.split([results.shape[1] - sum(sizes), *sizes], -1)
            x = y.unflatten(1, (steps, -1))
            last.append([s.unflatten(1, (layer._directions, -1)).transpose(0, 1) for s in of_layer])
            if k < len(self.layers) - 1:
                x = dropout(x, self.dropout, self.training)
        joined = tuple(torch.cat(parts) for parts in zip(*last, strict=True))
        return x, joined if len(joined) == 2 else joined[0]

    def _masks(self, x: Tensor, lengths: Any, reset: Any) -> tuple[Tensor, Tensor]:
        """Which steps exist and before which the state is zero, [B, T] each, in x's dtype."""
        batch, steps = x.shape[:2]
        sequence = check_masks(x.transpose(0, 1), False, True, lengths, reset)
        exists, resets = x.new_ones(batch, steps), x.new_zeros(batch, steps)
        if sequence.lengths is not None:
            if x.is_cpu and not ((sequence.lengths >= 0) & (sequence.lengths <= steps)).all():
                raise ValueError(f"lengths should be from 0 to {steps}, got {sequence.lengths.tolist()}")
            exists = (torch.arange(steps, device=x.device) < sequence.lengths.unsqueeze(1)).to(x.dtype)
        if sequence.reset is not None:
            resets = sequence.reset.transpose(0, 1).to(x.dtype)
        return exists, resets

    def _initial_states(self, x: Tensor, hx: Any) -> list[list[Tensor]]:
        """h, and c if there is one, of each layer, [B, directions, P or H]."""
        batch, layer = x.shape[0], self.layers[0]
        if hx is None:
            return [[x.new_zeros(batch, size) for size in layer.state_sizes()] for _ in self.layers]
        states = layer._split_state(hx)
        if states is None:
            raise TypeError(f"got a {type(hx).__name__} as hx, expected what the layer takes")
        directions = layer._directions
        by_layer: list[list[Tensor]] = [[] for _ in self.layers]
        for state, size in zip(states, layer.state_sizes(), strict=False):
            shape = (len(self.layers) * directions, batch, size // directions)
            layer.check_hidden_size(state, shape)
            for k, of_layer in enumerate(state.split(directions)):
                by_layer[k].append(of_layer.transpose(0, 1))
        return by_layer


def _one_layer(layer: Any, k: int) -> RowsLayer:
    """The k-th layer as a layer on rows, with the same parameters."""
    directions = layer._directions
    width = layer.input_size if k == 0 else directions * (layer.proj_size or layer.hidden_size)
    flags = {name: getattr(layer, name) for name in ("bias", "bidirectional", "memory")}
    if layer.proj_size:
        flags["proj_size"] = layer.proj_size
    if isinstance(layer, RNN):
        flags["nonlinearity"] = layer.nonlinearity
    one = type(layer)(width, layer.hidden_size, batch_first=True, device="meta", **flags)
    given = layer._all_weights[k * directions : (k + 1) * directions]
    for own, names in zip(one._all_weights, given, strict=True):
        for to, name in zip(own, names, strict=True):
            if not isinstance(parameter := getattr(layer, name), nn.Parameter):
                raise TypeError(f"{name} is computed: remove parametrizations and pruning first")
            setattr(one, to, parameter)
    one.__class__ = _ROWS[type(layer)]
    return one


def _expect(layer: RowsLayer, batch: int) -> None:
    """Tells Opacus the size of the batch, which it would take from the wrong dimension."""
    if layer.training and torch.is_grad_enabled():
        waiting = getattr(layer, "activations", None)
        layer.max_batch_len = max(batch, layer.max_batch_len) if waiting else batch


def _packed_like(input: PackedSequence, y: Tensor, lengths: Tensor) -> PackedSequence:
    """y [B, T, ..] in the order of the packed input."""
    order = input.sorted_indices
    if order is not None:
        y, lengths = y.index_select(0, order), lengths.index_select(0, order.cpu())
    return PackedSequence(pack_padded_sequence(y, lengths, batch_first=True).data, *input[1:])


def _rename_for_saving(module: PerSample, state: dict[str, Any], prefix: str, _: Any) -> None:
    for inside, name in _names(module, prefix):
        state[name] = state.pop(inside)


def _rename_for_loading(module: PerSample, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for inside, name in _names(module, prefix):
        if name in state:
            state[inside] = state.pop(name)


def _names(module: PerSample, prefix: str) -> list[tuple[str, str]]:
    """Of each parameter its name in this module and in the layer that it was made from."""
    inside = [(k, name) for k, layer in enumerate(module.layers) for name, _ in layer.named_parameters()]
    return [(f"{prefix}layers.{k}.{name}", prefix + name.replace("_l0", f"_l{k}")) for k, name in inside]


def _refusal(module: nn.Module) -> str:
    name = f"fastrnn.{type(module).__name__}"
    if isinstance(module, Recurrent):
        return (
            f"Opacus's hooks see one input and one output, but {name} has its states too: "
            "opacus.validators.ModuleValidator.fix(model) puts fastrnn's PerSample around it"
        )
    return f"Opacus's hooks see one input, but {name} has its state too: use the layer of this name"


def _refuse(module: nn.Module, *_: Any) -> Any:
    raise RuntimeError(_refusal(module))


def _register_samplers(grad_sample_module: ModuleType) -> None:
    grad_sample_module.register_grad_sampler(list(_ROWS.values()))(grad_sample)
    grad_sample_module.register_grad_sampler([*_ROWS, *_CELLS])(_refuse)


def _register_validators(validators: ModuleType) -> None:
    from opacus.validators.errors import NotYetSupportedModuleError, ShouldReplaceModuleError

    def replace(module: nn.Module) -> list[Exception]:
        return [ShouldReplaceModuleError(_refusal(module))]

    def refuse(module: nn.Module) -> list[Exception]:
        return [NotYetSupportedModuleError(_refusal(module))]

    validators.register_module_validator(list(_ROWS))(replace)
    validators.register_module_fixer(list(_ROWS))(PerSample)
    validators.register_module_validator(_CELLS)(refuse)


_CELLS = [LSTMCell, GRUCell, RNNCell]


def install() -> None:
    """Registers grad samplers, validators and fixers once Opacus is imported."""
    after_import("opacus.grad_sample", _register_samplers)
    after_import("opacus.validators", _register_validators)
