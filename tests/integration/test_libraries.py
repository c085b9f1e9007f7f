"""Models of other libraries, built from their own code with random weights, with our layers inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn

from .common import assert_same, gradients, library, loss_of

pytestmark = pytest.mark.filterwarnings("ignore")


def recurrent_types(model: nn.Module) -> set[type[nn.Module]]:
    return {type(m) for m in model.modules() if isinstance(m, nn.RNNBase)}


def test_transformers_encodec() -> None:
    """A speech codec: convolutions around an LSTM, in encoder and decoder."""
    transformers = library("transformers")
    config = transformers.EncodecConfig(
        num_filters=4,
        hidden_size=16,
        upsampling_ratios=[4, 2],
        codebook_size=16,
        codebook_dim=16,
        target_bandwidths=[8.0],
        sampling_rate=8000,
    )
    plain = transformers.EncodecModel(config).eval()
    fast, report = fastrnn.accelerate(copy.deepcopy(plain))
    assert len(report.replaced) == 2
    assert not report.left
    assert recurrent_types(fast) == {fastrnn.LSTM}
    audio = torch.randn(2, 1, 400)
    with torch.no_grad():
        expected, got = plain(audio), fast(audio)
    assert torch.equal(got.audio_codes, expected.audio_codes)
    assert_same(got.audio_values, expected.audio_values)
    for model in (plain, fast):
        loss_of(model.decoder(model.encoder(audio))).backward()
    assert_same(gradients(fast), gradients(plain), scale=10)
    with fastrnn.patched():
        assert recurrent_types(transformers.EncodecModel(config)) == {fastrnn.LSTM}
    assert recurrent_types(fastrnn.restore(fast)) == {nn.LSTM}


def test_sb3_contrib_recurrent_ppo() -> None:
    """Reinforcement learning with an LSTM policy: the same training, step for step."""
    sb3_contrib = library("sb3_contrib")

    def trained(accelerated: bool) -> Any:
        agent = sb3_contrib.RecurrentPPO(
            "MlpLstmPolicy",
            "CartPole-v1",
            n_steps=16,
            batch_size=16,
            n_epochs=2,
            seed=0,
            device="cpu",
            policy_kwargs={"lstm_hidden_size": 8},
        )
        if accelerated:
            _, report = fastrnn.accelerate(agent.policy)
            assert sorted(report.replaced) == ["lstm_actor", "lstm_critic"]
        return agent.learn(48)

    plain, fast = trained(False), trained(True)
    assert recurrent_types(fast.policy) == {fastrnn.LSTM}
    assert_same(list(fast.policy.parameters()), list(plain.policy.parameters()), scale=100)
    observation = plain.observation_space.sample()
    assert (
        plain.predict(observation, deterministic=True)[0]
        == fast.predict(observation, deterministic=True)[0]
    )


def test_gluonts_deepar() -> None:
    """Probabilistic forecasting: loss and gradients of DeepAR, and a forecast."""
    library("gluonts")
    library("lightning")
    from gluonts.torch.model.deepar.module import DeepARModel

    def model() -> Any:
        torch.manual_seed(0)
        return DeepARModel(
            freq="D",
            context_length=6,
            prediction_length=3,
            num_feat_dynamic_real=1,
            num_feat_static_real=1,
            num_feat_static_cat=1,
            cardinality=[1],
            hidden_size=8,
            num_layers=2,
            dropout_rate=0.0,
            num_parallel_samples=4,
        )

    plain = model()
    fast, report = fastrnn.accelerate(model())
    assert list(report.replaced) == ["rnn"]
    with fastrnn.patched():
        assert recurrent_types(model()) == {fastrnn.LSTM}
    batch, past, future = 2, plain._past_length, 3
    inputs = {
        "feat_static_cat": torch.zeros(batch, 1, dtype=torch.int64),
        "feat_static_real": torch.randn(batch, 1),
        "past_time_feat": torch.randn(batch, past, 1),
        "past_target": torch.randn(batch, past),
        "past_observed_values": torch.ones(batch, past),
        "future_time_feat": torch.randn(batch, future, 1),
    }
    known = {
        "future_target": torch.randn(batch, future),
        "future_observed_values": torch.ones(batch, future),
    }
    results = []
    for m in (plain, fast):
        loss = m.loss(**inputs, **known)
        loss.sum().backward()
        grads = gradients(m)
        torch.manual_seed(1)
        results.append((loss, grads, m(**inputs)))
    assert_same(results[1], results[0], scale=100)
