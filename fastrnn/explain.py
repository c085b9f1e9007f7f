"""Which implementation would run a module on given arguments, and why."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from fastrnn import _torch, ops, routing
from fastrnn._build import build_info
from fastrnn.convert import why_not, why_unknown
from fastrnn.nn.base import Call, Recurrent, State
from fastrnn.nn.cells import RecurrentCell
from fastrnn.nn.recurrence import Recurrence


@dataclass(frozen=True)
class Explanation:
    """The answer of `explain`; printing it gives one line.

    Attributes:
        path: "fused", "reference" or "torch" (see docs/routing.md).
        reason: why this path.
        target: the CPU target of the kernels that would run, or None.
        dtype: the dtype of the computation, or None if torch.nn decides.
        driver: "torch" if torch's kernels would run inside this package's forward (see docs/routing.md),
            the driver of the CUDA kernels, or None.
        backward_driver: the same for backward.
    """

    path: str
    reason: str
    target: str | None = None
    dtype: torch.dtype | None = None
    driver: str | None = None
    backward_driver: str | None = None

    def __str__(self) -> str:
        on = f" on {self.target}" if self.target else ""
        if self.driver and self.driver != self.path:
            on = f" by the {self.driver} driver"
            if self.backward_driver != self.driver:
                on += f" ({self.backward_driver} backward)"
        in_dtype = f" in {str(self.dtype).removeprefix('torch.')}" if self.dtype else ""
        return f"{self.path}{on}{in_dtype}: {self.reason}"


@dataclass(frozen=True)
class ModelExplanation:
    """The answer of `explain` for a model; printing it gives a line for each layer and path.

    Attributes:
        layers: for each recurrent layer or cell, by its name in the model ("" is the model itself), the
            paths of its calls and how many took each; none if it was not called.
        advice: what to change, for layers called a step at a time and modules that can't be converted.

    Example:
        >>> import torch, fastrnn
        >>> rnn = fastrnn.GRU(3, 4)
        >>> model = torch.nn.ModuleDict({"rnn": rnn})
        >>> model.forward = lambda x: [rnn(step.unsqueeze(0)) for step in x]
        >>> fastrnn.explain(model, torch.zeros(5, 1, 3)).advice
        {'rnn': 'called a step at a time: give it the whole sequence if all inputs are known before'}
    """

    layers: dict[str, Counter[Explanation]] = field(default_factory=dict)
    advice: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for name, calls in self.layers.items():
            advice = f"; {self.advice[name]}" if name in self.advice else ""
            if not calls:
                lines.append(f"{name}: not called")
            for explanation, count in calls.items():
                times = "1 call" if count == 1 else f"{count} calls"
                lines.append(f"{name or '(the model)'}: {times}, {explanation}{advice}")
        lines += [f"{name}: {text}" for name, text in self.advice.items() if name not in self.layers]
        return "\n".join(lines) or "no recurrent layer"


@overload
def explain(
    module: nn.RNNBase | nn.RNNCellBase | Recurrence, *args: Any, **kwargs: Any
) -> Explanation: ...  # of one call
@overload
def explain(module: nn.Module, *args: Any, **kwargs: Any) -> ModelExplanation: ...
def explain(module: nn.Module, *args: Any, **kwargs: Any) -> Explanation | ModelExplanation:
    """Tells which path ``module(*args, **kwargs)`` would take now, and why.

    For a recurrent layer or cell, nothing is computed. If torch.nn would reject the arguments, the path is
    "torch", which raises the error. Any other model runs once on the arguments, in its current mode; its
    buffers and torch's random numbers are restored. The answer has every recurrent layer and cell inside,
    torch.nn's too.

    Example:
        >>> import torch, fastrnn
        >>> fastrnn.explain(fastrnn.GRU(3, 4), torch.zeros(5, 1, 3)).path
        'fused'
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GRU(3, 4))
        >>> print(fastrnn.explain(model, torch.zeros(5, 1, 3)))
        1: 1 call, torch: it is torch.nn.GRU: fastrnn.accelerate(model) converts it
    """
    if isinstance(module, Recurrent):
        return _explain_layer(module, *args, **kwargs)
    if isinstance(module, RecurrentCell):
        return _explain_cell(module, *args, **kwargs)
    if isinstance(module, Recurrence):
        return _explain_recurrence(module, *args, **kwargs)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _of_torchs(module)
    return _explain_model(module, *args, **kwargs)


def _explain_layer(
    module: Recurrent,
    input: Any,
    hx: Any = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    states: bool = False,
) -> Explanation:
    return _of_layer(module, input, *module._plan(input, hx, lengths, reset, states))


def _explain_cell(module: RecurrentCell, input: Any, hx: Any = None) -> Explanation:
    return _of_cell(module, input, *module._plan(input, hx, check=True))


def _of_layer(module: Recurrent, input: Any, call: Call | None, path: routing.Path) -> Explanation:
    if call is None:
        return Explanation(path.name, path.reason)
    return _explanation(path, module, call.x, call.steps, call.batch, module._computes_in(call))


def _explain_recurrence(
    module: Recurrence,
    input: Any,
    hx: Any = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    states: bool = False,
    **inputs: Any,
) -> Explanation:
    return _of_recurrence(module, input, *module._plan(input, hx, lengths, reset, inputs))


def _of_recurrence(module: Recurrence, input: Any, call: Any, path: routing.Path) -> Explanation:
    target = build_info()["cpu_target"] if path.name == "fused" and call.x.is_cpu else None
    return Explanation(path.name, path.reason, target, call.x.dtype)


def _of_cell(module: RecurrentCell, input: Any, state: State | None, path: routing.Path) -> Explanation:
    if state is None:
        return Explanation(path.name, path.reason)
    batch = input.shape[0] if input.dim() == 2 else 1
    return _explanation(path, module, input, 1, batch, module._like()[0])


def _of_torchs(module: nn.Module) -> Explanation:
    convertible = f"it is {_torchs_name(module)}: fastrnn.accelerate(model) converts it"
    return Explanation("torch", why_not(module) or convertible)


def _torchs_name(module: nn.Module) -> str:
    cls = type(module)
    return f"torch.nn.{cls.__name__}" if cls.__module__.startswith("torch.nn.") else cls.__qualname__


def _explanation(
    path: routing.Path, module: Recurrent | RecurrentCell, x: Tensor, T: int, B: int, dtype: torch.dtype
) -> Explanation:
    if path.driver == "torch":
        return Explanation(path.name, path.reason, None, dtype, "torch", "torch")
    if path.name != "fused":
        return Explanation(path.name, path.reason, None, None if path.name == "torch" else dtype)
    if x.device.type == "cpu":
        return Explanation(path.name, path.reason, build_info()["cpu_target"], dtype)
    if x.device.type != "cuda":
        return Explanation(path.name, path.reason, None, dtype)
    problem = (module.cell, T, B, module.hidden_size, getattr(module, "proj_size", 0) > 0)
    with _torch.without_transforms():  # this is no computation to be transformed
        like = torch.empty(0, dtype=dtype, device=x.device)
        (driver, reason), (other, why_other) = (ops.cuda_driver(like, *problem, b) for b in (False, True))
    if other != driver:
        reason += f"; backward: {why_other}"
    return Explanation(path.name, f"{path.reason}; {reason}", None, dtype, driver, other)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Random numbers and buffers, as running means, are afterwards what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    devices = sorted({t.get_device() for t in module.parameters() if t.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _explain_model(model: nn.Module, *args: Any, **kwargs: Any) -> ModelExplanation:
    explanation = ModelExplanation()
    layers: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase | Recurrence):
            layers[module] = name
            explanation.layers[name] = Counter()
        elif reason := why_unknown(module):
            explanation.advice[name] = reason
    watch = _Watch(layers, explanation.layers)
    with unchanged(model), watch.plans(), watch.hooks(), _uncompiled(), watch:
        model(*args, **kwargs)
    for module, name in layers.items():
        if explanation.layers[name].total() > 1 and watch.most_steps[name] == 1:
            instead = "use the layer with states=True"
            if not isinstance(module, nn.RNNCellBase):
                instead = "give it the whole sequence"
            explanation.advice[name] = f"called a step at a time: {instead} if all inputs are known before"
    return explanation


# The operators that torch.nn's layers and cells run.
_KERNELS = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_KERNELS |= {f"{name}_cell" for name in _KERNELS}

# What plans the calls of this package's modules, and explains them.
_PLANNERS: dict[type[nn.Module], Callable[..., Explanation]] = {
    Recurrent: _of_layer,
    RecurrentCell: _of_cell,
    Recurrence: _of_recurrence,
}


class _Watch(TorchFunctionMode):
    """Counts what serves the calls of layers while a model runs.

    Args:
        layers: recurrent layers and cells and their names.
        calls: what is counted, by name.
    """

    def __init__(self, layers: dict[nn.Module, str], calls: dict[str, Counter[Explanation]]) -> None:
        super().__init__()
        self.layers, self.calls = layers, calls
        self.most_steps = Counter[str]()  # of any call
        self.served_by_torch: list[nn.Module] = []  # calls from which torch's operators are expected
        self.owners: dict[int, nn.Module] = {}
        for module in layers:
            weights = [*module.parameters(), getattr(module, "_flat_weights", module)]
            self.owners |= {id(w): module for w in weights}

    def count(self, module: nn.Module, explanation: Explanation, steps: int) -> None:
        name = self.layers[module]
        self.calls[name][explanation] += 1
        self.most_steps[name] = max(self.most_steps[name], steps)

    @contextmanager
    def plans(self) -> Iterator[None]:
        """Counts the calls of this package's modules where they are planned, also those of a subclass."""
        originals: dict[Any, Any] = {cls: cls._plan for cls in _PLANNERS}  # type: ignore[attr-defined]
        for cls in originals:
            cls._plan = self._counted(originals[cls], _PLANNERS[cls])
        try:
            yield
        finally:
            for cls, original in originals.items():
                cls._plan = original

    def _counted(self, plan: Callable[..., Any], explained: Callable[..., Explanation]) -> Any:
        def _plan(module: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
            call, path = plan(module, input, *args, **kwargs)
            if module in self.layers:
                self.count(module, explained(module, input, call, path), _steps(module, input))
                if call is None or path.driver == "torch":
                    self.served_by_torch.append(module)
            return call, path

        return _plan

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Counts the calls of torch.nn's modules."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            input = args[0] if args else kwargs.get("input")
            self.count(module, _of_torchs(module), _steps(module, input))
            self.served_by_torch.append(module)

        def after(module: nn.Module, args: Any, result: Any) -> None:
            while module in self.served_by_torch:
                self.served_by_torch.remove(module)

        handles = []
        for module in self.layers:
            if not isinstance(module, tuple(_PLANNERS)):
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _KERNELS:
            owner = self._owner(args)
            if owner in self.served_by_torch:
                self.served_by_torch.remove(owner)
            elif owner is not None:
                why = f"torch.{name} is called with its weights and bypasses it: call the layer itself"
                self.count(owner, Explanation("torch", why), _steps(owner, args[0]))
        return func(*args, **(kwargs or {}))

    def _owner(self, args: tuple[Any, ...]) -> nn.Module | None:
        """The layer whose weights are among an operator's arguments."""
        for argument in args:
            for t in (argument, *argument) if isinstance(argument, list | tuple) else (argument,):
                if id(t) in self.owners:
                    return self.owners[id(t)]
        return None


def _steps(module: nn.Module, input: Any) -> int:
    if isinstance(module, nn.RNNCellBase):
        return 1
    if isinstance(input, PackedSequence):
        return len(input.batch_sizes)
    if not isinstance(input, Tensor) or input.dim() < 2:
        return 0
    return input.shape[1 if module.batch_first and input.dim() == 3 else 0]


@contextmanager
def _uncompiled() -> Iterator[None]:
    """What torch.compile has compiled runs as it was before: compiled calls don't come by here."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
