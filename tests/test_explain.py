"""fastrnn.explain(model, *inputs): what serves each recurrent layer of a model, seen while it runs once."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")

T, B, I, H = 4, 3, 5, 6
FUSED = f"fused on {fastrnn.build_info()['cpu_target']} in float32: kernels serve this device and dtype"


class Stepped(nn.Module):
    """Drives each of its modules one step at a time."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> None:
        for module in self.children():
            state = None
            for step in x:
                if isinstance(module, nn.RNNBase):
                    _, state = module(step[None], state)
                else:
                    state = module(step, state)


def lines(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    return str(fastrnn.explain(model, *args, **kwargs)).splitlines()


@pytest.mark.parametrize("cell", support.LAYERS)
def test_a_line_for_each_layer(cell: str) -> None:
    theirs, ours = support.twins(cell, I, H)
    model = nn.ModuleDict({"ours": nn.Sequential(ours), "theirs": theirs, "idle": fastrnn.GRU(I, H)})
    model.forward = lambda x: (model["ours"](x), model["ours"](x), model["theirs"](input=x))
    converted = f"it is torch.nn.{type(theirs).__name__}: fastrnn.accelerate(model) converts it"
    assert lines(model, torch.zeros(T, B, I)) == [
        f"ours.0: 2 calls, {FUSED}",
        f"theirs: 1 call, torch: {converted}",
        "idle: not called",
    ]
    explanation = fastrnn.explain(model, torch.zeros(T, B, I))
    assert [(e.path, n) for calls in explanation.layers.values() for e, n in calls.items()] == [
        ("fused", 2),
        ("torch", 1),
    ]
    assert not explanation.advice


@pytest.mark.parametrize("cell", support.CELLS)
def test_a_loop_over_cells(cell: str) -> None:
    theirs, ours = support.cell_twins(cell, I, H)
    found = lines(Stepped(ours=ours, theirs=theirs), torch.zeros(T, B, I))
    advice = "called a step at a time: use the layer with states=True if all inputs are known before"
    assert found[0] == f"ours: 4 calls, {FUSED}; {advice}"
    assert found[1].startswith("theirs: 4 calls, torch")
    assert found[1].endswith(advice)
    assert "step at a time" not in lines(Stepped(ours=ours), torch.zeros(1, B, I))[0]


@pytest.mark.parametrize("library", [nn, fastrnn])
def test_a_loop_over_calls_of_a_layer(library: Any) -> None:
    advice = "called a step at a time: give it the whole sequence if all inputs are known before"
    for flags in ({}, {"num_layers": 2}):
        [line] = lines(Stepped(rnn=library.LSTM(I, H, **flags)), torch.zeros(T, B, I))
        assert line.endswith(advice)
    layer = library.GRU(I, H, batch_first=True)
    model = nn.Sequential(layer)
    model.forward = lambda x: [layer(x[:, :1]) for _ in range(3)]
    assert lines(model, torch.zeros(B, T, I))[0].endswith(advice)
    model.forward = lambda x: [layer(x) for _ in range(3)]
    assert "step at a time" not in lines(model, torch.zeros(B, T, I))[0]
    packed = pack_sequence([torch.zeros(T, I), torch.zeros(1, I)])
    assert "step at a time" not in lines(model, packed)[0]


def bypass(layer: Any, x: Tensor) -> None:
    zeros = torch.zeros(1, x.shape[1], H)
    hx = (zeros, zeros) if layer.mode == "LSTM" else zeros
    options = (True, 1, 0.0, layer.training, False, False)
    getattr(torch._VF, layer.mode.lower())(x, hx, layer._flat_weights, *options)


@pytest.mark.parametrize("cell", support.LAYERS)
def test_kernels_that_are_bypassed(cell: str) -> None:
    for layer in support.twins(cell, I, H):
        model = nn.Sequential(layer)
        model.forward = lambda x, layer=layer: (layer(x), bypass(layer, x))
        through, past = lines(model, torch.zeros(T, B, I))
        assert through.startswith("0: 1 call, ")
        assert "bypass" not in through
        why = "is called with its weights and bypasses it: call the layer itself"
        assert past == f"0: 1 call, torch: torch.{layer.mode.lower()} {why}"


def test_torchs_operators_from_this_packages_layers_are_no_bypass() -> None:
    cell, layer = fastrnn.LSTMCell(I, H), fastrnn.GRU(I, H)
    model = nn.Sequential(cell, layer)
    model.forward = lambda x: (cell(x[0]), torch.jit.trace(layer, x, check_trace=False))
    with torch.autocast("cpu", torch.bfloat16):
        assert lines(model, torch.zeros(T, B, I)) == [
            "0: 1 call, torch: autocast is active, which torch.nn's cells follow",
            "1: 1 call, torch: torch.jit is tracing",
        ]
        hx = (torch.zeros(B, H), torch.zeros(B, H))
        model.forward = lambda x: (cell(x, hx), torch.lstm_cell(x, hx, *cell.parameters()))
        assert "torch.lstm_cell is called with its weights" in lines(model, torch.zeros(B, I))[1]


def test_each_path_of_a_layer() -> None:
    layer = fastrnn.GRU(I, H)
    model = nn.Sequential(layer)
    vmapped = torch.vmap(lambda x: layer(x)[0])
    model.forward = lambda x: (layer(x), vmapped(x[None]), layer(x, lengths=[1] * B))
    assert lines(model, torch.zeros(T, B, I)) == [f"0: 3 calls, {FUSED}"]
    model.forward = lambda x: (layer(x), torch.func.jacfwd(lambda x: layer(x)[0])(x))
    why = "forward-mode AD is active, and kernels have no forward derivative"
    assert lines(model, torch.zeros(T, B, I)) == [
        f"0: 1 call, {FUSED}",
        f"0: 1 call, reference in float32: {why}",
    ]


class OwnForward(nn.LSTM):
    def forward(self, x: Tensor) -> Any:
        bypass(self, x)


class CallsSuper(nn.GRU):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.relu())


def test_subclasses() -> None:
    model = nn.Sequential(OwnForward(I, H), CallsSuper(I, H))
    model.forward = lambda x: [layer(x) for layer in model]
    own, calls = lines(model, torch.zeros(T, B, I))
    assert own.startswith("0: 1 call, torch: ")
    assert "a subclass of torch.nn.LSTM with a forward of its own" in own
    assert calls == "1: 1 call, torch: it is CallsSuper: fastrnn.accelerate(model) converts it"
    fastrnn.accelerate(model)
    assert lines(model, torch.zeros(T, B, I))[1] == f"1: 1 call, {FUSED}"


def test_what_cannot_be_converted_is_named_with_a_remedy() -> None:
    traced = torch.jit.trace(nn.LSTM(I, H), torch.zeros(T, B, I))
    [line] = lines(nn.Sequential(traced), torch.zeros(T, B, I))
    assert line.startswith("0: a torch.nn.LSTM that TorchScript has compiled: convert the model before")
    assert lines(nn.Linear(I, H), torch.zeros(B, I)) == ["no recurrent layer"]


@pytest.mark.parametrize("weights", [None, "int8"])
def test_prepacked(weights: str | None) -> None:
    model = fastrnn.prepack(nn.Sequential(nn.LSTM(I, H)).eval(), weights)
    assert lines(model, torch.zeros(T, B, I)) == [f"0: 1 call, {FUSED}"]


def test_a_compiled_model_runs_as_it_was_before() -> None:
    model = torch.compile(nn.Sequential(fastrnn.GRU(I, H)), backend="eager")
    x = torch.zeros(T, B, I)
    for _ in range(2):
        assert lines(model, x) == [f"_orig_mod.0: 1 call, {FUSED}"]
        support.same(model(x), model._orig_mod(x))


def test_nothing_of_it_lasts() -> None:
    """Also after an error, which is the model's own."""
    before = [vars(cls)["_plan"] for cls in (fastrnn.nn.base.Recurrent, fastrnn.nn.cells.RecurrentCell)]
    model = nn.Sequential(nn.LSTM(I, H), nn.Linear(I, H))
    with pytest.raises(TypeError):
        fastrnn.explain(model, torch.zeros(T, B, I))
    after = [vars(cls)["_plan"] for cls in (fastrnn.nn.base.Recurrent, fastrnn.nn.cells.RecurrentCell)]
    assert before == after
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_the_reason_of_a_call_that_torch_nn_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = fastrnn.GRU(I, H).requires_grad_(False), torch.zeros(T, B, I)
    said: list[str] = []

    def traced(x: Tensor) -> Tensor:
        said.append(str(fastrnn.explain(layer, x, states=True)))
        return layer(x, states=True)[0]

    torch.jit.trace(traced, x, check_trace=False)
    monkeypatch.setattr(fastrnn.routing, "KERNEL_DEVICES", {"cpu"})
    on_meta = fastrnn.explain(layer.to("meta"), x.to("meta"), states=True)
    missing = "and torch.nn has no lengths, reset or states"
    assert said == [f"reference in float32: torch.jit is tracing, {missing}"]
    assert str(on_meta) == f"reference in float32: this build has no kernels for meta, {missing}"


def test_a_training_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), fastrnn.LSTM(4, 6, 2, dropout=0.5))
    random, mean = torch.get_rng_state(), model[0].running_mean.clone()
    fastrnn.explain(model, torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model[0].running_mean, mean)
