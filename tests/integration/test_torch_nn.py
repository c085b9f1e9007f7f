"""What docs/compatibility.md says of torch.nn's own layers: where they fail, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.func import functional_call, grad, jacfwd, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="docs/compatibility.md tells of torch 2.13"
)

N, T, B, I, H = 3, 4, 2, 3, 5


def compile_whole(kind: str) -> None:
    torch._dynamo.reset()
    torch.compile(getattr(nn, kind)(I, H), backend="eager", fullgraph=True)(torch.randn(T, B, I))


def export_any_length(kind: str) -> None:
    shapes = ({0: Dim("time", min=2), 1: Dim("batch", min=2)},)
    export(getattr(nn, kind)(I, H), (torch.randn(T, B, I),), dynamic_shapes=shapes)


def vmap_over_batch(kind: str) -> None:
    layer = getattr(nn, kind)(I, H)
    vmap(lambda x: layer(x)[0])(torch.randn(N, T, B, I))


def vmap_over_weights(kind: str) -> None:
    layers = [getattr(nn, kind)(I, H) for _ in range(N)]
    weights, _ = stack_module_state(layers)
    vmap(lambda w, x: functional_call(layers[0], w, (x,))[0], (0, None))(weights, torch.randn(T, B, I))


def per_sample_gradients(kind: str) -> None:
    layer = getattr(nn, kind)(I, H)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,))[0].sum()

    vmap(grad(loss), (None, 0))(dict(layer.named_parameters()), torch.randn(N, T, B, I))


def forward_jacobian(kind: str) -> None:
    layer = getattr(nn, kind)(I, H)
    jacfwd(lambda x: layer(x)[0])(torch.randn(T, B, I))


def forward_derivative(kind: str) -> None:
    layer, x = getattr(nn, kind)(I, H), torch.randn(T, B, I)
    jvp(lambda x: layer(x)[0], (x,), (x,))


def a_length_of_zero(kind: str) -> None:
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([4, 0]), enforce_sorted=False)
    getattr(nn, kind)(I, H)(packed)


# Words of the table, and what brings them about.
FAILURES: list[tuple[str, Callable[[str], Any], tuple[str, ...]]] = [
    ("Attempted to wrap RNN, GRU, or LSTM", compile_whole, ("LSTM", "GRU", "RNN")),
    ("Constraints violated", export_any_length, ("LSTM", "GRU", "RNN")),
    ("Batching rule not implemented for aten::lstm", vmap_over_batch, ("LSTM",)),
    ("Batching rule not implemented for aten::gru", vmap_over_batch, ("GRU",)),
    ("Batching rule not implemented for aten::lstm", vmap_over_weights, ("LSTM",)),
    ("output with shape", per_sample_gradients, ("GRU",)),
    ("forward AD with mkldnn_rnn_layer", forward_jacobian, ("LSTM",)),
    ("forward AD with mkldnn_rnn_layer", forward_derivative, ("LSTM",)),
    ("Length of all samples has to be greater than 0", a_length_of_zero, ("LSTM", "GRU", "RNN")),
]


@pytest.mark.parametrize(
    ("words", "run", "kind"),
    [(words, run, kind) for words, run, kinds in FAILURES for kind in kinds],
    ids=[f"{run.__name__}-{kind}" for _, run, kinds in FAILURES for kind in kinds],
)
def test_where_torch_nn_fails(words: str, run: Callable[[str], Any], kind: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011 - the words tell
        run(kind)
    assert words in str(error.value)


@pytest.mark.parametrize("run", [forward_jacobian, forward_derivative])
def test_where_only_its_lstm_fails(run: Callable[[str], Any]) -> None:
    run("GRU")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_where_only_its_gru_fails() -> None:
    per_sample_gradients("LSTM")
