"""`python -m benchmarks`: figures derived from times, files written, and warnings."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="benchmarks need matplotlib")
pytest.importorskip("tabulate", reason="benchmarks need tabulate")
pytest.importorskip("tqdm", reason="benchmarks need tqdm")

# benchmarks is next to the package. Last in the path, so that the tests use an installed fastrnn.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import __main__ as command
from benchmarks import (
    bounds,
    layers,
    machine,
    peaks,
    peers,
    publish,
    quiet,
    report,
    requests,
    results,
    shapes,
    timing,
    variants,
)
from benchmarks.peaks import Peaks
from benchmarks.results import Result, Row
from benchmarks.shapes import Case
from benchmarks.timing import Times

IDLE, BUSY = quiet.Look(0.0, 0.01), quiet.Look(1.5, 0.4)
PEAKS = Peaks({"float32": 100.0, "bfloat16": 200.0}, l2_read=100.0, l2_bytes=2 << 20)


def row(case: Case, ratio: float, seconds: float = 1e-3) -> Row:
    times = {"torch.nn": Times(seconds * ratio, seconds * ratio, 5), "fastrnn": Times(seconds, seconds, 5)}
    return Row(case, times, 0.0)


def result(rows: list[Row], look: quiet.Look = IDLE, complete: bool = True) -> Result:
    return Result(
        "2026-01-02 03:04 UTC", complete, machine.facts(), PEAKS, (look, look), look.others, 1.0, rows, []
    )


@pytest.fixture
def _idle(monkeypatch):
    """An idle machine, with given peaks: measuring them is slow and not under test."""
    monkeypatch.setattr(quiet, "look", lambda: IDLE)
    monkeypatch.setattr(quiet.Neighbors, "cores", lambda self: 0.0)
    monkeypatch.setattr(command.peaks, "measure", lambda seconds: PEAKS)


def test_round_trip():
    trip = peaks.round_trip()
    if trip is None:
        pytest.skip("there is no C compiler, or one core only")
    assert 5 < trip < 1e6


def test_distances_are_reported(tmp_path):
    cases = zip(shapes.every()[:3], (90.0, 100.0, 400.0), strict=True)
    made = result([Row(case, row(case, 2.0).times, 0.0, trip) for case, trip in cases])
    results.save(made, tmp_path / "a.json")
    assert results.load(tmp_path / "a.json") == made
    assert "90 to 400 ns, over twice the minimum before 1 of 3 cases" in report.markdown(made, {})


@pytest.mark.usefixtures("_idle")
def test_smallest_quick_report(tmp_path, capsys):
    only = ["grid/lstm/inference/float32/H64-B1-*", "grid/lstm/inference/float32/H64-B8-*"]
    options = ["--quick", "--seconds", "0.02", "--out", str(tmp_path)]
    assert command.main([*options, "--only", only[0], "--only", only[1]]) == 0
    (data_file,) = tmp_path.glob("*.json")
    (text_file,) = tmp_path.glob("*.md")
    assert data_file.stem == text_file.stem
    assert data_file.stem.endswith("-quick")
    assert machine.slug(machine.facts()) in data_file.stem
    assert (tmp_path / f"{data_file.stem}-ratio.png").read_bytes().startswith(b"\x89PNG")

    data = json.loads(data_file.read_text())
    assert data["machine"]["torch"] == torch.__version__
    assert not data["complete"]
    assert [r["id"].split("/")[-1] for r in data["rows"]] == ["H64-B1-T50", "H64-B8-T50"]
    for r in data["rows"]:
        assert 0 < r["times"]["fastrnn"]["minimum"] <= r["times"]["fastrnn"]["median"]
        ratio = r["times"]["torch.nn"]["minimum"] / r["times"]["fastrnn"]["minimum"]
        assert r["ratio"] == pytest.approx(ratio, rel=1e-3)

    text = text_file.read_text()
    ratios = [r["ratio"] for r in data["rows"]]
    mean = (ratios[0] * ratios[1]) ** 0.5
    means = [line for line in text.splitlines() if line.startswith("| geometric mean")]
    assert float(means[-1].split("|")[4]) == pytest.approx(mean, abs=0.006)
    assert "quick look" in text
    assert "TOO BUSY" not in text
    assert str(text_file) in capsys.readouterr().out


def test_refuses_a_busy_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quiet, "look", lambda: BUSY)
    monkeypatch.setattr(command.peaks, "measure", lambda seconds: PEAKS)
    options = ["--quick", "--seconds", "0.01", "--only", "step/gru/*/H64-B1-", "--out", str(tmp_path)]
    assert command.main(options) == 2
    said = capsys.readouterr().err
    assert "TOO BUSY" in said
    assert "1.50 of" in said
    assert "40%" in said
    assert not list(tmp_path.iterdir())

    assert command.main([*options, "--busy"]) == 0
    assert "TOO BUSY" in capsys.readouterr().err
    (text_file,) = tmp_path.glob("*.md")
    assert "THE MACHINE WAS TOO BUSY" in text_file.read_text()


def test_look_sees_other_programs(monkeypatch):
    # 2 seconds of others' work in the 0.1 seconds of the look.
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(quiet, "_busy_seconds", lambda: next(clock))
    look = quiet.look(0.1)
    assert look.others > 10
    assert look.busy


def test_an_unknown_pattern_is_an_error(capsys):
    assert command.main(["--only", "nothing/like/it"]) == 1
    assert "no case id matches ['nothing/like/it']" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (["--threads", "0"], "got 0, expected a positive whole number"),
        (["--seconds", "-1"], "got -1, expected a number of seconds"),
        (["--seconds", "long"], "got long, expected a number of seconds"),
        (["--out", "FILE/results"], "cannot write to"),
    ],
)
def test_bad_arguments_fail_before_measuring(bad, said, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        command.main([word.replace("FILE", str(tmp_path / "file")) for word in bad])
    assert said in capsys.readouterr().err


def test_work_and_shares():
    lstm = Case("grid", "lstm", "inference", "float32", 256, 1, 50)
    assert lstm.flops == 2 * 50 * 4 * 256 * 512
    assert Case("grid", "lstm", "training", "float32", 256, 1, 50).flops == 3 * lstm.flops
    stacked = Case("stacked", "gru", "inference", "float32", 8, 2, 5, layers=2, bidirectional=True)
    assert stacked.flops == 2 * 2 * 5 * 2 * 3 * 8 * ((8 + 8) + (16 + 8))
    measured = row(lstm, 2.0, seconds=1e-3)
    assert measured.share_of_peak(PEAKS) == pytest.approx(lstm.flops / 1e-3 / 100e9)
    # 50 reads of 1 MiB at 100 GB/s, and half of the work at 100 GFLOP/s, of 1 ms.
    least = 50 * 2**20 / 100e9 + lstm.flops / 2 / 100e9
    assert measured.share_of_l2(PEAKS) == pytest.approx(least / 1e-3)
    too_large = Case("grid", "lstm", "inference", "float32", 512, 1, 50)
    assert row(too_large, 2.0).share_of_l2(PEAKS) is None


def test_interleaving_takes_turns():
    taken = []
    times = timing.interleave(
        {"a": lambda: taken.append("a"), "b": lambda: taken.append("b")}, seconds=0.0, rounds=3
    )
    assert times["a"].rounds == times["b"].rounds == 3
    runs = [name for i, name in enumerate(taken) if i == 0 or taken[i - 1] != name]
    # Warm-ups a b, then a b, b a, a b: neighbors of the same name are one run.
    assert runs == list("ababab")


@pytest.mark.parametrize("case", [c for c in shapes.every() if c.H == 64 and c.B == 8], ids=lambda c: c.id)
def test_both_libraries_compute_the_same(case):
    made = layers.calls(case)
    if case.pass_ == "training":
        for call in made.values():
            call()  # compared elsewhere; here, that it runs
        return
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[case.dtype]
    ours, theirs = (made[name]() for name in ("fastrnn", "torch.nn"))
    if case.module == "cell":
        ours, theirs = ((out,) if isinstance(out, torch.Tensor) else out for out in (ours, theirs))
    torch.testing.assert_close(ours[0], theirs[0], atol=tolerance, rtol=0)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_peers_compute_the_same(cell, monkeypatch):
    case = Case("peers", cell, "inference", "float32", 16, 3, 5)
    expected = layers.calls(case)["torch.nn"]()[0]
    monkeypatch.setattr(peers, "_COMPILED_STEPS", {"lstm": peers._lstm_step, "gru": peers._gru_step})
    torch.testing.assert_close(peers.compiled_loop_call(case)(), expected, atol=1e-5, rtol=0)
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    (y,) = peers.onnxruntime_call(case)()
    torch.testing.assert_close(torch.from_numpy(y[:, 0]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_openvino_computes_the_same(cell):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    case = Case("peers", cell, "inference", "float32", 16, 3, 5)
    y = torch.from_numpy(peers.openvino_call(case)()[:, 0])
    torch.testing.assert_close(y, layers.calls(case)["torch.nn"]()[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_steps_carry_their_state(cell):
    case = Case("stream", cell, "inference", "float32", 16, 1, 1)
    made = {name: make(case) for name, make in peers.stream_available().items()}
    for _ in range(3):
        steps = {name: torch.as_tensor(step()).flatten() for name, step in made.items()}
        for name, y in steps.items():
            torch.testing.assert_close(y, steps["torch.nn"], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_int8_peers_do_nearly_the_same(cell):
    case = Case("int8", cell, "inference", "float32", 64, 8, 50)
    expected = layers.calls(case)["torch.nn"]()[0]
    errors = {}
    for name, make in peers.int8_available(cell).items():
        made = make(case)()
        y = torch.from_numpy(made[0][:, 0]) if name.startswith("ONNX") else made[0]
        error = (y - expected) / expected.abs().max()
        assert error.abs().max() < 0.06, name
        errors[name] = error.square().mean().sqrt().item()
    assert errors["fastrnn"] < min(error for name, error in errors.items() if name.endswith("int8")), errors


def test_publish_takes_the_newest_complete_result(tmp_path):
    rows = [row(case, 2.0) for case in shapes.every()]
    folder = tmp_path / "results"
    results.save(result(rows), folder / "old.json")
    newer = result([row(case, 3.0) for case in shapes.every()])
    results.save(newer, folder / "other.json")
    later = json.loads((folder / "other.json").read_text()) | {"date": "2026-01-03 00:00 UTC"}
    (folder / "new.json").write_text(json.dumps(later))
    (folder / "part.json").write_text(json.dumps(later | {"date": "2026-01-04", "complete": False}))
    page = tmp_path / "page.md"
    blocks = [f"<!-- bench:{name} -->\nstale\n<!-- bench:end -->\n" for name in ("gains", "speed", "full")]
    page.write_text("before\n" + "between\n".join(blocks) + "after\n")
    assert publish.publish((page,), folder).name == "new.json"
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("between\n") == 2
    assert "stale" not in text
    assert "3.00 (3.00 to 3.00)" in text
    assert "(results/new-ratio.png)" in text
    assert publish.publish((page,), folder).name == "new.json"
    assert page.read_text() == text  # again changes nothing

    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no block to write"):
        publish.publish((page,), folder)
    page.write_text("<!-- bench:fuel -->\n<!-- bench:end -->")
    with pytest.raises(ValueError, match="bench:fuel, expected one of gains, speed, full"):
        publish.publish((page,), folder)
    with pytest.raises(FileNotFoundError, match="no complete result"):
        publish.publish((page,), tmp_path)


def test_pages_show_the_newest_result(tmp_path):
    for page in publish.PAGES:
        copy = tmp_path / page.relative_to(publish.ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(page.read_text())
    folder = tmp_path / "benchmarks/results"
    folder.mkdir(parents=True)
    newest = results.newest(results.FOLDER)
    (folder / newest.name).write_text(newest.read_text())
    pages = tuple(tmp_path / page.relative_to(publish.ROOT) for page in publish.PAGES)
    publish.publish(pages, folder)
    for page, shown in zip(pages, publish.PAGES, strict=True):
        assert page.read_text() == shown.read_text(), f"run python -m benchmarks --publish for {shown.name}"


def test_saved_results_load_unchanged(tmp_path):
    rows = [row(case, 1.5) for case in shapes.high()]
    before = result(rows)
    results.save(before, tmp_path / "r.json")
    assert results.load(tmp_path / "r.json") == before
    lines = (tmp_path / "r.json").read_text().splitlines()
    assert [line.count('"id"') for line in lines if '"id"' in line] == [1] * len(rows)  # one row a line


def test_deepbench_lists_what_it_leaves_out():
    left = set(shapes.deepbench_all()) - set(shapes.deepbench())
    assert left
    text = report.markdown(result([row(case, 2.0) for case in shapes.deepbench()]), {})
    for case in left:
        if any(c.cell == case.cell and c.pass_ == case.pass_ for c in shapes.deepbench()):
            assert case.shape in text


@pytest.mark.parametrize("name", variants.LAYERS)
def test_a_row_of_a_variant(name):
    line = variants.row(name, 3, 2, 8, seconds=0.0)
    assert line.startswith(f"{name} ")
    assert line.count("x ") == 2


def test_bounds():
    limits = bounds.Limits({"float32": 100.0, "int8": 400.0}, [(2 << 20, 200.0), (32 << 20, 100.0)])
    # One sequence waits for w_hh: 1 MiB from the first cache, 4 MiB from the second.
    small, large = (Case("peers", "lstm", "inference", "float32", H, 1, 50) for H in (256, 512))
    inputs = 50 * 4 * 256 * 256 / 100e9
    assert limits.bound(small, "float32") == pytest.approx(inputs + 50 * 2**20 / 200e9)
    assert limits.bound(large, "float32") == pytest.approx(4 * inputs + 50 * 2**22 / 100e9)
    # A batch waits for the products.
    batch = Case("peers", "gru", "inference", "float32", 256, 64, 50)
    assert limits.bound(batch, "int8") == pytest.approx(50 * 64 * 3 * 256 * 512 / 400e9)


def test_bounds_report():
    limits = bounds.Limits({"float32": 100.0, "int8": 400.0}, [(2 << 20, 200.0)])
    case = Case("peers", "gru", "inference", "float32", 16, 2, 3)
    text = bounds.report(limits, [case], seconds=0.001)
    assert "gru H16-B2-T3" in text
    assert text.count("%") == 2


def test_requests():
    case = Case("peers", "lstm", "inference", "float32", 16, 1, 3)
    load = requests.measure(requests.libraries(case, int8=True)["fastrnn int8"], threads=3, seconds=0.1)
    assert load.rate > 10
    assert 0 < load.median <= load.p99 < 10
    with requests.neighbors(1):
        text = requests.report(case, threads=2, seconds=0.02, int8=False)
    assert [line.split("|")[2].strip() for line in text.splitlines() if "torch.nn" in line] == ["0", "2"]
