"""torchrl's recurrent modules with `is_init` as the layer's ``reset``: the results of torchrl's own way."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import fastrnn

from .common import assert_same, gradients, library, loss_of

pytestmark = pytest.mark.filterwarnings("ignore")

B, T, I, H = 3, 7, 4, 5


def module(kind: str, **flags: Any) -> Any:
    modules = library("torchrl.modules")
    return getattr(modules, f"{kind}Module")(I, H, in_key="observation", out_key="features", **flags)


def rollout(kind: str, states: int, recorded: bool = False) -> Any:
    """Episodes of random length; with ``recorded``, they begin with states that are not zero."""
    is_init = torch.rand(B, T, 1) < 0.3
    names = ["recurrent_state_h", "recurrent_state_c"] if kind == "LSTM" else ["recurrent_state"]
    data = {name: torch.randn(B, T, states, H) for name in names}
    if not recorded:
        data = {name: s.masked_fill(is_init[..., None], 0) for name, s in data.items()}
    data |= {"observation": torch.randn(B, T, I), "is_init": is_init}
    return library("tensordict").TensorDict(data, [B, T])


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    "flags", [{}, {"num_layers": 2}, {"bias": False}, {"bidirectional": True}], ids=str
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_sequences_as_torchrl_computes_them(kind: str, flags: dict[str, Any], recorded: bool) -> None:
    plain = module(kind, **flags)
    from torchrl.modules import set_recurrent_mode

    from fastrnn.integrations.torchrl import use_reset

    fast = use_reset(copy.deepcopy(plain))
    states = flags.get("num_layers", 1) * (2 if "bidirectional" in flags else 1)
    data = rollout(kind, states, recorded)
    results = []
    with set_recurrent_mode(True):
        for m in (plain, fast):
            found = m(data.clone())
            loss_of(found["features"]).backward()
            results.append({name: found[name] for name in found.keys(True, True) if name != "is_init"})
    assert results[0].keys() == results[1].keys()
    assert_same(results[1], results[0])
    assert_same(gradients(fast), gradients(plain), scale=10)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_one_step_at_a_time(kind: str) -> None:
    plain = module(kind)
    from fastrnn.integrations.torchrl import use_reset

    fast = use_reset(copy.deepcopy(plain))
    data = rollout(kind, 1)[:, 0]
    results = [m(data.clone()) for m in (plain, fast)]
    assert_same(*({k: r[k] for k in r.keys(True, True) if k != "is_init"} for r in reversed(results)))


def test_a_policy_is_pickled_and_keeps_its_parameters() -> None:
    plain = module("LSTM")
    from fastrnn.integrations.torchrl import use_reset

    fast = use_reset(copy.deepcopy(plain))
    again = pickle.loads(pickle.dumps(fast))
    assert type(again) is type(fast)
    assert isinstance(again.lstm, fastrnn.LSTM)
    assert list(again.state_dict()) == list(plain.state_dict())
