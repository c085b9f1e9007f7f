"""Every example at its quick size, started as a user does, and its errors for bad input.

The scripts check their own results against the expectations they print, and exit with 1 if they miss
one. Exit code 0 is therefore the main assertion.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
MISSING = [name for name in ("babel", "matplotlib", "tqdm") if not importlib.util.find_spec(name)]

pytestmark = [
    pytest.mark.examples,
    pytest.mark.skipif(
        bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (examples/requirements.txt)"
    ),
]

Ended = subprocess.CompletedProcess

QUICK = {
    "text_classifier": (),
    "language_model_chars": (),
    "language_model_words": ("--text", "words", "--cell", "GRU"),
    "language_model_sentences": ("--text", "sentences"),
    "attention": (),
    "seq2seq_dates": (),
    "long_memory": (),
    "smaller_faster": (),
    "more_machines": (),
}


def script(name: str) -> str:
    return "language_model" if name.startswith("language_model") else name


def start(name: str, *args: object, cwd: Path) -> Ended[str]:
    command = [sys.executable, str(EXAMPLES / f"{script(name)}.py"), *map(str, args)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600
    )


@pytest.fixture
def ask(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], home: Path
) -> Callable[..., Ended[str]]:
    """Starts an example in this process, which saves the import of torch."""

    def run(name: str, *args: object) -> Ended[str]:
        path = str(EXAMPLES / f"{script(name)}.py")
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.chdir(home)
        monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        out, err = capfd.readouterr()
        return Ended(sys.argv, int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder all examples are started in; they write to out/ there."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("name", QUICK)
def test_quick_version_reaches_what_it_expects(name: str, home: Path) -> None:
    ended = start(name, "--quick", *QUICK[name], "--checkpoint", home / f"{name}.pt", cwd=home)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert "expected at" in ended.stdout
    assert "MISSED" not in ended.stdout
    figures = json.loads((home / "out" / f"{name}.json").read_text())
    if importlib.util.find_spec("fastrnn"):
        assert figures["impls"] == ["torch", "fastrnn"]
        if name != "more_machines":
            assert figures["speed ratio"] > 0
            assert "fastrnn is" in ended.stdout


@pytest.mark.parametrize(
    ("name", "plots"),
    [
        ("text_classifier", ["text_classifier_confusion", "text_classifier_loss"]),
        ("language_model_chars", ["language_model_chars"]),
        ("attention", ["attention"]),
        ("seq2seq_dates", ["seq2seq_dates"]),
        ("long_memory", ["long_memory_errors", "long_memory_gradients", "long_memory_clipping"]),
        ("smaller_faster", ["smaller_faster"]),
    ],
)
def test_plots_are_written(name: str, plots: list[str], home: Path) -> None:
    trained(home, name)
    for plot in plots:
        assert (home / "out" / f"{plot}.png").read_bytes().startswith(b"\x89PNG")


def trained(home: Path, name: str) -> Path:
    """The checkpoint of the quick run in this module."""
    path = home / f"{name}.pt"
    if not path.exists():
        pytest.skip(f"needs the checkpoint of the quick run of {name}")
    return path


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("text_classifier", "Мы говорим по-русски", ": "),
        ("text_classifier", "我喜欢玩具", "zh"),
        ("attention", "สวัสดีครับ", "th"),
        ("smaller_faster", "안녕하세요", "ko"),
        ("language_model_sentences", "我 爱", "我 爱 爸爸"),
        ("language_model_sentences", "我 讨厌", "我 讨厌 挨打"),
        ("language_model_chars", "def ", "def "),
        ("seq2seq_dates", "14. März 2021", "2021-03-14"),
        ("long_memory", "0.3* 0.9 0.1 0.2 0.7 0.5* 0.7 0.1 0.4 0.2", "truth: 0.800"),
    ],
)
def test_predict(name: str, text: str, expected: str, home: Path, ask: Callable[..., Ended[str]]) -> None:
    ended = ask(name, "--predict", text, "--checkpoint", trained(home, name))
    assert ended.returncode == 0, ended.stderr
    assert expected in ended.stdout


BAD_INPUT = {
    "no such language": ("text_classifier", ["--predict", "ሰላም ለዓለም"], "in no language"),
    "no letters": ("text_classifier", ["--predict", "123"], "in no language"),
    "nothing typed": ("text_classifier", ["--predict", " "], "empty"),
    "unknown word": ("language_model_sentences", ["--predict", "我 吃"], "none of the three"),
    "unseen text": ("language_model_chars", ["--predict", "ሰላም"], "never seen"),
    "no date": ("seq2seq_dates", ["--predict", "hello"], "no date"),
    "no stars": ("long_memory", ["--predict", "0.1 0.2"], "starred"),
    "another size": ("text_classifier", ["--predict", "hello", "--hidden", "99"], "hidden"),
    "another size, resumed": ("language_model_chars", ["--resume", "--hidden", "99"], "hidden"),
    "another text, resumed": ("language_model_chars", ["--resume", "--text", "words"], "chars"),
    "missing text": ("language_model_chars", ["--file", "no/such.txt"], "no file"),
    "empty text": ("language_model_chars", ["--file", "empty.txt"], "empty"),
    "not a text": ("language_model_chars", ["--file", "binary.txt"], "UTF-8"),
    "short text": ("language_model_chars", ["--file", "short.txt"], "tokens"),
    "folder for a text": ("language_model_chars", ["--file", "."], "can't be read"),
    "five layers": ("language_model_chars", ["--layers", "5"], "between 1 and 4"),
    "no such device": ("attention", ["--device", "abacus"], "no device"),
    "negative size": ("attention", ["--hidden", "-1"], "positive"),
    "out is a file": ("attention", ["--out", "empty.txt"], "not a folder"),
    "no such option": ("long_memory", ["--fast"], "--fast"),
    "not a number": ("attention", ["--lr", "fast"], "got fast, expected a positive number"),
    "not a whole number": ("attention", ["--hidden", "1.5"], "got 1.5, expected a positive whole number"),
    "nowhere to write": (
        "attention",
        ["--out", "empty.txt/out"],
        "cannot write to empty.txt/out",
    ),
    "checkpoint is a folder": ("attention", ["--checkpoint", "."], "is a folder"),
    "a quarter of three units": ("smaller_faster", ["--hidden", "3"], "4 or more"),
    "no word": ("language_model_chars", ["--text", "words", "--most-words", "1"], "2 or more"),
    "sentences resumed": ("language_model_chars", ["--text", "sentences", "--resume"], "--resume"),
    "too many languages": ("seq2seq_dates", ["--languages", "99"], "more than the 26"),
}


def bad_files(folder: Path) -> None:
    (folder / "empty.txt").write_bytes(b"")
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)))
    (folder / "short.txt").write_text("A few words are no text to learn from.")


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_line_and_keeps_the_checkpoint(
    case: str, home: Path, ask: Callable[..., Ended[str]]
) -> None:
    name, args, expected = BAD_INPUT[case]
    path = trained(home, name)
    before = path.read_bytes()
    bad_files(home)
    ended = ask(name, "--quick", "--checkpoint", path, *args)
    assert one_sentence(ended, expected)
    assert path.read_bytes() == before


def test_bad_input_ends_a_script_with_2(home: Path) -> None:
    ended = start("text_classifier", "--predict", "hello", "--checkpoint", "missing.pt", cwd=home)
    assert one_sentence(ended, "no checkpoint")


def one_sentence(ended: Ended[str], expected: str) -> bool:
    """Exit code 2, nothing on stdout, one line on stderr with what is expected in it."""
    assert ended.returncode == 2, ended.stdout[-1000:] + ended.stderr[-1000:]
    assert ended.stdout == ""
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert expected in lines[0], ended.stderr
    return lines[0].endswith(".")


def test_unreadable_checkpoints(home: Path, ask: Callable[..., Ended[str]]) -> None:
    trained(home, "text_classifier")
    folder = home / "checkpoints"
    folder.mkdir()
    (folder / "garbage.pt").write_bytes(b"not a checkpoint")
    whole = trained(home, "text_classifier").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    payload = torch.load(home / "text_classifier.pt", weights_only=True)
    payload["config"]["hidden"] += 1
    torch.save(payload, folder / "damaged.pt")
    for path, expected in (
        (folder / "missing.pt", "no checkpoint"),
        (folder / "garbage.pt", "can be read"),
        (folder / "cut.pt", "can be read"),
        (folder / "damaged.pt", "don't fit"),
        (trained(home, "attention"), "attention.py, not of text_classifier.py"),
    ):
        ended = ask("text_classifier", "--predict", "hello", "--checkpoint", path)
        assert one_sentence(ended, expected)


def test_resume_continues_as_if_never_stopped(home: Path) -> None:
    args = ["--quick", "--characters", 60_000, "--save-every", 20]
    folder = home / "resumed"
    first = start("language_model", *args, "--steps", 40, "--out", folder, cwd=home)
    assert first.returncode in (0, 1), first.stderr
    second = start("language_model", "--resume", *args, "--steps", 80, "--out", folder, cwd=home)
    assert "resumed at step 40 of 80" in second.stdout, second.stderr
    saved = torch.load(folder / "language_model_chars.pt", weights_only=True)
    assert saved["step"] == 80
    losses = [
        json.loads((folder / "language_model_chars.json").read_text())[
            "perplexity, against the best n-gram's"
        ],
        float(first.stdout.split("LSTM, torch")[1].split()[0]),
    ]
    assert losses[0] < losses[1]
    again = start("language_model", "--resume", *args, "--steps", 80, "--out", folder, cwd=home)
    assert "resumed at step 80 of 80" in again.stdout, again.stderr
    assert "Traceback" not in again.stderr


def test_each_text_of_the_language_model_has_its_own_checkpoint(home: Path) -> None:
    folder = home / "texts"
    args = ["--quick", "--characters", 60_000, "--steps", 2, "--out", folder]
    for text in ("chars", "sentences"):
        ended = start("language_model", "--text", text, *args, cwd=home)
        assert ended.returncode in (0, 1), ended.stderr
    for text, prompt in (("chars", "def "), ("sentences", "我 爱")):
        ended = start(
            "language_model", "--text", text, "--out", folder, "--predict", prompt, "--length", 5, cwd=home
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith(prompt)


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from common import checkpoint

    path = tmp_path / "model.pt"
    checkpoint.save(path, "test", {"hidden": 3}, weights=torch.ones(3))
    before = path.read_bytes()

    class CanNotBePickled:
        def __reduce__(self) -> tuple:
            raise RuntimeError("no")

    with pytest.raises(Exception, match="no"):
        checkpoint.save(path, "test", {"hidden": 3}, weights=CanNotBePickled())
    assert path.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == ["model.pt"]


def test_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from common.metrics import confusion_matrix, scores

    truth, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
    matrix = confusion_matrix(truth, predicted, 3)
    assert matrix.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    score = scores(matrix)
    assert score.accuracy == pytest.approx(4 / 6)
    assert score.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 2])
    assert score.recall.tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert score.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_n_grams_are_a_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from common.corpus import NGrams

    codes = torch.randint(5, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    grams = NGrams(codes, vocabulary=5, order=3)
    # The share of each possible token after a context, from perplexities of single continuations.
    context = codes[:2]
    shares = []
    for token in range(5):
        whole = grams.perplexities([*context, token])[2] ** 3
        without = grams.perplexities(context)[2] ** 2
        shares.append(without / whole)
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0


def test_beam_search_finds_the_most_likely_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many beams as prefixes of length 2, the search over two characters is exhaustive."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import seq2seq_dates as dates

    torch.manual_seed(0)
    model = dates.DateReader(torch.nn, 10, 4, 6, attention=True).eval()
    monkeypatch.setattr(dates, "LENGTH", 2)
    with torch.inference_mode():
        encoded = model.encode(torch.tensor([[2, 3, 4]]), torch.tensor([3]))
        size = len(dates.OUTPUT) + 2
        shares = torch.empty(size, size)
        for first in range(size):
            given = torch.tensor([[dates.START, first]])
            scores, _, _ = model.decode(encoded, given, encoded.start)
            logs = scores[0].log_softmax(1)
            shares[first] = logs[0, first] + logs[1]
        codes, total = dates.beam_search(model, encoded, size)
        wanted = shares.flatten().topk(size)
        torch.testing.assert_close(total[0], wanted.values)
        assert (codes[0, :, 0] * size + codes[0, :, 1]).tolist() == wanted.indices.tolist()
        one = dates.beam_search(model, encoded, 1)[0][:, 0]
        assert one.tolist() == dates.greedy(model, encoded).tolist()


@pytest.mark.parametrize("time_steps", [False, True])
def test_removing_dead_units_keeps_the_outputs(time_steps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The removed units have zero weights."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from argparse import Namespace

    import smaller_faster
    from common.distributed import World

    torch.manual_seed(0)
    args = Namespace(embedding=4, impls=["torch"], world=World(0, 1, torch.device("cpu")))
    model = smaller_faster.classifier("torch", args, 20, 6, time_steps)
    with torch.no_grad():
        for suffix, dead in (("", [1, 4]), ("_reverse", [0, 5])):
            getattr(model.rnn, f"weight_hh_l0{suffix}")[:, dead] = 0
            rows = torch.tensor([gate * 6 + unit for gate in range(4) for unit in dead])
            getattr(model.rnn, f"weight_ih_l0{suffix}")[rows] *= 1e-3
        model.output.weight[:, [1, 4, 6, 11]] = 0
    small = smaller_faster.keep_units(args, model, "torch", 20, 4)
    assert small.rnn.hidden_size == 4
    tokens, lengths = torch.randint(2, 20, (3, 7)), torch.tensor([7, 4, 1])
    torch.testing.assert_close(small(tokens, lengths), model(tokens, lengths))
    measured = smaller_faster.variants_of(args, model, {"4 of 6 units": small}, 20)
    torch.testing.assert_close(measured[1].model(tokens, lengths), model(tokens, lengths))


def test_help_of_every_example(ask: Callable[..., Ended[str]]) -> None:
    for name in sorted({script(name) for name in QUICK}):
        ended = ask(name, "--help")
        assert ended.returncode == 0
        for option in ("--quick", "--impl", "--device", "--seed", "--out"):
            assert option in ended.stdout


def test_own_cell(tmp_path: Path) -> None:
    ended = start("own_cell", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "decaying (own)" in ended.stdout
