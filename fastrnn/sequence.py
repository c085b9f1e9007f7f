"""Which steps of a batch exist, where states are reset, and in which order steps are computed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sequence(NamedTuple):
    """A layer's arguments that are not differentiated, in the order in which the operators take them."""

    batch_sizes: Tensor | None = None  # int64 [T] on the CPU: the batch is packed
    lengths: Tensor | None = None  # int64 [B]: steps of each sequence in a padded batch
    reset: Tensor | None = None  # bool, x's leading dimensions: the state is zero before this step
    reverse: bool = False  # the last step is computed first

    def reversed(self) -> Sequence:
        """The same batch for the reverse direction of a bidirectional layer.

        An episode that begins at step t ends, in reverse order, before step t - 1 is computed.
        """
        reset = self.reset
        if reset is not None:
            if self.lengths is not None:  # no episode begins after a sequence's end
                steps = torch.arange(reset.shape[0], device=reset.device)
                reset = reset & (steps.unsqueeze(1) < self.lengths)
            reset = torch.cat((reset[1:], torch.zeros_like(reset[:1])))
        return self._replace(reset=reset, reverse=True)


# Every step of a padded batch, from first to last.
ALL_STEPS = Sequence()


def check_masks(x: Tensor, unbatched: bool, batch_first: bool, lengths: Any, reset: Any) -> Sequence:
    """A user's lengths and reset, checked and in the layout of x [T, B, I]."""
    steps, batch = x.shape[:2]
    if lengths is not None:
        if unbatched:
            raise ValueError("lengths goes with a batch, not with unbatched input")
        lengths = _as_lengths(lengths, x.device)
        _check_mask("lengths", "an int64", torch.int64, (batch,), lengths)
    if reset is not None:
        expected = (steps,) if unbatched else (steps, batch)
        if batch_first and not unbatched:
            expected = (batch, steps)
        _check_mask("reset", "a bool", torch.bool, expected, reset)
        if unbatched:
            reset = reset.unsqueeze(1)
        elif batch_first:
            reset = reset.transpose(0, 1)
    for name, mask in (("lengths", lengths), ("reset", reset)):
        if mask is not None and mask.device != x.device:
            raise ValueError(f"{name} should be on {x.device} as the input is, got {mask.device}")
    return Sequence(None, lengths, reset)


def _as_lengths(lengths: Any, device: torch.device) -> Any:
    """A list of integers as a tensor, and any integer dtype as int64; what is neither stays."""
    if isinstance(lengths, list | tuple) and all(type(n) is int for n in lengths):
        return torch.tensor(lengths, dtype=torch.int64, device=device)
    narrow = (torch.int32, torch.int16, torch.int8, torch.uint8)
    return lengths.long() if isinstance(lengths, Tensor) and lengths.dtype in narrow else lengths


def _check_mask(name: str, kind: str, dtype: torch.dtype, shape: tuple[int, ...], mask: Any) -> None:
    if not isinstance(mask, Tensor):
        got = f"a {type(mask).__name__}"
    elif mask.shape != shape or mask.dtype != dtype:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
    else:
        return
    raise ValueError(f"{name} should be {kind} tensor of shape {shape}, got {got}")
