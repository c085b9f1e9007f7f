"""Differentially private training by Opacus: its own replacement for torch.nn's layers gives the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

from .common import assert_same, library

pytestmark = pytest.mark.filterwarnings("ignore")

B, T, I, H = 6, 5, 3, 4


class Model(nn.Module):
    def __init__(self, kind: str, packed: bool = False, **flags: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(I, H, batch_first=True, **flags)
        self.out = nn.Linear(H * (2 if self.rnn.bidirectional else 1), 1)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            y, state = self.rnn(x)
        else:
            # Opacus's own layers have samples that are not sorted in another order than its other layers.
            lengths = torch.linspace(T, 1, len(x)).long()
            y, state = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
            y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        last = state[0] if isinstance(state, tuple) else state
        return self.out(y).sum((1, 2)) + last.sum((0, 2))


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("flags", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_per_sample_gradients_are_those_of_opacus_own_layers(
    kind: str, flags: dict[str, Any], packed: bool, mode: str
) -> None:
    opacus = library("opacus")
    from opacus.validators import ModuleValidator

    plain = Model(kind, packed, **flags)
    models = [ModuleValidator.fix(plain), ModuleValidator.fix(fastrnn.accelerate(copy.deepcopy(plain))[0])]
    x = torch.randn(B, T, I)
    grads = []
    for model in models:
        sampled = opacus.GradSampleModule(model, force_functorch=mode == "functorch" and model is models[1])
        sampled(x).square().mean().backward()
        weights = model.state_dict(keep_vars=True)
        grads.append([weights[name].grad_sample for name in plain.state_dict()])
    assert_same(grads[1], grads[0], scale=10)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_training_is_that_of_opacus_own_layers(kind: str) -> None:
    """Poisson sampling and clipping by the norm, step for step; batches may be empty."""
    opacus = library("opacus")
    from opacus.validators import ModuleValidator

    plain = Model(kind)
    data = torch.utils.data.TensorDataset(torch.randn(12, T, I))
    trained = []
    for model in (plain, fastrnn.accelerate(copy.deepcopy(plain))[0]):
        model = ModuleValidator.fix(model)
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model, optimizer, loader = opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=torch.utils.data.DataLoader(data, batch_size=2),
            noise_multiplier=0.0,  # it is drawn in the order of parameters, which differs
            max_grad_norm=0.1,
        )
        for _ in range(2):
            for (x,) in loader:
                optimizer.zero_grad()
                (model(x).square().sum() / max(1, len(x))).backward()
                optimizer.step()
        state = model._module.state_dict()
        trained.append([state[name] for name in plain.state_dict()])
    assert_same(trained[1], trained[0], scale=10)


def test_ghost_clipping() -> None:
    opacus = library("opacus")
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.validators import ModuleValidator

    model = ModuleValidator.fix(fastrnn.accelerate(Model("GRU"))[0])
    x = torch.randn(B, T, I)
    plain = opacus.GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    plain(x).square().sum().backward()
    norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in plain.parameters()]).norm(dim=0)
    ghost = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", max_grad_norm=1.0)
    ghost(x).square().sum().backward()
    assert_same([ghost.get_norm_sample()], [norms])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "GRUResetBefore", "LSTMCell", "GRUCell", "RNNCell"])
def test_the_validator_says_what_to_do(kind: str) -> None:
    opacus = library("opacus")
    from opacus.validators import ModuleValidator

    model = nn.Sequential(getattr(fastrnn, kind)(I, H))
    [error] = ModuleValidator.validate(model)
    is_cell = kind.endswith("Cell")
    assert ("use the layer of this name" if is_cell else "ModuleValidator.fix(model) puts") in str(error)
    fixed = ModuleValidator.fix(model)
    assert ModuleValidator.is_valid(fixed) is not is_cell
    sampled = opacus.GradSampleModule(model)
    result = sampled(torch.randn(T, I) if is_cell else torch.randn(T, B, I))
    loss = (result if isinstance(result, Tensor) else result[0]).sum()
    with pytest.raises(RuntimeError, match="Opacus's hooks see"):
        loss.backward()


def test_batch_first_that_contradicts_the_layer() -> None:
    opacus = library("opacus")
    from opacus.validators import ModuleValidator

    model = ModuleValidator.fix(nn.Sequential(fastrnn.GRU(I, H)))
    sampled = opacus.GradSampleModule(model, force_functorch=True)
    with pytest.raises(RuntimeError, match="batch_first that the recurrent layers have"):
        sampled(torch.randn(T, B, I))[0].sum().backward()
