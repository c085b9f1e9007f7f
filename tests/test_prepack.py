"""prepack(): what packed layers compute, how far narrower weights stray, and what they refuse."""

from __future__ import annotations

import copy
import pickle
import time
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn

import fastrnn

LAYERS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (fastrnn.LSTM, {}),
    (fastrnn.LSTM, {"proj_size": 7, "num_layers": 2, "bidirectional": True}),
    (fastrnn.GRU, {"bias": False, "batch_first": True}),
    (fastrnn.RNN, {"nonlinearity": "relu"}),
    (nn.GRU, {}),
]
CELLS = [fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell]

needs_bfloat16_products = pytest.mark.skipif(
    not support.HAS_BFLOAT16_PRODUCTS, reason="this processor does not multiply bfloat16"
)
WEIGHTS = [None, pytest.param("bfloat16", marks=needs_bfloat16_products), "int8"]

# Relative error of a weight that is rounded: half the last of 8 bits, or half a step of 127.
ROUNDING = {"bfloat16": 2**-9, "int8": 1 / 254}


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else first(result[0])


@pytest.mark.parametrize(("layer", "flags"), LAYERS)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (5, 1), (20, 13)])
@pytest.mark.parametrize("hidden", [8, 33])
def test_packed_as_they_are(
    layer: type[nn.Module], flags: dict[str, Any], steps: int, batch: int, hidden: int
) -> None:
    torch.manual_seed(0)
    module = layer(5, hidden, **flags).eval()
    x = torch.randn(steps, batch, 5)
    served = fastrnn.prepack(module)
    torch.testing.assert_close(first(served(x)), first(module(x)), rtol=0, atol=2e-6)
    assert not list(served.parameters())


@needs_bfloat16_products
@pytest.mark.parametrize(("layer", "flags"), LAYERS)
def test_bfloat16_is_medium_precision(layer: type[nn.Module], flags: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = layer(5, 33, **flags).eval()
    x = torch.randn(40, 6, 5)
    exact, got = first(module(x)), first(fastrnn.prepack(module, "bfloat16")(x))
    assert 0 < (got - exact).abs().max() < 8 * ROUNDING["bfloat16"]
    torch.set_float32_matmul_precision("medium")
    try:
        expected = first(fastrnn.accelerate(copy.deepcopy(module))[0](x))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(got, expected)


@pytest.mark.skipif(support.HAS_BFLOAT16_PRODUCTS, reason="this processor multiplies bfloat16")
def test_bfloat16_is_refused_where_it_would_be_no_faster() -> None:
    with pytest.raises(ValueError, match="no products of bfloat16: pack as int8"):
        fastrnn.prepack(fastrnn.LSTM(5, 8).eval(), "bfloat16")


@needs_bfloat16_products
def test_narrower_weights_are_no_slower() -> None:
    module = fastrnn.LSTM(64, 256).eval()
    served = {weights: fastrnn.prepack(module, weights) for weights in ("float32", "bfloat16", "int8")}
    best = dict.fromkeys(served, float("inf"))
    x = torch.randn(8, 8, 64)
    for _ in range(50):
        for weights, packed in served.items():
            start = time.perf_counter()
            packed(x)
            best[weights] = min(best[weights], time.perf_counter() - start)
    assert max(best["bfloat16"], best["int8"]) < 1.1 * best["float32"], best


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("cell", CELLS)
def test_cells(cell: type[nn.Module], weights: str | None) -> None:
    torch.manual_seed(0)
    module = cell(5, 20).eval()
    served = fastrnn.prepack(module, weights)
    tolerance = 2e-6 if weights is None else 8 * ROUNDING[weights]
    for x in (torch.randn(3, 5), torch.randn(5)):
        torch.testing.assert_close(first(served(x)), first(module(x)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_packed_as_they_are(dtype: torch.dtype) -> None:
    module = fastrnn.LSTM(4, 20, dtype=dtype).eval()
    x = torch.randn(7, 3, 4, dtype=dtype)
    torch.testing.assert_close(fastrnn.prepack(module)(x)[0], module(x)[0])
    with pytest.raises(ValueError, match="only float32"):
        fastrnn.prepack(module, "int8")


def test_masks_and_states() -> None:
    module = fastrnn.LSTM(4, 20).eval()
    served = fastrnn.prepack(module)
    x, lengths = torch.randn(7, 3, 4), torch.tensor([7, 0, 3])
    x[:, 1] = x[3:, 2] = torch.nan
    reset = torch.rand(7, 3) < 0.3
    for got, want in zip(
        served(x, lengths=lengths, reset=reset, states=True)[2][0],
        module(x, lengths=lengths, reset=reset, states=True)[2][0],
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("module", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN, *CELLS])
def test_autocast(module: type[nn.Module]) -> None:
    """What is packed is not cast: a layer's input is."""
    served = fastrnn.prepack(module(4, 8).eval())
    is_layer = isinstance(served, nn.RNNBase)
    x = torch.randn(3, 4)
    hx = served(x)[1] if is_layer else served(x)
    expected = served(x, hx)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()) if is_layer else (x,):
            for state in (hx, None):
                explained = fastrnn.explain(served, given, state)
                assert (explained.path, explained.dtype) == ("fused", torch.float32)
            torch.testing.assert_close(first(served(given, hx)), first(expected), rtol=0, atol=0.01)
            assert first(served(given)).isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"])
def test_weights_that_no_scale_fits(name: str, bad: float) -> None:
    """As bfloat16 they stay what they are; as int8 a NaN would have become a number."""
    module = fastrnn.LSTM(4, 8, proj_size=3 if "hr" in name else 0).eval()
    with torch.no_grad():
        getattr(module, name)[1, 2] = bad
    x = torch.ones(2, 1, 4)
    for weights in (None, "bfloat16") if support.HAS_BFLOAT16_PRODUCTS else (None,):
        got, want = first(fastrnn.prepack(module, weights)(x)), first(module(x))
        assert torch.equal(got.isnan(), want.isnan())
    with pytest.raises(ValueError, match="NaN or infinity have no int8 form"):
        fastrnn.prepack(module, "int8")


def test_what_torch_asks_of_its_weights() -> None:
    served = fastrnn.prepack(fastrnn.GRU(4, 8).eval(), "int8")
    served.flatten_parameters()
    assert served.all_weights == []
    assert str(fastrnn.explain(served, torch.zeros(2, 3, 4))).split(":")[0].endswith(" in float32")


def test_a_model() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(4, 8), "b": nn.Linear(8, 2)}).eval()
    served = fastrnn.prepack(model, "int8")
    assert type(model["a"]) is nn.LSTM
    assert [name for name, _ in served.named_parameters()] == ["b.weight", "b.bias"]
    assert "weights=int8" in repr(served)


def test_the_original_may_change() -> None:
    module = fastrnn.GRU(4, 8).eval()
    x = torch.randn(3, 2, 4)
    served = fastrnn.prepack(module)
    before = served(x)[0]
    with torch.no_grad():
        for p in module.parameters():
            p.data.zero_()
    assert torch.equal(served(x)[0], before)


def test_compiles() -> None:
    served = fastrnn.prepack(fastrnn.LSTM(4, 8).eval())
    x = torch.randn(3, 2, 4)
    compiled = torch.compile(served, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)[0], served(x)[0])


def test_modes_state_dict_and_restore_say_what_it_is() -> None:
    module = fastrnn.LSTM(4, 8).eval()
    model = nn.Sequential(fastrnn.prepack(module), nn.Dropout())
    x = torch.randn(2, 3, 4)
    assert model.train()[1].training
    assert not model[0].training
    assert torch.equal(model[0](x)[0], model.eval()[0](x)[0])
    with pytest.warns(UserWarning, match="no weights of the prepacked layer 0: save the original"):
        assert not model.state_dict()
    with pytest.warns(UserWarning, match="restore leaves 0: it is prepacked"):
        fastrnn.restore(model)
    assert type(model[0]).__name__ == "PrepackedLSTM"


def test_what_would_change_it_is_refused() -> None:
    module = fastrnn.LSTM(4, 8).eval()
    served = fastrnn.prepack(module)
    with pytest.raises(RuntimeError, match="no gradients"):
        served(torch.randn(2, 3, 4, requires_grad=True))
    for change in (
        lambda: served.double(),
        lambda: served.to("meta"),
        lambda: nn.Sequential(served).half(),
    ):
        with pytest.raises(RuntimeError, match="cannot be moved or cast"):
            change()
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="cannot be loaded"):
            served.load_state_dict(module.state_dict(), strict=strict)
    with pytest.raises(TypeError, match="this process only"):
        pickle.dumps(served)
    for twin in (copy.copy(served), copy.deepcopy(served)):
        assert torch.equal(twin(torch.ones(1, 1, 4))[0], served(torch.ones(1, 1, 4))[0])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="eval"):
        fastrnn.prepack(fastrnn.LSTM(4, 8))
    with pytest.raises(ValueError, match="'int4'"):
        fastrnn.prepack(fastrnn.LSTM(4, 8).eval(), "int4")
    with pytest.raises(ValueError, match="no recurrent layer"):
        fastrnn.prepack(nn.Linear(2, 2).eval())
    with pytest.raises(ValueError, match=r"\(GRUResetBefore\) cannot be packed: it has no kernels"):
        fastrnn.prepack(fastrnn.GRUResetBefore(4, 8).eval())
    pruned = fastrnn.LSTM(4, 8).eval()
    nn.utils.parametrizations.weight_norm(pruned, "weight_hh_l0")
    pruned.eval()
    with pytest.raises(ValueError, match="cannot be packed"):
        fastrnn.prepack(pruned)
    served = fastrnn.prepack(fastrnn.LSTM(4, 8).eval())
    for bad in (torch.randn(2, 3, 5), torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(4)):
        with pytest.raises(RuntimeError, match="do not fit"):
            served(bad)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    wide = nn.utils.rnn.pack_sequence([torch.randn(3, 5)])
    state = torch.zeros(1, 3, 8)
    for arguments in ((wide,), (packed.double(),), (packed, (state, state))):
        with pytest.raises(RuntimeError, match="do not fit"):
            served(*arguments)


def test_another_precision_than_at_packing_is_noticed() -> None:
    served = fastrnn.prepack(fastrnn.LSTM(4, 8).eval())
    if fastrnn.build_info()["cpu_target"] not in ("avx512_bf16", "avx512_amx", "neon_bf16"):
        pytest.skip("this CPU target has no bfloat16 products, so that precision makes no difference")
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="another precision"):
            served(torch.randn(2, 3, 4))
    finally:
        torch.set_float32_matmul_precision("highest")
