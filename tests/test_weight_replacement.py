"""What users do to a module's weights and calls: hooks, replacement, parametrizations, pruning, sharing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn

T, B, I, H = 5, 3, 6, 6


def x(device: str) -> Tensor:
    return torch.randn(T, B, I, device=device)


def gradients(layer: Any, given: Tensor) -> list[Tensor]:
    y = layer(given)[0]
    parameters = list(layer.parameters())
    return list(torch.autograd.grad((y * y).sum(), parameters, materialize_grads=True))


def check_same(mine: Any, torchs: Any, given: Tensor) -> None:
    support.same(mine(given), torchs(given))
    for a, b in zip(gradients(mine, given), gradients(torchs, given), strict=True):
        torch.testing.assert_close(a, b)


CHANGES: dict[str, Callable[[nn.Module, str], Any]] = {
    "weight_norm": lambda m, name: parametrizations.weight_norm(m, name),
    "spectral_norm": lambda m, name: parametrizations.spectral_norm(m, name),
    "orthogonal": lambda m, name: parametrizations.orthogonal(m, name),
    "prune": lambda m, name: prune.l1_unstructured(m, name, 0.5),
    "prune_structured": lambda m, name: prune.ln_structured(m, name, 0.5, n=2, dim=0),
}


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "weight_hh_l1_reverse"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_computed_weights(cell: str, change: str, name: str, device: str) -> None:
    twins = support.twins(cell, I, H, num_layers=2, bidirectional=True)
    torchs, mine = (m.to(device) for m in twins)
    for m in (torchs, mine):
        torch.manual_seed(3)
        CHANGES[change](m.eval(), name)
    given = x(device)
    check_same(mine, torchs, given)
    with torch.no_grad():
        for p in [*torchs.parameters(), *mine.parameters()]:
            p.mul_(0.5)
    check_same(mine, torchs, given)
    if change.startswith("prune"):
        prune.remove(mine, name)
    else:
        made = copy.deepcopy(mine)
        check_same(made, mine, given)
        parametrize.remove_parametrizations(mine, name)
    support.same(mine(given), torchs(given))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_old_weight_norm(name: str, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.twins("lstm", I, H))
    for m in (torchs, mine):
        nn.utils.weight_norm(m, name)
    given = x(device)
    check_same(mine, torchs, given)
    with torch.no_grad():
        for m in (torchs, mine):
            getattr(m, f"{name}_g").mul_(2)
    check_same(mine, torchs, given)
    nn.utils.remove_weight_norm(mine, name)
    support.same(mine(given), torchs(given))


class Counting(nn.Module):
    """A parametrization that counts how often it is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.count += 1
        return 2 * weight


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", support.LAYERS)
def test_weights_are_computed_once_a_call(cell: str, packed: bool, autocast: bool, device: str) -> None:
    _, mine = (m.to(device) for m in support.twins(cell, I, H))
    counting = Counting()
    parametrize.register_parametrization(mine, "weight_ih_l0", counting)
    given = nn.utils.rnn.pack_padded_sequence(x(device), torch.tensor([T] * B)) if packed else x(device)
    counting.count = 0
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        mine(given)
    assert counting.count == 1


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih"])
@pytest.mark.parametrize("cell", support.CELLS)
def test_computed_weights_of_cells(cell: str, name: str, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.cell_twins(cell, I, H))
    for m in (torchs, mine):
        parametrizations.weight_norm(m, name)
    given = torch.randn(B, I, device=device)
    support.same(mine(given), torchs(given))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_deepcopy_after_parametrization_and_a_forward(cell: str, device: str) -> None:
    layer = support.ours(cell, I, H, device=device)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    layer(x(device))
    made = copy.deepcopy(copy.deepcopy(layer))
    given = x(device)
    check_same(made, layer, given)
    with torch.no_grad():
        made.parametrizations.weight_hh_l0.original0.mul_(3)
    assert not torch.equal(made(given)[0], layer(given)[0])


@pytest.mark.parametrize("cell", support.LAYERS)
def test_functional_call(cell: str, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.twins(cell, I, H, num_layers=2))
    given = x(device)
    before = mine(given)
    other = {n: torch.randn_like(p, requires_grad=True) for n, p in mine.named_parameters()}
    results = [torch.func.functional_call(m, other, (given,)) for m in (mine, torchs)]
    support.same(*results)
    found = [torch.autograd.grad(r[0].sum(), list(other.values())) for r in results]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    support.same(mine(given), before)
    some = {"bias_ih_l1": other["bias_ih_l1"]}
    support.same(*(torch.func.functional_call(m, some, (given,)) for m in (mine, torchs)))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_tied_weights(cell: str, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.twins(cell, I, H, num_layers=2))
    for m in (torchs, mine):
        m.weight_hh_l1 = m.weight_hh_l0
        m.weight_ih_l1 = m.weight_hh_l0
        assert len(list(m.parameters())) == 6
    given = x(device)
    check_same(mine, torchs, given)
    # Two modules with one set of weights.
    other = support.ours(cell, I, H, num_layers=2, device=device)
    for name, p in mine.named_parameters(remove_duplicate=False):
        setattr(other, name, p)
    support.same(other(given), mine(given))


@pytest.mark.parametrize("cell", support.LAYERS)
def test_replaced_weights(cell: str, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.twins(cell, I, H))
    given = x(device)
    mine(given)
    new = nn.Parameter(torch.randn_like(mine.weight_ih_l0))
    for m in (torchs, mine):
        m.weight_ih_l0 = new
        assert m._flat_weights[0] is new
        assert m.all_weights[0][0] is new
    check_same(mine, torchs, given)
    # Through .data, which leaves no trace in version counters.
    for m in (torchs, mine):
        m.weight_hh_l0.data.mul_(0.5)
    check_same(mine, torchs, given)
    for m in (torchs, mine):
        m.weight_hh_l0.data = torch.full_like(m.weight_hh_l0, 0.1)
    check_same(mine, torchs, given)
    for m in (torchs, mine):
        m.requires_grad_(False)
        del m.bias_ih_l0
        m.register_buffer("bias_ih_l0", torch.ones(new.shape[0], device=device))
    support.same(mine(given), torchs(given))


@pytest.mark.parametrize(("cell", "flag"), support.layer_cases())
def test_lists_of_weights(cell: str, flag: str, device: str) -> None:
    torchs, mine = (m.to(device) for m in support.twins(cell, I, H, **support.FLAGS[flag]))
    mine.flatten_parameters()
    assert mine._flat_weights_names == torchs._flat_weights_names
    assert [list(map(id, w)) for w in mine.all_weights] == [
        [id(getattr(mine, n)) for n in names] for names in torchs._all_weights
    ]
    for a, b in zip(mine._flat_weights, torchs._flat_weights, strict=True):
        assert torch.equal(a, b)


def test_all_kinds_of_hooks(device: str) -> None:
    calls: list[str] = []
    layer = fastrnn.LSTM(I, H, device=device)
    layer.register_forward_pre_hook(lambda m, a: calls.append("before"))
    layer.register_forward_hook(lambda m, a, r: calls.append("after"))
    layer.register_forward_pre_hook(
        lambda m, a, k: (a, {**k, "lengths": torch.tensor([1, 2, 3], device=device)}), with_kwargs=True
    )
    layer.register_full_backward_pre_hook(lambda m, g: calls.append("backward before"))
    layer.register_full_backward_hook(lambda m, gi, go: calls.append("backward"))
    layer._register_state_dict_hook(lambda m, s, p, d: calls.append("state"))
    given = x(device).requires_grad_()
    y = layer(given)[0]
    assert not y[1:, 0].any()
    y.sum().backward()
    layer.state_dict()
    assert calls == ["before", "after", "backward before", "backward", "state"]
    seen: list[Tensor] = []
    layer.weight_hh_l0.register_hook(seen.append)
    layer(given)[0].sum().backward()
    assert len(seen) == 1


def test_results_may_be_changed_in_place(device: str) -> None:
    """As torch's may; what torch's LSTM by oneDNN refuses is refused here too."""
    for cell in support.LAYERS:
        torchs, mine = (m.to(device) for m in support.twins(cell, I, H))
        given = x(device).requires_grad_()
        for m in (mine, torchs):
            y, state = m(given)
            state = support.tensors_of(state)[0]
            (state * 2).sum().backward(retain_graph=True)
        expected = torch.autograd.grad(mine(given)[0].sum(), [given, *mine.parameters()])
        y = mine(given)[0]
        with torch.no_grad():
            y.zero_()
        if cell == "lstm" and device == "cpu":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        else:
            found = torch.autograd.grad(y.sum(), [given, *mine.parameters()])
            torch.testing.assert_close(found, expected)


def test_optimizers_train(device: str) -> None:
    """A few steps with gradient clipping and an averaged copy: the same losses as torch's."""
    losses = []
    for layer in support.twins("lstm", I, H, num_layers=2):
        layer.to(device)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
        average = torch.optim.swa_utils.AveragedModel(layer)
        torch.manual_seed(4)
        found = []
        for _ in range(5):
            loss = layer(x(device))[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
            optimizer.step()
            average.update_parameters(layer)
            found.append(loss.detach())
        losses.append(torch.stack([*found, average(x(device))[0].sum().detach()]))
    torch.testing.assert_close(*losses)


def test_swapped_parameters(device: str) -> None:
    """load_state_dict that swaps tensors, which torch's layers refuse for the references they keep."""
    layer = fastrnn.GRU(I, H, device=device)
    given = x(device)
    layer(given)
    new = {n: torch.randn_like(p) for n, p in layer.state_dict().items()}
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.load_state_dict(new)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    twin = nn.GRU(I, H, device=device)
    twin.load_state_dict(new)
    support.same(layer(given), twin(given))


def test_replicas(device: str) -> None:
    layer = fastrnn.RNN(I, H, device=device)
    replica = layer._replicate_for_data_parallel()
    for name, p in layer.named_parameters():
        setattr(replica, name, p.detach().clone())
    given = x(device)
    support.same(replica(given), layer(given))
