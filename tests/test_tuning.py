"""fastrnn.tune: what is measured and checked, what is remembered, and that it is then used."""

from __future__ import annotations

import json
import subprocess
import sys
import timeit
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import drivers, routing, tuned, tuning

T, B, I, H = 5, 3, 4, 6


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, in which nothing was tuned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FASTRNN_TUNED", raising=False)
    forget()
    yield tmp_path / "fastrnn"
    monkeypatch.undo()
    forget()


def forget() -> None:
    """As in a new process."""
    tuned._known = None
    drivers.refresh()


def tune(module: nn.Module, *inputs: Any, **options: Any) -> fastrnn.Tuning:
    return fastrnn.tune(module, *inputs, seconds=0, progress=False, **options)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says which driver is the faster one, as no measurement of small shapes does twice."""

    def make(name: str) -> None:
        def times(names: list[str], *_: Any) -> dict[str, float]:
            return {each: 10.0 if each == name else 20.0 for each in names}

        monkeypatch.setattr(tuning, "_times", times)

    return make


def test_the_faster_driver_runs_from_then_on(faster: Any) -> None:
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    faster("torch")
    before = layer(x)[0]
    found = tune(layer, x)
    assert [(c.driver, c.key.training) for c in found.calls] == [("torch", False), ("torch", True)]
    assert "inference, B 3..4, T 5..8: torch (fused 20 us, torch 10 us)" in str(found)
    assert fastrnn.explain(layer, x).driver == "torch"
    assert "tuned here: 2.00 times as fast" in fastrnn.explain(layer, x).reason
    torch.testing.assert_close(layer(x)[0], before)
    with torch.no_grad():
        assert fastrnn.explain(layer, x).driver == "torch"
    forget()  # read from the file
    assert fastrnn.explain(layer, x).driver == "torch"


def test_a_result_holds_for_its_kind_of_call_only(faster: Any) -> None:
    layer = fastrnn.GRU(I, H).eval()
    faster("torch")
    tune(layer, torch.randn(T, B, I))

    def driver(layer: nn.Module, x: Any) -> str | None:
        return fastrnn.explain(layer, x).driver

    with torch.no_grad():
        assert driver(layer, torch.randn(8, 4, I)) == "torch"
        assert driver(fastrnn.GRU(I, H), torch.randn(T, B, I)) == "torch"
        for shape in ((9, B, I), (T, 5, I), (4, B, I), (T, 2, I)):
            assert driver(layer, torch.randn(shape)) is None
        for other in (
            fastrnn.GRU(I, H, 2),
            fastrnn.GRU(I, H, bidirectional=True),
            fastrnn.GRU(I, H + 1),
            fastrnn.LSTM(I, H),
            fastrnn.RNN(I, H),
        ):
            assert driver(other, torch.randn(T, B, I)) is None
        assert driver(layer.double(), torch.randn(T, B, I).double()) is None
        assert driver(fastrnn.GRU(I, H), pack_sequence([torch.randn(T, I)] * B)) is None
    assert driver(fastrnn.GRU(I, H), torch.randn(T, B, I)) is None  # it needs gradients


def test_a_result_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake tensors: which driver is chosen."""
    monkeypatch.setattr(routing, "KERNEL_DEVICES", {"cpu", "meta", "cuda"})
    monkeypatch.setattr(fastrnn.LSTM, "reset_parameters", lambda self: None)
    monkeypatch.setattr(tuned, "_gpu", lambda index: "a GPU")
    key = ("a GPU", "lstm", "float32", 1, 1, I, H, 0, False, False, tuned.bucket(B), tuned.bucket(T))
    tuned.add({tuned.Key(*key): tuned.Choice("fused", 1.5)})
    with FakeTensorMode(), torch.no_grad():
        layer = fastrnn.LSTM(I, H, device="cuda")
        for shape, driver in (((T, B, I), "fused"), ((T, 9, I), "torch")):
            path = layer._plan(torch.empty(shape, device="cuda"), None, None, None, False)[1]
            assert (path.name, path.driver) == (driver, driver)


def test_a_model_and_a_second_run(faster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    faster("fused")
    model = nn.ModuleDict({"a": fastrnn.LSTM(I, H), "b": fastrnn.GRU(H, H), "c": nn.GRU(H, H)})
    model.forward = lambda x: model["c"](model["b"](model["a"](x)[0], torch.zeros(1, B, H))[0])
    state = torch.get_rng_state()
    found = fastrnn.tune(model, torch.randn(T, B, I))
    assert [(c.layer, c.key.training) for c in found.calls] == [
        ("a", False),
        ("a", True),
        ("b", False),
        ("b", True),
    ]
    assert all(c.us for c in found.calls)
    assert "tuning call 2 of 2: b, training" in capsys.readouterr().err
    torch.set_rng_state(state)
    again = tune(model, torch.randn(T, B, I))
    assert str(again).count("already tuned") == 4
    assert all(c.us for c in tune(model, torch.randn(T, B, I), again=True).calls)


def test_calls_without_a_choice_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(T, B, I)
    layer = fastrnn.LSTM(I, H)
    for module, options in (
        (layer, {"lengths": [1, 2, 3]}),
        (layer, {"states": True}),
        (fastrnn.LSTM(I, H, memory="lean"), {}),
        (fastrnn.GRUResetBefore(I, H), {}),
        (fastrnn.prepack(layer.eval()), {}),
    ):
        assert not tune(module, x, **options).calls
    monkeypatch.setattr(fastrnn.ops, "_cpu_precision", lambda: fastrnn.ops._MEDIUM)
    assert not tune(fastrnn.LSTM(I, H), x).calls
    assert str(tune(nn.Linear(I, H), x)) == "no call has a choice of drivers"


class Normed(nn.Module):
    """A model with random numbers, running means, and a weight that is computed from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(I)
        self.rnn = fastrnn.LSTM(I, H, 2, dropout=0.5)
        nn.utils.parametrizations.spectral_norm(self.rnn, "weight_hh_l0")

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]


def test_tuning_leaves_a_training_model_as_it_was() -> None:
    model, x = Normed(), torch.randn(T, B, I)
    model(x).sum().backward()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    random = torch.get_rng_state()
    assert len(tune(model, x).calls) == 2
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert model.rnn.dropout == 0.5
    assert not model.rnn._forward_pre_hooks


def test_pruned_layers_and_inference_mode_are_tuned() -> None:
    layer = fastrnn.LSTM(I, H)
    prune.l1_unstructured(layer, "weight_hh_l0", 0.5)
    layer(torch.randn(T, B, I))
    assert all(c.us for c in tune(layer, torch.randn(T, B, I)).calls)
    with torch.inference_mode():
        assert [bool(c.us) for c in tune(fastrnn.GRU(I, H), torch.randn(T, B, I)).calls] == [True]


def test_what_cannot_be_compared_is_not_remembered() -> None:
    """Results that are not finite; results without elements would count for other batches."""
    layer = fastrnn.LSTM(I, H).eval()
    found = tune(layer, torch.full((T, B, I), torch.nan))
    assert "fused (not measured); fused is out: the exact results are not finite" in str(found)
    assert not tune(layer, torch.randn(T, 0, I)).calls
    assert not tuned.has_results()


@pytest.mark.parametrize("what", ["raises", "nan", "wrong"])
def test_a_driver_that_is_not_right_is_out(what: str, faster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is."""
    faster("fused")
    fused = fastrnn.functional.recurrent

    def broken(*args: Any, **options: Any) -> Any:
        y, *rest = fused(*args, **options)
        if what == "raises":
            raise RuntimeError("no such instruction")
        return y * (float("nan") if what == "nan" else 1.001), *rest

    monkeypatch.setattr(fastrnn.functional, "recurrent", broken)
    found = tune(fastrnn.LSTM(I, H).eval(), torch.randn(T, B, I)).calls[0]
    assert found.driver == "torch"
    expected = {"raises": "raises RuntimeError: no such", "nan": "not finite", "wrong": "its error is"}
    assert expected[what] in found.out["fused"]
    assert "fused is out" in str(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_the_drivers_that_there_are_pass(cell: str, dtype: torch.dtype) -> None:
    layer = getattr(fastrnn, cell)(16, 32, 2, bidirectional=True, dropout=0.5, dtype=dtype)
    x = torch.randn(T, B, 16, dtype=dtype, requires_grad=True)
    found = tune(layer, x)
    assert [(c.out, sorted(c.us)) for c in found.calls] == [({}, ["fused", "torch"])] * 2


def test_a_small_gain_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_times", lambda *_: {"fused": 10.2, "torch": 10.0})
    assert tune(fastrnn.LSTM(I, H), torch.randn(T, B, I)).calls[0].driver == "fused"


DAMAGED = ["{", "[]", '{"format": "other", "results": {}}', '{"format": 1}', "", "\x80"]
KIND = [tuned.cpu_name(), "lstm", "float32", 1, 1, I, H, 0, False, True, tuned.bucket(B), tuned.bucket(T)]
ROWS = ([*KIND, "warp", 2.0], [*KIND, "torch", "2"], [["cpu"], *KIND[1:], "torch", 2.0], [1, "torch", 2.0])
for row in ROWS:
    DAMAGED.append(json.dumps({"format": tuned._FORMAT, "results": {tuned._versions(): [row]}}))


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_or_foreign_file_is_ignored(text: str, folder: Path, faster: Any) -> None:
    """With one warning, and replaced."""
    folder.mkdir()
    (folder / "tuned.json").write_bytes(text.encode("latin-1"))
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        forget()
        layer(x)
        layer(x)
    assert ["is damaged or not its own" in str(warning.message) for warning in seen] == [True]
    faster("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tune(layer, x)
    assert json.loads((folder / "tuned.json").read_text())["format"] == tuned._FORMAT


def test_a_folder_that_cannot_be_written(faster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results hold for the process, with a warning."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    faster("torch")
    with pytest.warns(UserWarning, match="can't save what was tuned"):
        tune(layer, x)
    assert fastrnn.explain(layer, x).driver == "torch"


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert not tuned.any_for_cpu()


def test_other_versions_results_are_kept_and_not_used(
    folder: Path, faster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    faster("torch")
    tune(layer, x)
    monkeypatch.setattr(tuned, "__version__", "9")
    forget()
    assert fastrnn.explain(layer, x).driver is None
    tune(layer, x)
    assert len(json.loads((folder / "tuned.json").read_text())["results"]) == 2


def test_nothing_is_read_or_written_when_turned_off(
    folder: Path, faster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTRNN_TUNED", "0")
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    faster("torch")
    tune(layer, x)
    assert fastrnn.explain(layer, x).driver == "torch"  # in this process
    assert not folder.exists()


def test_processes_that_write_at_once_lose_nothing(folder: Path) -> None:
    code = """
import sys
from fastrnn import tuned
for i in range(20):
    key = tuned.Key("gpu", "lstm", "float32", 1, 1, i, int(sys.argv[1]), 0, False, False, 1, 1)
    tuned._known = None
    tuned.add({key: tuned.Choice("torch", 1.5)})
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    forget()
    assert len(tuned._results()) == 40
    assert not [path for path in folder.iterdir() if path.name not in ("tuned.json", "tuned.lock")]


def test_a_look_up_takes_under_a_microsecond_or_little_more(faster: Any) -> None:
    """Ten times as much would be a mistake; the machine is shared."""
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    faster("torch")
    tune(layer, x)
    key = layer._key(layer._arrange(x, None, None, None), torch.float32)
    assert tuned.find(key) == tuned.Choice("torch", 2.0)
    assert min(timeit.repeat(lambda: tuned.find(key), number=1000, repeat=5)) / 1000 < 1e-5


def test_the_names_of_ranges() -> None:
    assert [tuned.sizes_of(tuned.bucket(n)) for n in (1, 2, 3, 4, 5, 64, 65)] == [
        "1",
        "2",
        "3..4",
        "3..4",
        "5..8",
        "33..64",
        "65..128",
    ]


def test_the_command(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    command = [sys.executable, "-m", "fastrnn", "tune", "--cell", "gru", "--hidden", "8", "--batch", "2"]
    command += ["--steps", "3", "--inference", "--layers", "2", "--bidirectional"]
    done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert "gru: inference, B 2, T 3..4: " in done[0].stdout
    assert "already tuned" in done[1].stdout
    assert "tuning call 1 of 1" in done[0].stderr


def test_a_forced_driver_wins_over_a_tuned_one(faster: Any) -> None:
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I)
    faster("torch")
    tune(layer, x)
    with drivers.forced("fused"):
        assert fastrnn.explain(layer, x).path == "fused"
    assert fastrnn.explain(layer, x).path == "torch"


def test_tuned_calls_differentiate_as_before(faster: Any) -> None:
    layer, x = fastrnn.LSTM(I, H), torch.randn(T, B, I, requires_grad=True)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])

    before = gradients()
    faster("torch")
    tune(layer, x)
    torch.testing.assert_close(gradients(), before)
