"""accelerate, restore, patched; and what TorchScript and quantization say of our modules."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn

from .common import KINDS, assert_same, loss_of, twice


class Tagger(nn.Module):
    """A model with recurrent modules at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(5, 7, num_layers=2, bidirectional=True)})
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(14, 6), nn.GRU(6, 6)), nn.RNN(6, 4)])
        self.cell = nn.GRUCell(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.encoder["rnn"](x)
        x, _ = self.blocks[0](x)
        x, _ = self.blocks[1](x)
        return self.cell(x[-1])


class OwnLSTM(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().__call__  # not torch.nn's forward


class Initialized(nn.LSTM):
    def reset_parameters(self) -> None:
        for w in self.parameters():
            nn.init.uniform_(w, -0.05, 0.05)


class Clipped(nn.GRU):
    def forward(self, input: Any, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return output.clamp(-0.1, 0.1), state


class ClippedCell(nn.LSTMCell):
    def forward(self, input: Any, hx: Any = None) -> Any:
        h, c = super().forward(input, hx)
        return h.clamp(-0.1, 0.1), c


class Deeper(Clipped):
    pass


class LSTM(nn.Module):
    """A wrapper of the name of the layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)


@pytest.mark.parametrize("cls", [Initialized, Clipped, Deeper, ClippedCell])
def test_accelerate_subclasses_whose_code_calls_torch_nns(cls: Any) -> None:
    plain = cls(3, 4)
    x = torch.randn(2, 3) if cls is ClippedCell else torch.randn(5, 2, 3)
    fast, report = fastrnn.accelerate(copy.deepcopy(plain))
    assert report.replaced == {"": f"{cls.__module__}.{cls.__name__}"}
    assert isinstance(fast, cls)
    assert isinstance(fast, fastrnn.LSTM | fastrnn.GRU | fastrnn.LSTMCell)
    assert_same(fast(x), plain(x))
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(again) is type(fast)
        assert_same(again(x), plain(x))
    assert list(fastrnn.accelerate(fast)[1].already) == [""]
    assert type(fastrnn.restore(fast)) is cls
    assert_same(fast(x), plain(x))


def test_a_wrapper_of_a_converted_layer_is_not_left() -> None:
    _, report = fastrnn.accelerate(nn.Sequential(LSTM()))
    assert report.replaced == {"0.rnn": "torch.nn.LSTM"}
    assert not report.left


class GRU(nn.Module):
    """Of the name of one of torch.nn's, and nothing else."""


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_accelerate_changes_the_class_and_nothing_else(kind: str) -> None:
    module = getattr(nn, kind)(3, 4)
    parameters, keys = list(module.parameters()), list(module.state_dict())
    model, report = fastrnn.accelerate(module)
    assert model is module
    assert type(model) is getattr(fastrnn, kind)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    assert report.replaced == {"": f"torch.nn.{kind}"}
    assert type(fastrnn.restore(model)) is getattr(nn, kind)


def test_accelerate_nested_model_and_report() -> None:
    plain, fast = twice(Tagger())
    x = torch.randn(6, 2, 5)
    assert_same(fast(x), plain(x))
    again = fastrnn.accelerate(fast)[1]
    assert not again.replaced
    assert not again.left
    assert again.already == ["encoder.rnn", "blocks.0.1", "blocks.1", "cell"]
    assert "already   encoder.rnn" in str(again)
    restored = fastrnn.restore(fast)
    assert not any(m.__module__.startswith("fastrnn") for m in map(type, restored.modules()))
    assert torch.equal(restored(x), plain(x))


def test_accelerate_keeps_an_optimizer_working() -> None:
    plain, fast = copy.deepcopy(model := Tagger()), model
    x = torch.randn(6, 2, 5)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (plain, fast)]
    for step in range(4):
        if step == 2:
            fastrnn.accelerate(fast)
        for m, optimizer in zip((plain, fast), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(m(x)).backward()
            optimizer.step()
    assert_same(list(fast.parameters()), list(plain.parameters()), scale=100)


def test_accelerate_keeps_hooks_mode_and_device() -> None:
    module = nn.LSTM(3, 4, device="meta").eval()
    seen = []
    module.register_forward_hook(lambda m, args, out: seen.append(type(m)))
    module.register_forward_pre_hook(lambda m, args: seen.append("before"))
    module.register_full_backward_hook(lambda m, given, got: seen.append("backward"))
    module.weight_hh_l0.requires_grad_(False)
    fastrnn.accelerate(module)
    assert not module.training
    assert not module.weight_hh_l0.requires_grad
    assert module.weight_ih_l0.device.type == "meta"
    x = torch.zeros(5, 2, 3, device="meta", requires_grad=True)
    module(x)[0].sum().backward()
    assert seen == ["before", fastrnn.LSTM, "backward"]


def test_accelerate_keeps_parametrizations() -> None:
    module = nn.LSTM(3, 4)
    parametrizations.weight_norm(module, "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    expected = module(x)
    keys = list(module.state_dict())
    fastrnn.accelerate(module)
    assert isinstance(module, fastrnn.LSTM)
    assert parametrize.is_parametrized(module, "weight_hh_l0")
    assert list(module.state_dict()) == keys
    assert_same(module(x), expected)
    assert_same(copy.deepcopy(module)(x), expected)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is fastrnn.LSTM
    assert_same(module(x), expected)

    parametrizations.weight_norm(module, "weight_ih_l0")
    fastrnn.restore(module)
    assert not isinstance(module, fastrnn.LSTM)
    assert_same(module(x), expected)


def test_accelerate_leaves_and_names_what_it_cannot_take() -> None:
    replaced_forward = nn.GRU(3, 4)
    replaced_forward.forward = lambda x: x  # type: ignore[assignment]
    model = nn.ModuleDict(
        {
            "own": OwnLSTM(3, 4),
            "patched": replaced_forward,
            "script": torch.jit.script(nn.LSTM(3, 4)),
            "other": GRU(),
            "plain": nn.LSTM(3, 4),
        }
    )
    types = [type(m) for m in model.values()]
    _, report = fastrnn.accelerate(model)
    assert list(report.replaced) == ["plain"]
    assert report.left == {
        "own": f"{OwnLSTM.__module__}.OwnLSTM is a subclass of torch.nn.LSTM with a forward of its own: "
        "call super().forward() in it, or derive it from fastrnn.LSTM",
        "patched": "its forward was replaced on the instance: convert the model first",
        "script": "a torch.nn.LSTM that TorchScript has compiled: convert the model before "
        "torch.jit.script or torch.jit.trace",
        "other": f"{GRU.__module__}.GRU is not torch.nn's",
    }
    assert [type(m) for m in model.values()][:4] == types[:4]


@pytest.mark.parametrize("function", [fastrnn.accelerate, fastrnn.restore])
def test_what_is_no_module_is_refused(function: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"{function.__name__} takes a torch.nn.Module, not a builtins.list"
    ):
        function([nn.LSTM(3, 4)])


def test_accelerate_a_module_registered_twice() -> None:
    layer = nn.GRU(4, 4)
    model = nn.Sequential(layer, nn.Identity())
    model.add_module("again", layer)
    fastrnn.accelerate(model)
    assert model[0] is model.again
    assert type(model[0]) is fastrnn.GRU


def test_accelerate_modules_that_share_weights() -> None:
    model = nn.ModuleList([nn.LSTM(4, 4, num_layers=2), nn.LSTM(4, 4, num_layers=2)])
    model[0].weight_hh_l1 = model[0].weight_hh_l0
    for name, p in model[0].named_parameters(remove_duplicate=False):
        setattr(model[1], name, p)
    plain = copy.deepcopy(model)
    fastrnn.accelerate(model)
    assert len(list(model.parameters())) == 7
    assert model[1].weight_hh_l1 is model[0].weight_hh_l0
    x = torch.randn(5, 2, 4)
    for m in (plain, model):
        loss_of([layer(x) for layer in m]).backward()
    assert_same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()], scale=10)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize(
    "change",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m, n: prune.l1_unstructured(m, n, 0.5)],
    ids=["weight_norm", "spectral_norm", "prune"],
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_accelerate_keeps_weights_that_hooks_compute(kind: str, change: Any) -> None:
    module = getattr(nn, kind)(3, 4).eval()
    change(module, "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    expected = module(x)
    fastrnn.accelerate(module)
    assert_same(module(x), expected)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loss_of(module(x)).backward()
    optimizer.step()
    changed = module(x)
    assert not torch.equal(changed[0], expected[0])
    fastrnn.restore(module)
    assert_same(module(x), changed)


@pytest.mark.parametrize("compiled", [torch.compile, nn.Module.compile], ids=["wrapped", "in place"])
def test_accelerate_a_model_that_has_been_compiled(compiled: Any) -> None:
    """What was compiled with torch.nn's layers is compiled anew, with ours in the graph."""
    torch._dynamo.reset()
    model = Tagger()
    counter = CompileCounterWithBackend("eager")
    returned = compiled(model, backend=counter)
    run = model if returned is None else returned
    x = torch.randn(6, 2, 5)
    expected = run(x)

    def ours_in_graphs() -> int:
        return sum("fastrnn" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)

    assert ours_in_graphs() == 0
    _, report = fastrnn.accelerate(run)
    assert len(report.replaced) == 4
    assert_same(run(x), expected)
    assert ours_in_graphs() > 0
    fastrnn.restore(run)
    assert_same(run(x), expected)


def test_accelerate_inside_data_parallel() -> None:
    plain, fast = twice(nn.DataParallel(Tagger()))
    assert type(fast.module.cell) is fastrnn.GRUCell
    x = torch.randn(6, 2, 5)
    assert_same(fast(x), plain(x))


def test_restore_after_training() -> None:
    """The weights it was trained to, in the same parameters; and training goes on."""
    model = fastrnn.accelerate(Tagger())[0]
    parameters, keys = list(model.parameters()), list(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(6, 2, 5)
    for convert in (fastrnn.restore, fastrnn.accelerate, fastrnn.restore):
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model(x)).backward()
            optimizer.step()
        expected = model(x)
        convert(model)
        assert_same(model(x), expected)
        assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
        assert list(model.state_dict()) == keys


def test_accelerated_model_saves_and_loads() -> None:
    plain, fast = twice(Tagger())
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(6, 2, 5)
    assert torch.equal(loaded(x), fast(x))
    assert_same(loaded(x), plain(x))
    plain.load_state_dict(loaded.state_dict())
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(again.cell) is fastrnn.GRUCell
        assert torch.equal(again(x), fast(x))


def test_patched_reaches_every_way_of_naming_the_class() -> None:
    from torch.nn import LSTM  # as a library that was imported earlier has it

    with fastrnn.patched():
        inside = [
            nn.LSTM(3, 4),
            LSTM(3, 4),
            nn.modules.rnn.LSTM(3, 4),
            nn.GRUCell(3, 4),
            nn.RNN(3, 4, bias=False),
        ]
        own = OwnLSTM(3, 4)
        ours = fastrnn.GRU(3, 4)
        assert isinstance(inside[0], nn.LSTM)
    assert [type(m) for m in inside] == [*[fastrnn.LSTM] * 3, fastrnn.GRUCell, fastrnn.RNN]
    assert type(own) is OwnLSTM
    assert type(ours) is fastrnn.GRU
    assert [type(nn.LSTM(3, 4)), type(nn.GRUCell(3, 4))] == [nn.LSTM, nn.GRUCell]


def test_patched_makes_what_the_constructor_would() -> None:
    with fastrnn.patched(), fastrnn.patched():
        module = nn.LSTM(3, 4)
        assert "device" in inspect.signature(nn.LSTMCell).parameters
        assert type(nn.utils.skip_init(nn.LSTMCell, 3, 4)) is fastrnn.LSTMCell
    # torch.nn's layers keep weak references to their weights, which could not be swapped then.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert set(vars(module)) == set(vars(fastrnn.LSTM(3, 4)))


def test_patched_lasts_until_it_is_stopped() -> None:
    lasting = fastrnn.patched().start()
    try:
        lasting.start()
        layer = nn.LSTM(3, 4)
        assert type(layer) is fastrnn.LSTM
        with fastrnn.patched():
            pass
        assert type(nn.GRU(3, 4)) is fastrnn.GRU
    finally:
        lasting.stop()
    lasting.stop()
    assert type(nn.LSTM(3, 4)) is nn.LSTM
    assert type(layer) is fastrnn.LSTM


def test_patched_ends_with_an_error_inside() -> None:
    with pytest.raises(ZeroDivisionError), fastrnn.patched():
        raise ZeroDivisionError
    assert type(nn.GRU(3, 4)) is nn.GRU


@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}Cell" for kind in KINDS)])
def test_torchscript_compiles_torch_nns_layer_on_the_same_weights(kind: str) -> None:
    layer = getattr(fastrnn, kind)(3, 4)
    model = nn.Sequential(layer)
    for x in (torch.randn(5, 3), *([] if kind.endswith("Cell") else [torch.randn(5, 2, 3)])):
        scripted = torch.jit.script(model)
        expected = layer(x)
        assert_same(scripted(x), expected)
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        file.seek(0)
        assert_same(torch.jit.load(file)(x), expected)
    for p, q in zip(scripted.parameters(), layer.parameters(), strict=True):
        assert p is q
    fastrnn.accelerate(model)
    assert type(model[0]) is type(layer)


class PackedModel(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, _ = self.rnn(packed)
        return nn.utils.rnn.pad_packed_sequence(y)[0]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchscript_with_packed_sequences(kind: str) -> None:
    model = PackedModel(getattr(fastrnn, kind)(3, 4, num_layers=2, bidirectional=True))
    args = (torch.randn(5, 3, 3), torch.tensor([2, 5, 4]))
    expected = model(*args)
    assert_same(torch.jit.script(model)(*args), expected)


class OwnGRU(fastrnn.GRU):
    pass


@pytest.mark.parametrize("cls", [fastrnn.GRUResetBefore, OwnGRU])
def test_torchscript_of_what_torch_has_no_twin_of(cls: type[nn.Module]) -> None:
    with pytest.raises(
        RuntimeError, match=rf"{cls.__name__} can't be compiled by TorchScript: torch.nn has no"
    ):
        torch.jit.script(fastrnn.restore(cls(3, 4)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace() -> None:
    layer = fastrnn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    assert_same(torch.jit.trace(layer, x)(x), layer(x))


@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}Cell" for kind in KINDS)])
def test_jit_trace_warns_of_no_more_than_torch_nn_does(kind: str) -> None:
    x = torch.randn(2, 3) if kind.endswith("Cell") else torch.randn(5, 2, 3)
    where = []
    for module in (getattr(nn, kind)(3, 4), getattr(fastrnn, kind)(3, 4)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", torch.jit.TracerWarning)
            torch.jit.trace(module, x)
        where.append({(w.filename, w.lineno) for w in caught})
    assert where[1] <= where[0]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_dynamic_quantization_says_what_to_do() -> None:
    from torch.ao.nn.quantized import dynamic
    from torch.ao.quantization import quantize_dynamic

    model = nn.Sequential(fastrnn.LSTM(3, 4))
    with pytest.warns(
        UserWarning, match=r"leaves fastrnn.LSTM as it is: call fastrnn.restore\(model\) first"
    ):
        left = quantize_dynamic(model, {nn.LSTM})
    assert type(left[0]) is fastrnn.LSTM
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.ao.quantization leaves")
        quantized = quantize_dynamic(fastrnn.restore(model), {nn.LSTM})
    assert type(quantized[0]) is dynamic.LSTM
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(quantized(x)[0], model(x)[0], atol=0.05, rtol=0)
    _, report = fastrnn.accelerate(quantized)
    assert report.left == {
        "0": "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM is quantized: convert the float model; "
        "for int8 weights see prepack"
    }
