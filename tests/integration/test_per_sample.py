"""Per-sample gradients by torch.nn.utils._per_sample_grad (ExpandedWeights), as for torch.nn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import pack_padded_sequence

from .common import KINDS, assert_same, loss_of, pair

FLAGS = [
    {"batch_first": True},
    {"batch_first": True, "num_layers": 2, "bidirectional": True},
    {"batch_first": True, "bias": False},
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_expanded_weights_as_torch_nn(kind: str, flags: dict[str, Any], packed: bool) -> None:
    theirs, ours = pair(kind, 3, 4, **flags)
    x: Any = torch.randn(2, 5, 3)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
    # torch.nn's own LSTM needs it: ExpandedWeights do not know oneDNN's layer.
    with torch.backends.mkldnn.flags(enabled=False):
        for module in (theirs, ours):
            output, _ = call_for_per_sample_grads(module, batch_size=2)(x)
            loss_of(output.data if packed else output).backward()
    grads = [[p.grad_sample for p in module.parameters()] for module in (theirs, ours)]
    assert_same(grads[1], grads[0], scale=10)
