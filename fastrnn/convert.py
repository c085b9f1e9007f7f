"""Converts torch.nn's recurrent modules in existing models to this package's, in place, and back.

A module is converted by giving it another class, as torch.nn.utils.parametrize does: it stays the same
object, with the same parameters, hooks and buffers, so that references to it, such as an optimizer's, stay
valid.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastrnn.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.nn.base import Recurrent
from fastrnn.nn.cells import RecurrentCell

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Report:
    """What `accelerate` did, by the modules' names in the model ("" is the model itself).

    Attributes:
        replaced: the former class of each converted module.
        left: the reason for each recurrent module that was not converted.
        already: modules that were this package's before.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    already: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"replaced  {name or '(the model)'}: {kind}" for name, kind in self.replaced.items()]
        lines += [f"already   {name or '(the model)'}" for name in self.already]
        lines += [f"left      {name or '(the model)'}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "no recurrent module"


def accelerate(model: Model) -> tuple[Model, Report]:
    """Converts every nn.LSTM, nn.GRU, nn.RNN and their cells in a model to this package's, in place.

    They keep their identity, parameters, hooks, parametrizations, training flag and device; state_dict
    is unchanged, and existing optimizers keep working. A subclass of one of them is converted if it
    inherits forward or calls ``super().forward()``; its own code still runs. The report names other
    subclasses, and modules with a replaced forward, which stay unchanged. A second call changes nothing.
    Call it before ``fully_shard`` and ``torch.jit.script``, which change a module's class themselves.

    Args:
        model: any module, also a recurrent one. It is changed in place.

    Returns:
        The same model, and a report of what was done.

    Raises:
        TypeError: the model is not a torch.nn.Module.

    Example:
        >>> import torch, fastrnn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GRU(8, 8))
        >>> model, report = fastrnn.accelerate(model)
        >>> print(report)
        replaced  1: torch.nn.GRU
        >>> type(model[1])
        <class 'fastrnn.nn.layers.GRU'>
    """
    _check_module("accelerate", model)
    report = Report()
    for name, module in model.named_modules():
        if isinstance(module, Recurrent | RecurrentCell):
            report.already.append(name)
        elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
            if reason := why_not(module):
                report.left[name] = reason
            else:
                original = parametrize.type_before_parametrizations(module)
                public = f"torch.nn.{original.__name__}" if original in TWINS else _full_name(original)
                report.replaced[name] = public
                _become(module, _converted(original))
        elif reason := why_unknown(module):
            report.left[name] = reason
    return model, report


def restore(model: Model) -> Model:
    """Undoes `accelerate`: converts this package's layers and cells in a model to torch.nn's, in place.

    Your subclasses of this package's modules stay, and so do modules that torch.nn lacks, such as
    GRUResetBefore. Prepacked layers stay too, with a warning.

    Returns:
        The same model.

    Raises:
        TypeError: the model is not a torch.nn.Module.

    Example:
        >>> import torch, fastrnn
        >>> type(fastrnn.restore(fastrnn.LSTM(3, 4)))
        <class 'torch.nn.modules.rnn.LSTM'>
    """
    _check_module("restore", model)
    originals = {twin: original for original, twin in TWINS.items()}
    for name, module in model.named_modules():
        if hasattr(module, "packed"):
            where = name or "the model"
            warnings.warn(f"restore leaves {where}: it is prepacked; restore the original", stacklevel=2)
        cls = parametrize.type_before_parametrizations(module)
        original = originals.get(cls) or vars(cls).get("_converted_from")
        if original is not None:
            _become(module, original)
    return model


class patched:  # noqa: N801
    """Within it, constructing an nn.LSTM, nn.GRU, nn.RNN or one of their cells gives this package's.

    For libraries that construct them, however they imported the class. Subclasses stay unchanged. All
    threads of the process are affected. For libraries that construct the model again when they load or copy
    it, call ``start()`` instead, and ``stop()`` to end it.

    Example:
        >>> import torch, fastrnn
        >>> with fastrnn.patched():
        ...     layer = torch.nn.LSTM(3, 4)
        >>> type(layer)
        <class 'fastrnn.nn.layers.LSTM'>
        >>> lasting = fastrnn.patched().start()
        >>> type(torch.nn.GRU(3, 4))
        <class 'fastrnn.nn.layers.GRU'>
        >>> lasting.stop()
    """

    def __init__(self) -> None:
        self._before: dict[type[nn.Module], Any] = {}

    def start(self) -> patched:
        """Begins, until ``stop()``. A second call changes nothing."""
        if not self._before:
            self._before = {original: original.__init__ for original in TWINS}
            for original, twin in TWINS.items():
                original.__init__ = _then_become(original, twin)  # type: ignore[method-assign]
        return self

    def stop(self) -> None:
        """Ends it; does nothing if it has not begun."""
        for original, init in self._before.items():
            original.__init__ = init  # type: ignore[method-assign]
        self._before = {}

    def __enter__(self) -> patched:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _then_become(original: type[nn.Module], twin: type[nn.Module]) -> Callable[..., None]:
    init = original.__init__

    # With its signature too, in which torch.nn.utils.skip_init and others look for arguments.
    @functools.wraps(init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        init(self, *args, **kwargs)
        if type(self) is original:
            _become(self, twin)

    return __init__


_NAMES = {original.__name__ for original in TWINS}


def why_not(module: nn.Module) -> str | None:
    """Why a module derived from torch.nn's recurrent ones can't be converted."""
    original = parametrize.type_before_parametrizations(module)
    base = _base(original)
    if base is None:
        return f"{_full_name(original)} is not derived from torch.nn's LSTM, GRU, RNN or their cells"
    if not _calls_super(original, base):
        return (
            f"{_full_name(original)} is a subclass of torch.nn.{base.__name__} with a forward of its own: "
            f"call super().forward() in it, or derive it from fastrnn.{base.__name__}"
        )
    if "forward" in vars(module):
        return "its forward was replaced on the instance: convert the model first"
    return None


def why_unknown(module: nn.Module) -> str | None:
    """Why another module of a recurrent layer's name is left; None if there is nothing to say about it."""
    if isinstance(module, torch.jit.ScriptModule):
        if module.original_name not in _NAMES:
            return None
        return (
            f"a torch.nn.{module.original_name} that TorchScript has compiled: convert the model before "
            "torch.jit.script or torch.jit.trace"
        )
    cls = type(module)
    if cls.__name__ not in _NAMES or any(
        isinstance(m, nn.RNNBase | nn.RNNCellBase) for m in module.modules()
    ):
        return None  # a container of layers that are reported themselves
    if cls.__module__.startswith(("torch.ao.", "torch.nn.quantized")):
        return f"{_full_name(cls)} is quantized: convert the float model; for int8 weights see prepack"
    return f"{_full_name(cls)} is not torch.nn's"


def _base(cls: type) -> type[nn.Module] | None:
    return next((b for b in cls.__mro__ if b in TWINS), None)


def _calls_super(cls: type, base: type) -> bool:
    """No class before base has a forward, or each such forward calls super().forward()."""
    for c in cls.__mro__[: cls.__mro__.index(base)]:
        if "forward" not in vars(c):
            continue
        code = getattr(inspect.unwrap(vars(c)["forward"]), "__code__", None)
        names = code.co_names if code is not None else ()
        if not {"super", "forward"} <= set(names) or {"_VF", "_flat_weights"} & set(names):
            return False
    return True


@functools.cache
def _converted(cls: type[nn.Module]) -> type[nn.Module]:
    """This package's class for one of torch.nn's; for a subclass, one with our layer next in its MRO."""
    if cls in TWINS:
        return TWINS[cls]
    base = _base(cls)
    assert base is not None
    own = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce_converted,
        "_converted_from": cls,
    }
    return type(cls.__name__, (cls, TWINS[base]), own)


def _reduce_converted(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    # pickle can't find a class made at run time by its name; the class it was made from it can.
    state = self.__getstate__() if isinstance(self, nn.RNNBase) else vars(self)
    return _new_converted, (vars(type(self))["_converted_from"],), state


def _new_converted(cls: Any) -> nn.Module:
    made = _converted(cls)
    return made.__new__(made)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _check_module(function: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} takes a torch.nn.Module, not a {_full_name(type(model))}")


def _become(module: nn.Module, cls: type[nn.Module]) -> None:
    """Changes a module's class, under the class that parametrizations put in between if there are any."""
    parametrized = parametrize.is_parametrized(module)
    if parametrized:
        skip = ("__dict__", "__weakref__", "__doc__")
        own = {name: value for name, value in vars(type(module)).items() if name not in skip}
        cls = type(f"Parametrized{cls.__name__}", (cls,), own)
    module.__class__ = cls
    if isinstance(module, nn.RNNBase):
        # What torch.nn and this package keep beside the parameters to know that they were replaced.
        module._init_flat_weights()
        if parametrized:  # computed weights could not be copied; the list refills itself
            module._flat_weights = [
                w if w is not None and w.is_leaf else None for w in module._flat_weights
            ]
