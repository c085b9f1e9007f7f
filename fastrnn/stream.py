"""stream(): a recurrent layer, stack or cell that keeps its state from call to call."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fastrnn import ops
from fastrnn.nn.base import Recurrent
from fastrnn.nn.recurrence import Recurrence
from fastrnn.prepack import Prepacked, prepack

State = Tensor | tuple[Tensor, Tensor]


class Stream:
    """A recurrent layer or cell that keeps its state; :func:`stream` makes it. Call it with the next steps.

    Example:
        >>> import torch, fastrnn
        >>> live = fastrnn.stream(fastrnn.LSTMCell(3, 4).eval())
        >>> h = live(torch.randn(2, 3))
        >>> twin = live.clone()
        >>> torch.equal(twin.state[0], h)
        True
    """

    def __init__(self, served: Any) -> None:
        self._served = served
        packed = served.packed
        panels = [layer.panels for layer in packed]
        biases = [b for layer in packed for b in (layer.b_ih, layer.b_hh) if b is not None]
        self._widths = [getattr(served, "proj_size", 0) or served.hidden_size]  # of h, and of c
        precision = ops.precision(torch.empty(0, dtype=served.dtype))
        self._layers = (panels, biases, served.hidden_size, self._widths[0], packed[0].weights, precision)
        if ops.CELLS[served.cell]["has_c"]:
            self._widths.append(served.hidden_size)
        self._cell = served.cell
        self._is_cell = not isinstance(served, Recurrent)
        self._batch_first = not self._is_cell and served.batch_first
        # The state before a call and the one after, in turn; see csrc/torch/ops.cpp.
        self._memory: Tensor | None = None
        self._turn = 0

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a stream has no gradients: use the layer, or torch.no_grad()")
        batch_first = self._batch_first and x.dim() == 3
        if batch_first:
            x = x.transpose(0, 1)
        try:
            if self._memory is None:
                self._begin(x.shape[-2])
            y = ops.stream(self._cell, x, self._memory, self._turn, *self._layers)
        except (ValueError, IndexError):
            self._check(x)
            raise
        self._turn ^= 1
        return y.transpose(0, 1) if batch_first else y

    def _begin(self, batch: int) -> None:
        with torch.inference_mode(False):  # or it could not be changed outside the mode
            count = len(self._layers[0]) * batch * sum(self._widths)
            self._memory = torch.zeros(2 * count, dtype=self._served.dtype)

    def _check(self, x: Tensor) -> None:
        """Raise ValueError if x does not fit."""
        size, dtype = self._served.input_size, self._served.dtype
        if x.dim() not in (2, 3) or x.shape[-1] != size or x.dtype != dtype or not x.is_cpu:
            steps = "[B, T, " if self._batch_first else "[T, B, "
            raise ValueError(
                f"x should be {dtype} of shape [B, {size}] or {steps}{size}] on the CPU, "
                f"got {x.dtype} of shape {list(x.shape)} on {x.device}"
            )
        batch = None if self._memory is None else self._parts()[0].shape[1]
        if batch not in (None, x.shape[-2]):
            raise ValueError(
                f"got {x.shape[-2]} sequences, expected the {batch} that this stream has the state of; "
                "call reset() to begin with another number"
            )

    def _parts(self) -> list[Tensor]:
        """h [layers, B, P] and c [layers, B, H], as memory that the next call reads."""
        assert self._memory is not None
        layers = len(self._layers[0])
        now = self._memory.chunk(2)[self._turn]
        batch = now.numel() // (layers * sum(self._widths))
        sizes = [layers * batch * width for width in self._widths]
        return [
            part.view(layers, batch, width)
            for part, width in zip(now.split(sizes), self._widths, strict=True)
        ]

    @property
    def state(self) -> State | None:
        """A copy of the state, as the layer or cell returns it; None before the first call.

        Assign a state to continue from it, or None to begin from zeros with any number of sequences.
        """
        if self._memory is None:
            return None
        h, *c = (part[0].clone() if self._is_cell else part.clone() for part in self._parts())
        return (h, c[0]) if c else h

    @state.setter
    def state(self, state: State | None) -> None:
        if state is None:
            self._memory = None
            return
        given = [state] if isinstance(state, Tensor) else list(state)
        if self._is_cell:
            given = [part.unsqueeze(0) for part in given]
        layers, batch = len(self._layers[0]), given[0].shape[1] if given[0].dim() == 3 else 0
        expected = [(layers, batch, width) for width in self._widths]
        if [tuple(part.shape) for part in given] != expected:
            shown = [part.shape[self._is_cell :] for part in given]
            raise ValueError(
                f"the state should be {len(expected)} tensors as the layer returns them, got shapes {shown}"
            )
        self._begin(batch)
        with torch.no_grad():
            for part, value in zip(self._parts(), given, strict=True):
                part.copy_(value)

    def reset(self, rows: Any = None) -> None:
        """Set the state of some sequences to zero, or of all.

        Args:
            rows: which: an index, a list of indices, or a tensor of indices or of B booleans; None for all,
                after which the next call may have another number of sequences.
        """
        if rows is None:
            self._memory = None
        elif self._memory is not None:
            for part in self._parts():
                part[:, rows] = 0

    def clone(self) -> Stream:
        """A stream that shares the weights and has a copy of the state."""
        twin = Stream(self._served)
        twin.state = self.state
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a stream fits this process only: save the layer and the state, and make it anew")

    def __repr__(self) -> str:
        return f"Stream({self._served})"


def stream(module: nn.Module) -> Stream:
    """Makes a layer, stack of layers or cell that keeps its state: a call computes only the next steps.

    ``live(x)`` computes one step for x ``[B, I]``, or T steps for x ``[T, B, I]`` (``[B, T, I]`` if the
    layer has batch_first), and returns the output: ``[B, P]``, or in the layout of x. The first call begins
    from zeros, every other where the last one ended. Results equal the prepacked layer's bit for bit. There
    are no gradients. Give each thread a stream of its own; ``clone()`` shares the weights.

    Args:
        module: what prepack() returned, or a recurrent layer or cell of this package or of torch.nn in eval
            mode, which is then packed in its own dtype. Not bidirectional, and no declared cell
            (:class:`fastrnn.Recurrence`).

    Returns:
        A :class:`Stream`.

    Raises:
        ValueError: the module cannot be packed, is bidirectional or has a declared cell; in a call, x does
            not fit.

    Example:
        >>> import torch, fastrnn
        >>> live = fastrnn.stream(fastrnn.GRU(3, 4).eval())
        >>> for _ in range(5):
        ...     output = live(torch.randn(2, 3))
        >>> live.reset(rows=[1])
        >>> live.state.shape
        torch.Size([1, 2, 4])
    """
    served: Any = module if isinstance(module, Prepacked) else prepack(module)
    if not isinstance(served, Prepacked):
        raise ValueError(f"a stream needs a recurrent layer or cell, got a {type(module).__name__}")
    if isinstance(served, Recurrence):
        raise ValueError(
            "a declared cell cannot be streamed: call the prepacked layer, each time with the states that "
            "it returned"
        )
    if getattr(served, "bidirectional", False):
        raise ValueError(
            "a bidirectional layer cannot be streamed: its reverse direction begins at the sequence's end"
        )
    return Stream(served)
