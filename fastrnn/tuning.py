"""Measures the drivers that serve a layer's calls, checks them, and remembers the fastest."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import drivers, ops, routing, tuned
from fastrnn.explain import unchanged
from fastrnn.nn.base import Recurrent
from fastrnn.tuned import DRIVERS

# As in the tests: an error above twice torch's own, plus these units in the last place, is too large.
_ULPS = 4
_LEAST_ROUNDS = 10
# Another driver than the default must be faster by this.
_LEAST_GAIN = 1.03


@dataclass(frozen=True)
class Tuned:
    """The result of one kind of call.

    Attributes:
        layer: the layer's name in the model.
        key: the kind of call that the result holds for.
        driver: the one that will run.
        us: microseconds a call, by driver; empty if it was tuned before or every driver was refused.
        out: the drivers that were refused, and why.

    Example:
        >>> import torch, fastrnn
        >>> layer, x = fastrnn.GRU(8, 16).eval(), torch.randn(5, 2, 8)
        >>> call = fastrnn.tune(layer, x, seconds=0, progress=False).calls[0]
        >>> call.key.cell, call.key.training, call.out
        ('gru', False, {})
    """

    layer: str
    key: tuned.Key
    driver: str
    us: dict[str, float] = field(default_factory=dict)
    out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        key = self.key
        what = f"{self.layer or key.cell}: {'training' if key.training else 'inference'}"
        what += f", B {tuned.sizes_of(key.B)}, T {tuned.sizes_of(key.T)}: {self.driver}"
        if not self.us and not self.out:
            return f"{what}, already tuned"
        times = ", ".join(f"{driver} {us:.0f} us" for driver, us in self.us.items()) or "not measured"
        return f"{what} ({times})" + "".join(f"; {d} is out: {why}" for d, why in self.out.items())


@dataclass(frozen=True)
class Tuning:
    """The answer of `tune`; printing it gives a line for each kind of call.

    Attributes:
        calls: the kinds of calls, as they were measured.

    Example:
        >>> import torch, fastrnn
        >>> print(fastrnn.tune(torch.nn.Linear(8, 16), torch.randn(5, 8)))
        no call has a choice of drivers
    """

    calls: list[Tuned] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.calls)) or "no call has a choice of drivers"


def tune(
    module: nn.Module,
    *inputs: Any,
    seconds: float = 1.0,
    again: bool = False,
    progress: bool = True,
    **kwargs: Any,
) -> Tuning:
    """Measures which driver is the fastest for each call of a layer, and uses it from now on.

    The drivers are this package's kernels and torch's own (docs/tuning.md). The model runs once on the
    inputs; each call of this package's layers in it is then measured with both drivers in turns: forward,
    and for layers in training mode also forward and backward together. Only a driver that keeps the
    README's rule of exactness, compared with float64, is chosen.

    The results are remembered for this machine, these versions of torch and fastrnn, and B and T between
    the same powers of two.

    Args:
        module: a layer, or a model that contains some.
        *inputs, **kwargs: what the module is called with.
        seconds: spent on each call and pass.
        again: measure also what was tuned before.
        progress: print a line on standard error for each call.

    Returns:
        The driver of each kind of call, with the times.

    Example:
        >>> import torch, fastrnn
        >>> tuning = fastrnn.tune(fastrnn.GRU(8, 16), torch.randn(5, 2, 8), seconds=0.01, progress=False)
        >>> tuning.calls[0].driver in ("torch", "fused")
        True
    """
    with torch.inference_mode(False), unchanged(module):
        results = _results_of_calls(module, inputs, kwargs, seconds, again, progress)
    found = {k: _choice(r) for k, r in results.items() if r.us}
    if found:
        tuned.add(found)
        drivers.refresh()
    return Tuning(list(results.values()))


def _results_of_calls(
    module: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    seconds: float,
    again: bool,
    progress: bool,
) -> dict[tuned.Key, Tuned]:
    calls = _calls(module, _detached(inputs), _detached(kwargs))
    results: dict[tuned.Key, Tuned] = {}
    for i, (name, layer, args, options) in enumerate(calls):
        passes = [False, True] if layer.training and _trains(layer) else [False]
        for training in passes:
            with torch.set_grad_enabled(training):
                key = _key(layer, *args, **options)
            if key is None or key in results:
                continue
            if progress:
                what = f"{name or type(layer).__name__}, {'training' if training else 'inference'}"
                print(f"fastrnn: tuning call {i + 1} of {len(calls)}: {what}", file=sys.stderr, flush=True)
            known = tuned.find(key)
            if known is not None and not again:
                results[key] = Tuned(name, key, known.driver)
            else:
                results[key] = _tuned(name, key, layer, args, options, seconds)
    return results


def _key(
    layer: Recurrent,
    input: Any,
    hx: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
    states: bool = False,
) -> tuned.Key | None:
    """What a result of the call holds for; None if not every driver serves it, or nothing is computed."""
    call = None
    for driver in DRIVERS:
        with drivers.forced(driver):
            call, path = layer._plan(input, hx, lengths, reset, states)
        if call is None or path.name != driver or call.batch == 0:
            return None
    if call is None:
        return None
    dtype = layer._computes_in(call)
    # Each driver follows torch's settings of less exact products in its own way.
    if call.x.is_cpu and dtype is torch.float32 and ops.precision(call.x) != ops.HIGHEST:
        return None
    return tuned.Key(*layer._key(call, dtype))


def _choice(result: Tuned) -> tuned.Choice:
    return tuned.Choice(result.driver, max(result.us.values()) / result.us[result.driver])


def _trains(layer: nn.Module) -> bool:
    return any(p.requires_grad and not p.is_inference() for p in layer.parameters())


Calls = list[tuple[str, Recurrent, tuple[Any, ...], dict[str, Any]]]


def _calls(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Calls:
    """The calls of recurrent layers, when the module runs on the inputs."""
    if isinstance(module, Recurrent):
        return [("", module, inputs, kwargs)]
    calls: Calls = []
    names = {layer: name for name, layer in module.named_modules() if isinstance(layer, Recurrent)}

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, Recurrent)
        calls.append((names[layer], layer, _detached(args), _detached(kwargs)))

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in names]
    try:
        with torch.enable_grad():
            module(*inputs, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _detached(value: Any) -> Any:
    """Leaves of a graph to come. A tensor of inference mode can't be one, so it is copied."""

    def leaf(t: Tensor) -> Tensor:
        return (t.clone() if t.is_inference() else t.detach()).requires_grad_(t.requires_grad)

    return _map(leaf, value)


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with every floating-point tensor changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return PackedSequence(change(value.data), *value[1:])
    if isinstance(value, dict):
        return {k: _map(change, v) for k, v in value.items()}
    return type(value)(_map(change, v) for v in value) if type(value) in (tuple, list) else value


def _run(layer: nn.Module, args: Any, kwargs: Any, training: bool) -> list[Tensor]:
    """Results of a call, and with training the gradients of a loss of them."""
    with torch.set_grad_enabled(training):
        return _results(layer, args, kwargs, training)


def _results(layer: nn.Module, args: Any, kwargs: Any, training: bool) -> list[Tensor]:
    results: list[Tensor] = []
    _map(lambda t: results.append(t) or t, list(layer(*args, **kwargs)))  # type: ignore[func-returns-value]
    if not training:
        return results
    given: list[Tensor] = [p for p in layer.parameters() if p.requires_grad]
    _map(lambda t: given.append(t) or t if t.requires_grad else t, [args, kwargs])  # type: ignore[func-returns-value]
    found = torch.autograd.grad(results, given, [torch.ones_like(t) for t in results], allow_unused=True)
    return results + [g for g in found if g is not None]


def _tuned(name: str, key: tuned.Key, layer: Recurrent, args: Any, kwargs: Any, seconds: float) -> Tuned:
    checked = _checked_results(key, layer, args, kwargs)
    out = {driver: why for driver in DRIVERS if (why := _why_out(driver, checked)) is not None}
    right = [driver for driver in DRIVERS if driver not in out]
    us = _times(right, lambda: _run(layer, args, kwargs, key.training), _device(layer), seconds)
    default = "torch" if _device(layer).type == "cuda" else "fused"
    best = min(us, key=us.__getitem__, default=default)
    if default in us and us[default] < us[best] * _LEAST_GAIN:
        best = default
    return Tuned(name, key, best, us, out)


def _by(driver: str, layer: nn.Module, args: Any, kwargs: Any, training: bool) -> list[Tensor]:
    with drivers.forced(driver):
        return _run(layer, args, kwargs, training)


def _device(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device


Checked = dict[str, list[Tensor] | str]


def _checked_results(key: tuned.Key, layer: Recurrent, args: Any, kwargs: Any) -> Checked:
    """Results of each driver without dropout, or why it has none; and the exact ones, in float64."""
    plain = copy.deepcopy(layer, _leaves(layer))
    plain.dropout = 0.0
    wide = copy.deepcopy(plain).double()
    wide_args, wide_kwargs = _map(
        lambda t: t.detach().double().requires_grad_(t.requires_grad), [args, kwargs]
    )
    results: Checked = {}
    for driver in DRIVERS:
        try:
            results[driver] = _by(driver, plain, args, kwargs, key.training)
        except Exception as error:
            results[driver] = f"it raises {type(error).__name__}: {str(error).splitlines()[0]}"
    with routing.without_autocast(_device(layer).type):
        results["exact"] = _by("torch", wide, wide_args, wide_kwargs, key.training)
    return results


def _leaves(layer: nn.Module) -> dict[int, Any]:
    """For deepcopy: leaves in place of computed weights, as of pruning, which it refuses to copy."""
    attributes = [value for module in layer.modules() for value in vars(module).values()]
    return {id(t): t.detach().clone() for t in attributes if isinstance(t, Tensor) and not t.is_leaf}


def _why_out(driver: str, results: Checked) -> str | None:
    """Why a driver's results are not good enough; None if they are."""
    found, torchs, exact = results[driver], results["torch"], results["exact"]
    if isinstance(found, str):
        return found
    for i, (t, e) in enumerate(zip(found, exact, strict=True)):
        assert isinstance(e, Tensor)
        if not e.isfinite().all():
            return "the exact results are not finite"
        if not t.isfinite().all():
            return "its results are not finite"
        if driver == "torch" or isinstance(torchs, str) or e.numel() == 0:
            continue
        off, by_torch = ((r.detach().to(e.dtype) - e).abs().max().item() for r in (t, torchs[i]))
        bound = 2 * by_torch + _ULPS * torch.finfo(t.dtype).eps * e.abs().max().item()
        if not off <= bound:
            return f"its error is {off:.2g}, above {bound:.2g}"
    return None


def _times(
    names: list[str], call: Callable[[], Any], device: torch.device, seconds: float
) -> dict[str, float]:
    """The least microseconds of a call by each driver, measured in turns."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in names}
    until = time.perf_counter() + seconds
    rounds = 0
    while names and (time.perf_counter() < until or rounds < _LEAST_ROUNDS):
        rounds += 1
        for name in names:
            with drivers.forced(name):
                wait()
                start = time.perf_counter()
                call()
                wait()
                times[name].append(time.perf_counter() - start)
    return {name: 1e6 * min(each) for name, each in times.items()}
