"""Recurrence: layers of declared cells against a plain loop in torch, and all that layers do."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import declared
import pytest
import torch
from declared import CELLS, random_cells
from hypothesis import given, settings
from support import check_rule, errors, leaves, tensors_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.cells import Cell, compiler, plugin

EPSILON = {torch.float64: 1e-12, torch.float32: 1e-5}


def loop(layer: fastrnn.Recurrence, x: Tensor, hx: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """One layer in one direction as its user would write it: h of every step, then the last states."""
    cell, H = layer.cell, layer.hidden_size
    states, ys = dict(zip(cell.states, hx, strict=True)), []
    for t in range(len(x)):
        x_part = x[t] @ layer.weight_ih_l0.T
        h_part = states[cell.states[0]] @ layer.weight_hh_l0.T
        if layer.bias:
            x_part, h_part = x_part + layer.bias_ih_l0, h_part + layer.bias_hh_l0
        values = dict(states)
        for i, gate in enumerate(cell.gates):
            a, b = x_part[:, i * H : (i + 1) * H], h_part[:, i * H : (i + 1) * H]
            values.update(zip(gate.parts, (a, b) if len(gate.parts) == 2 else (a + b,), strict=True))
        values.update({name: getattr(layer, f"{name}_l0") for name in cell.weights})
        values.update({name: given[t] for name, given in inputs.items()})
        new = cell(*(values[p] for p in cell.parameters))
        states = dict(zip(cell.states, (new,) if isinstance(new, Tensor) else new, strict=True))
        ys.append(states[cell.states[0]])
    return [torch.stack(ys), *states.values()]


def with_gradients(
    layer: nn.Module, run: Any, x: Tensor, hx: list[Tensor], inputs: dict[str, Tensor]
) -> list[Tensor]:
    """Results and gradients of everything, for random gradients of the results."""
    x, *states = leaves(x, *hx)
    given = dict(zip(inputs, leaves(*inputs.values()), strict=True))
    results = run(layer, x, states, given)
    wanted = [x, *states, *given.values(), *layer.parameters()]
    generator = torch.Generator().manual_seed(1)
    outer = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    pairs = [(r, o) for r, o in zip(results, outer, strict=True) if r.requires_grad]
    if not pairs:  # new states that nothing reaches
        return [*results, *map(torch.zeros_like, wanted)]
    results_of, outer = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(results_of, wanted, outer, allow_unused=True, materialize_grads=True)
    return [*results, *gradients]


def fused(layer: nn.Module, x: Tensor, hx: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    assert fastrnn.explain(layer, x, hx_of(hx), **inputs).path == "fused"
    y, last = layer(x, hx_of(hx), **inputs)
    return [y, *(s[0] for s in ([last] if isinstance(last, Tensor) else last))]


def hx_of(states: list[Tensor]) -> Any:
    states = [s.unsqueeze(0) for s in states]
    return states[0] if len(states) == 1 else tuple(states)


def problem(cell: Cell, dtype: torch.dtype, T: int, B: int, I: int, H: int, **options: Any) -> Any:
    layer = fastrnn.Recurrence(cell, I, H, dtype=dtype, **options)
    x = torch.randn(T, B, I, dtype=dtype)
    hx = [torch.rand(B, H, dtype=dtype) for _ in cell.states]
    return layer, x, hx, {name: torch.rand(T, B, H, dtype=dtype) for name in cell.inputs}


_NOT_SMOOTH = ("functions", "masks", "mask_arithmetic", "spiking", "surrogate", "constant_state")
SMOOTH = [name for name in CELLS if name not in _NOT_SMOOTH]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_exactness(name: str, dtype: torch.dtype) -> None:
    cell = CELLS[name]

    def draw(i: int) -> Any:
        torch.manual_seed(i)
        layer, x, hx, inputs = problem(cell, dtype, 9, 5, 7, 37)
        wide = [copy.deepcopy(layer).double(), x.double(), [s.double() for s in hx]]
        exact = with_gradients(wide[0], loop, *wide[1:], {k: v.double() for k, v in inputs.items()})
        theirs = with_gradients(layer, loop, x, hx, inputs)
        ours = with_gradients(layer, fused, x, hx, inputs)
        names = [f"tensor {i}" for i in range(len(exact))]
        return errors(names, exact, theirs, ours, dtype)

    check_rule(f"{name}", dtype, draw)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 6, 3, 40), (70, 9, 33, 65)], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_float64_equals_the_loop(name: str, sizes: tuple[int, ...]) -> None:
    layer, *given = problem(CELLS[name], torch.float64, *sizes)
    ours, exact = with_gradients(layer, fused, *given), with_gradients(layer, loop, *given)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=4)
@given(random_cells())
def test_random_cells_equal_the_loop(cell: Cell) -> None:
    layer, *arguments = problem(cell, torch.float64, 4, 3, 5, 19)
    ours, exact = with_gradients(layer, fused, *arguments), with_gradients(layer, loop, *arguments)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "built_in"), [("lstm", fastrnn.LSTM), ("gru", fastrnn.GRU)])
def test_declared_cells_equal_the_built_in_ones(name: str, built_in: Any) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    a, b = fastrnn.Recurrence(CELLS[name], 6, 20, **options), built_in(6, 20, **options)
    assert list(a.state_dict()) == list(b.state_dict())
    a.load_state_dict(b.state_dict())
    x, lengths, reset = torch.randn(5, 9, 6), torch.tensor([9, 0, 4, 7, 1]), torch.rand(5, 9) < 0.2
    for kwargs in ({}, {"lengths": lengths, "reset": reset, "states": True}):
        torch.testing.assert_close(tensors_of(a(x, **kwargs)), tensors_of(b(x, **kwargs)))
    packed = pack_padded_sequence(x, lengths.clamp(min=1), batch_first=True, enforce_sorted=False)
    torch.testing.assert_close(tensors_of(a(packed)), tensors_of(b(packed)))
    torch.testing.assert_close(tensors_of(a(x[0])), tensors_of(b(x[0])))


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "deep": {"num_layers": 3},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "batch_first": {"batch_first": True},
    "lean": {"memory": "lean"},
    "lean_bidirectional": {"memory": "lean", "bidirectional": True},
}


@pytest.mark.parametrize("masks", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["peephole", "zoneout", "slstm", "decaying", "five_states", "split_first"])
def test_every_form_equals_the_reference(name: str, form: str, masks: bool) -> None:
    T, B, I, H = 6, 4, 5, 21
    options, cell = FORMS[form], CELLS[name]
    layer = fastrnn.Recurrence(cell, I, H, dtype=torch.float64, **options)
    leading = (B, T) if layer.batch_first else (T, B)
    inputs = {n: torch.rand(*leading, H, dtype=torch.float64) for n in cell.inputs}
    more: Any = {"lengths": torch.tensor([6, 0, 3, 5]), "reset": torch.rand(leading) < 0.3} if masks else {}

    def run(layer: Any, x: Tensor, hx: Any, given: Any) -> list[Tensor]:
        return tensors_of(layer(x, hx[0] if len(hx) == 1 else tuple(hx), states=True, **given, **more))

    count = layer.num_layers * (2 if layer.bidirectional else 1)
    hx = [torch.rand(count, B, H, dtype=torch.float64) for _ in cell.states]
    x = torch.randn(*leading, I, dtype=torch.float64)
    ours = with_gradients(layer, run, x, hx, inputs)
    layer._no_kernels = "asked for"
    for a, b in zip(ours, with_gradients(layer, run, x, hx, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_names_and_shapes_of_parameters() -> None:
    layer = fastrnn.Recurrence(declared.peephole, 3, 5, num_layers=2, bidirectional=True)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert len(shapes) == 4 * 7
    assert shapes["weight_ih_l0"] == (20, 3)
    assert shapes["weight_ih_l1_reverse"] == (20, 10)
    assert shapes["weight_hh_l1"] == (20, 5)
    assert shapes["p_i_l0"] == shapes["p_o_l1_reverse"] == (5,)
    assert repr(layer) == "Recurrence(peephole, 3, 5, num_layers=2, bidirectional=True)"


def test_forms_of_step_inputs() -> None:
    layer = fastrnn.Recurrence(declared.decaying, 3, 5, num_layers=2, batch_first=True)
    x, whole = torch.randn(4, 6, 3), torch.rand(4, 6, 5)

    def output(gamma: Any) -> Tensor:
        return layer(x, gamma=gamma)[0]

    assert torch.equal(output(whole), output([whole, whole]))
    assert not torch.equal(output(whole), output([whole, 2 * whole]))
    row, unit = torch.rand(4, 5), torch.rand(5)
    assert torch.equal(output(row), output(row.unsqueeze(1).expand(4, 6, 5)))
    assert torch.equal(output(unit), output(unit.expand(4, 6, 5)))
    assert torch.equal(output(whole[..., :1]), output(whole[..., :1].expand(4, 6, 5)))
    torch.testing.assert_close(layer(x[0], gamma=whole[0])[0], output(whole)[0])


def test_gradients_of_step_inputs_that_are_the_same_for_all() -> None:
    layer = fastrnn.Recurrence(declared.decaying, 3, 5, dtype=torch.float64)
    x, (unit,) = torch.randn(4, 6, 3, dtype=torch.float64), leaves(torch.rand(5, dtype=torch.float64))
    (ours,) = torch.autograd.grad(layer(x, gamma=unit)[0].sum(), unit)
    layer._no_kernels = "asked for"
    (exact,) = torch.autograd.grad(layer(x, gamma=unit)[0].sum(), unit)
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("sort", [False, True])
def test_packed_batches(sort: bool) -> None:
    layer = fastrnn.Recurrence(declared.decaying, 3, 5, num_layers=2, bidirectional=True)
    lengths = torch.tensor([6, 4, 3, 1] if sort else [3, 6, 1, 4])
    x, gamma, row = torch.randn(6, 4, 3), torch.rand(6, 4, 5), torch.rand(4, 5)
    hx = torch.rand(4, 4, 5)
    packed, packed_gamma = (pack_padded_sequence(t, lengths, enforce_sorted=sort) for t in (x, gamma))
    for padded, in_packed in ((gamma, packed_gamma), (row, row)):
        y, h = layer(x, hx, lengths=lengths, gamma=padded)
        packed_y, packed_h = layer(packed, hx, gamma=in_packed)
        torch.testing.assert_close(pad_packed_sequence(packed_y)[0], y)
        torch.testing.assert_close(packed_h, h)


def test_dropout_is_that_of_torch() -> None:
    a, b = fastrnn.Recurrence(declared.lstm, 4, 8, 2, dropout=0.5), fastrnn.LSTM(4, 8, 2, dropout=0.5)
    a.load_state_dict(b.state_dict())
    x = torch.randn(3, 2, 4)
    results = []
    for layer in (a, b):
        torch.manual_seed(5)
        results.append(layer(x)[0])
    torch.testing.assert_close(*results)
    assert torch.equal(a.eval()(x)[0], a(x)[0])


@pytest.mark.parametrize("name", ["peephole", "decaying", "slstm", "split_first", "five_states"])
def test_derivatives_of_derivatives(name: str) -> None:
    layer, x, hx, inputs = problem(CELLS[name], torch.float64, 2, 2, 2, 3)
    parameters = list(layer.parameters())
    tensors = leaves(x, *hx, *inputs.values(), *parameters)

    def run(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        states, given = others[: len(hx)], others[len(hx) : len(hx) + len(inputs)]
        own = dict(zip(dict(layer.named_parameters()), others[len(hx) + len(inputs) :], strict=True))
        kwargs = dict(zip(inputs, given, strict=True))
        result = torch.func.functional_call(layer, own, (x, hx_of(list(states))), kwargs)
        return tuple(tensors_of(result))

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def test_transforms() -> None:
    layer, x, _, inputs = problem(declared.decaying, torch.float64, 3, 4, 2, 5)
    own = dict(layer.named_parameters())

    def loss(own: Any, x: Tensor, gamma: Tensor) -> Tensor:
        given = {"gamma": gamma.unsqueeze(1)}
        return torch.func.functional_call(layer, own, (x.unsqueeze(1),), given)[0].sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 1, 1))(own, x, inputs["gamma"])
    for b in range(4):
        alone = torch.func.grad(loss)(own, x[:, b], inputs["gamma"][:, b])
        for name, gradient in alone.items():
            torch.testing.assert_close(each[name][b], gradient)
    tangent = torch.randn_like(x)
    _, ours = torch.func.jvp(lambda x: layer(x, **inputs)[0], (x,), (tangent,))
    step = 1e-6
    slope = (layer(x + step * tangent, **inputs)[0] - layer(x - step * tangent, **inputs)[0]) / (2 * step)
    torch.testing.assert_close(ours, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["peephole", "decaying", "slstm"])
def test_compiles_whole(name: str) -> None:
    layer, x, _, inputs = problem(CELLS[name], torch.float32, 5, 3, 4, 8, num_layers=2, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for T in (5, 5):
        eager, traced = layer(x[:T], **inputs)[0], compiled(x[:T], **inputs)[0]
        torch.testing.assert_close(traced, eager)
        gradients = [torch.autograd.grad(y.sum(), layer.parameters()) for y in (traced, eager)]
        torch.testing.assert_close(*gradients)


def test_exports() -> None:
    layer, x, _, inputs = problem(declared.decaying, torch.float32, 5, 3, 4, 8)
    program = torch.export.export(layer, (x,), inputs)
    assert any(layer._name in str(node.args) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x, **inputs)[0], layer(x, **inputs)[0])


def test_autocast() -> None:
    layer = fastrnn.Recurrence(declared.peephole, 3, 5)
    x = torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, (h, c) = layer(x)
        with pytest.raises(ValueError, match="int64"):
            layer(x, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5, dtype=torch.int64)))
        doubled = copy.deepcopy(layer).double()
        assert doubled(x.double())[0].dtype == torch.float64
    assert y.dtype == h.dtype == c.dtype == torch.bfloat16
    torch.testing.assert_close(y, layer.bfloat16()(x.bfloat16())[0])


def test_copies_and_files() -> None:
    layer = fastrnn.Recurrence(declared.peephole, 3, 5, memory="lean")
    x, file = torch.randn(4, 2, 3), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert twin.cell is layer.cell
        assert torch.equal(twin(x)[0], layer(x)[0])


def test_replaced_weights() -> None:
    layer = fastrnn.Recurrence(declared.peephole, 3, 5)
    x = torch.randn(4, 2, 3)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    layer(x)[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original0.grad is not None
    nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    zeros = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    assert not torch.func.functional_call(layer, zeros, (x,))[0].any()


def test_on_meta() -> None:
    with torch.device("meta"):
        layer = fastrnn.Recurrence(declared.peephole, 3, 5)
        y, (_, c) = layer(torch.empty(4, 2, 3))
    assert y.shape == (4, 2, 5)
    assert c.is_meta


def test_a_cell_defined_again_is_another() -> None:
    def define(factor: float) -> Cell:
        @fastrnn.cell
        def again(a, h):
            return factor * torch.tanh(a)

        return again

    x, layers = torch.randn(4, 2, 3), [fastrnn.Recurrence(define(f), 3, 5, bias=False) for f in (1.0, 2.0)]
    layers[1].load_state_dict(layers[0].state_dict())
    first, second = (layer(x[:1])[0] for layer in layers)
    torch.testing.assert_close(second, 2 * first)


def test_equal_cells_are_loaded_once() -> None:
    def define() -> Cell:
        @fastrnn.cell
        def equal(a, h):
            return torch.tanh(a) + 0.125 * h

        return equal

    assert plugin.register(define()) == plugin.register(define())


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    @fastrnn.cell
    def never_compiled(a, h):
        return torch.tanh(a) + 0.0625 * h

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compiler, "_find_compiler", compiler._find_compiler.__wrapped__)
    layer = fastrnn.Recurrence(never_compiled, 3, 5)
    explained = fastrnn.explain(layer, torch.randn(4, 2, 3))
    assert explained.path == "reference"
    assert "no C++ compiler (looked for " in explained.reason
    x = torch.randn(4, 2, 3)
    layer(x)[0].sum().backward()
    torch.testing.assert_close(layer(x)[0], loop(layer, x, [torch.zeros(2, 5)], {})[0])


def test_a_construct_without_cpp_runs_on_the_reference() -> None:
    @fastrnn.cell
    def normalized(a, h):
        return torch.tanh(torch.nn.functional.layer_norm(a, a.shape[-1:]))

    layer, x = fastrnn.Recurrence(normalized, 3, 5), torch.randn(4, 2, 3)
    explained = fastrnn.explain(layer, x)
    assert explained.path == "reference"
    assert "`torch.nn.functional.layer_norm(a, a.shape[-1:])` looks at other units" in explained.reason
    torch.testing.assert_close(layer(x)[0], loop(layer, x, [torch.zeros(2, 5)], {})[0])


def test_a_function_that_raises_for_few_units_runs_on_the_reference() -> None:
    @fastrnn.cell
    def ten_or_more(a, h):
        if a.shape[-1] < 10:
            raise ValueError
        return torch.tanh(a)

    layer, x = fastrnn.Recurrence(ten_or_more, 3, 10), torch.randn(4, 2, 3)
    explained = fastrnn.explain(layer, x)
    assert explained.reason == "ten_or_more can't be traced: ValueError: no message"
    torch.testing.assert_close(layer(x)[0], loop(layer, x, [torch.zeros(2, 10)], {})[0])


def test_a_cell_that_changes_its_arguments_runs_on_the_reference() -> None:
    @fastrnn.cell(states="h c")
    def changing(g_x, g_h, h, c):
        g_x += g_h
        c *= torch.sigmoid(g_x)
        c += g_h
        return torch.tanh(c), c

    @fastrnn.cell(states="h c")
    def twin(g_x, g_h, h, c):
        c = c * torch.sigmoid(g_x + g_h) + g_h
        return torch.tanh(c), c

    layer, *arguments = problem(changing, torch.float64, 4, 2, 3, 5)
    same = fastrnn.Recurrence(twin, 3, 5, dtype=torch.float64)
    same.load_state_dict(layer.state_dict())

    def run(layer: Any, x: Tensor, hx: list[Tensor], inputs: Any) -> list[Tensor]:
        return tensors_of(layer(x, hx_of(hx)))

    changed, exact = (with_gradients(of, run, *arguments) for of in (layer, same))
    for a, b in zip(changed, exact, strict=True):
        torch.testing.assert_close(a, b)


def test_explained() -> None:
    layer, x = fastrnn.Recurrence(declared.peephole, 3, 5), torch.randn(4, 2, 3)
    target = fastrnn.build_info()["cpu_target"]
    assert str(fastrnn.explain(layer, x)).startswith(f"fused on {target} in float32")
    with torch.autograd.forward_ad.dual_level():
        assert fastrnn.explain(layer, x).path == "reference"
    complex_layer = fastrnn.Recurrence(declared.rnn_tanh, 3, 5, dtype=torch.complex64)
    assert fastrnn.explain(complex_layer, x.to(torch.complex64)).path == "reference"


def test_explained_inside_a_model() -> None:
    model = nn.Sequential(nn.Linear(2, 3), fastrnn.Recurrence(declared.minimal_gated, 3, 5))
    (explanation,) = fastrnn.explain(model, torch.randn(4, 2, 2)).layers["1"]
    assert explanation.path == "fused"
