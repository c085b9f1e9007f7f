"""Which steps of a batch exist, where states are reset, and in which order steps are computed."""

from __future__ import annotations

from typing import NamedTuple

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
