"""The demo's verdict: equal for correct layers, unequal for slightly wrong ones."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from fastrnn import functional

SCRIPT = Path(__file__).parents[1] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("matplotlib", reason="the demo draws a plot; install fastrnn[demo]")
    pytest.importorskip("tqdm", reason="the demo shows progress; install fastrnn[demo]")
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    module = sys.modules["demo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


@pytest.fixture
def size(demo):
    return demo.Size(hidden=48, length=32, batch=8, characters=100_000)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_right_layers_are_equal(demo, size, name, capsys, tmp_path):
    text = demo.Text(size.characters)
    comparison = demo.compare(name, text, size, steps=20)
    assert demo.report(comparison, size)
    assert comparison.theirs.losses[-1] < comparison.theirs.losses[0] - 0.5
    assert len(demo.generate(comparison.ours.model, text, 30)) == len(demo.PROMPT) + 30
    demo.plot([comparison], tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_gate_off_by_a_thousandth_is_unequal(demo, size, name, capsys, monkeypatch):
    layer = functional.fused_layer

    def planted(cell, x, h0, c0, weights, *rest, **options):
        w_ih, w_hh, b_ih, *others = weights
        wrong = b_ih.clone()
        wrong[size.hidden : 2 * size.hidden] += 1e-3  # the forget gate, or GRU's update gate
        return layer(cell, x, h0, c0, (w_ih, w_hh, wrong, *others), *rest, **options)

    monkeypatch.setitem(functional.LAYERS, "fused", planted)
    comparison = demo.compare(name, demo.Text(size.characters), size, steps=20)
    assert comparison.first_unequal() is not None
    assert not demo.report(comparison, size)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_gradient_off_by_a_hundredth_is_unequal(demo, size, name, monkeypatch):
    layer = functional.fused_layer

    def planted(cell, x, h0, c0, weights, *rest, **options):
        w_ih, w_hh, *others = weights
        wrong = w_hh * 1
        # A new error at each step: Adam is invariant to a constant factor.
        wrong.register_hook(lambda grad: grad * (1 + 1e-2 * torch.randn_like(grad)))
        return layer(cell, x, h0, c0, (w_ih, wrong, *others), *rest, **options)

    monkeypatch.setitem(functional.LAYERS, "fused", planted)
    comparison = demo.compare(name, demo.Text(size.characters), size, steps=40)
    assert comparison.first_unequal() is not None


def test_an_unwritable_folder_fails_before_training(demo, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit, match="2"):
        demo.main()
    assert "cannot write to" in capsys.readouterr().err
