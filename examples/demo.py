"""A character language model, trained with torch.nn's layers and with fastrnn's, side by side.

The text is the source of Python's standard library. Both models start from the same weights and see the
same batches, so their losses must be equal within rounding. For the first hundred or two steps they agree
in all six digits; then training amplifies every rounding error. A third model shows how far the losses
drift by rounding alone: torch.nn's again, from weights changed by at most one rounding. fastrnn's losses
may differ from torch.nn's by 20 times the drift seen so far. If they differ by more, the exit status is 1.

Writes out/demo.png, both losses over the time spent in training.

    python examples/demo.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import fastrnn

PROMPT = "def "
CHUNK = 5  # steps that a model trains in each turn
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Size:
    """Sizes of model and training. A batch is ``batch`` pieces of text of ``length`` characters."""

    hidden: int = 192
    length: int = 64
    batch: int = 32
    lstm_steps: int = 500
    gru_steps: int = 150
    characters: int = 4_000_000


FULL = Size()
QUICK = Size(hidden=96, batch=16, lstm_steps=120, gru_steps=60, characters=500_000)


class Text:
    """The standard library's source as numbers, one for each character."""

    def __init__(self, characters: int) -> None:
        folder = Path(sysconfig.get_path("stdlib"))
        sources = [path.read_text("utf-8", errors="ignore") for path in sorted(folder.glob("*.py"))]
        if not sources:
            sys.exit(
                f"{folder} has no source to train on; use a Python installed with the source of its library"
            )
        text = "".join(c for c in "".join(sources)[:characters] if c == "\n" or " " <= c <= "~")
        self.alphabet = sorted(set(text))
        number = {c: i for i, c in enumerate(self.alphabet)}
        self.numbers = torch.tensor([number[c] for c in text])

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self.alphabet.index(c) for c in text])

    def decode(self, numbers: Sequence[int]) -> str:
        return "".join(self.alphabet[n] for n in numbers)

    def batches(self, size: Size, generator: torch.Generator) -> Iterator[Batch]:
        """Endless inputs and targets [T, B]: random pieces of the text, and the same shifted by one."""
        window = torch.arange(size.length + 1).unsqueeze(1)
        while True:
            starts = torch.randint(len(self.numbers) - size.length, (size.batch,), generator=generator)
            pieces = self.numbers[starts + window]
            yield pieces[:-1], pieces[1:]


class Model(nn.Module):
    """Predicts the next character: embedding, two recurrent layers, linear."""

    def __init__(self, layer: type[nn.RNNBase], alphabet: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, hidden // 4)
        self.recurrent = layer(hidden // 4, hidden, num_layers=2)
        self.output = nn.Linear(hidden, alphabet)

    def forward(self, numbers: Tensor, state: object = None) -> tuple[Tensor, object]:
        """Numbers [T, B] -> logits [T, B, alphabet] and the last state."""
        y, state = self.recurrent(self.embedding(numbers), state)
        return self.output(y), state


@dataclass
class Run:
    """A model in training."""

    model: Model
    losses: list[float] = field(default_factory=list)  # of each step
    seconds: list[float] = field(default_factory=list)  # of each chunk

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3, fused=True)

    def train(self, batches: Sequence[Batch]) -> None:
        start = time.perf_counter()
        for numbers, targets in batches:
            logits, _ = self.model(numbers)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    def speed(self, characters: int) -> float:
        """Characters per second, for a step of ``characters``."""
        return CHUNK * characters / statistics.median(self.seconds)

    def last_loss(self) -> float:
        """The mean of the last 20 steps: the loss of one batch depends on the batch."""
        return statistics.fmean(self.losses[-20:])


@dataclass
class Comparison:
    """The runs of torch.nn, of fastrnn, and of torch.nn from weights changed by at most one rounding."""

    name: str
    theirs: Run
    ours: Run
    moved: Run

    def differences(self) -> list[float]:
        return [abs(a - b) for a, b in zip(self.theirs.losses, self.ours.losses, strict=True)]

    def drift(self) -> list[float]:
        """For each step, the largest difference so far between torch.nn's two runs, due to rounding."""
        pairs = zip(self.theirs.losses, self.moved.losses, strict=True)
        return list(accumulate((abs(a - b) for a, b in pairs), max))

    def first_unequal(self) -> int | None:
        """The first step at which losses differ by more than rounding explains.

        That is 20 times torch.nn's own drift, or 16 roundings of the loss where it has none yet.
        """
        rounding = torch.finfo(torch.float32).eps
        found = zip(self.differences(), self.drift(), self.theirs.losses, strict=True)
        for step, (difference, drift, loss) in enumerate(found):
            # Negated, so that NaN counts as unequal.
            if not difference <= max(20 * drift, 16 * rounding * loss):
                return step
        return None

    def ratio(self) -> float:
        pairs = zip(self.theirs.seconds, self.ours.seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)


def compare(name: str, text: Text, size: Size, steps: int) -> Comparison:
    """Trains the layer of this name in both packages, and stops at the first unequal step.

    The models take turns of a few steps, so that a busy machine affects all of them.
    """
    torch.manual_seed(0)
    alphabet = len(text.alphabet)
    theirs = Model(getattr(nn, name), alphabet, size.hidden)
    ours = Model(getattr(fastrnn, name), alphabet, size.hidden)
    ours.load_state_dict(theirs.state_dict())
    moved = Model(getattr(nn, name), alphabet, size.hidden)
    moved.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1 + (torch.rand_like(p) - 0.5) * torch.finfo(p.dtype).eps)

    comparison = Comparison(name, Run(theirs), Run(ours), Run(moved))
    runs = [comparison.theirs, comparison.ours, comparison.moved]
    source = text.batches(size, torch.Generator().manual_seed(1))
    characters = size.batch * size.length
    terminal = sys.stderr.isatty()
    with tqdm(total=steps, desc=name, unit="step", mininterval=0.1 if terminal else 10) as bar:
        for turn in range(steps // CHUNK):
            batches = [next(source) for _ in range(CHUNK)]
            for i in range(3):
                runs[(turn + i) % 3].train(batches)
            bar.update(CHUNK)
            bar.set_postfix_str(
                ", ".join(
                    f"{package} {run.last_loss():.3f} at {run.speed(characters):,.0f}/s"
                    for package, run in (("torch", comparison.theirs), ("fastrnn", comparison.ours))
                )
            )
            if comparison.first_unequal() is not None:
                break
    return comparison


def report(comparison: Comparison, size: Size) -> bool:
    """Prints the comparison; returns whether the losses are equal within rounding."""
    name, theirs, ours = comparison.name, comparison.theirs, comparison.ours
    differences, drift = comparison.differences(), comparison.drift()
    unequal = comparison.first_unequal()
    steps = len(differences)
    print(
        f"\n{'step':>16}{'torch.nn.' + name:>15}{'fastrnn.' + name:>15}{'difference':>13}{'rounding':>11}"
    )
    for step in sorted({*range(0, steps, max(1, steps // 6)), steps - 1}):
        print(
            f"{step:16} {theirs.losses[step]:14.6f} {ours.losses[step]:14.6f} "
            f"{differences[step]:12.1e} {drift[step]:10.1e}"
        )
    print(f"{'last 20 steps':>16} {theirs.last_loss():14.6f} {ours.last_loss():14.6f}")
    characters = size.batch * size.length
    print(f"{'characters/s':>16} {theirs.speed(characters):14,.0f} {ours.speed(characters):14,.0f}")
    print(f"fastrnn.{name} trains this model {comparison.ratio():.2f} times as fast as torch.nn.{name}.")
    if unequal is None:
        print(f"The losses of all {steps} steps are equal within rounding.")
    else:
        print(
            f"The losses are NOT equal within rounding: at step {unequal} they differ by "
            f"{differences[unequal]:.1e}, but torch.nn's two runs by only {drift[unequal]:.1e}."
        )
    return unequal is None


@torch.inference_mode()
def generate(model: Model, text: Text, count: int, temperature: float = 0.6) -> str:
    torch.manual_seed(2)
    numbers = text.encode(PROMPT).tolist()
    logits, state = model(torch.tensor(numbers).unsqueeze(1))
    for _ in range(count):
        chosen = torch.multinomial((logits[-1, 0] / temperature).softmax(0), 1)
        numbers.append(chosen.item())
        logits, state = model(chosen.unsqueeze(1), state)
    return text.decode(numbers)


def plot(comparisons: Sequence[Comparison], path: Path) -> None:
    figure = Figure(figsize=(5 * len(comparisons), 3.6), layout="constrained")
    panels = figure.subplots(1, len(comparisons), squeeze=False)[0]
    for panel, comparison in zip(panels, comparisons, strict=True):
        for package, run, color in (
            ("torch.nn", comparison.theirs, "tab:gray"),
            ("fastrnn", comparison.ours, "tab:red"),
        ):
            # One point a chunk: its mean loss, at the time of its end.
            ends = list(accumulate(run.seconds))
            means = [statistics.fmean(run.losses[i * CHUNK : (i + 1) * CHUNK]) for i in range(len(ends))]
            panel.plot(ends, means, label=f"{package}.{comparison.name}", color=color)
        panel.set(xlabel="seconds of training", ylabel="loss (nats a character)")
        panel.set_title(f"{comparison.name}: {comparison.ratio():.2f} times as fast, the same losses")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, few steps: 20 seconds")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the plot (default: out)")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    try:  # before minutes of training
        arguments.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.out):
            pass
    except OSError as problem:
        parser.error(f"cannot write to {arguments.out}: {problem.strerror}")
    matplotlib.use("Agg")

    info = fastrnn.build_info()
    print(
        f"torch {info['torch']}, fastrnn {info['fastrnn']}: {info['cpu_target']}, {info['threads']} threads"
    )
    text = Text(size.characters)
    print(
        f"text: {len(text.numbers):,} characters, {len(text.alphabet)} different; two layers of "
        f"{size.hidden} units, batches of {size.batch} x {size.length} characters\n"
    )
    comparisons = []
    for name, steps in (("LSTM", size.lstm_steps), ("GRU", size.gru_steps)):
        comparison = compare(name, text, size, steps)
        comparisons.append(comparison)
        if not report(comparison, size):
            return 1
        if name == "LSTM":
            print("\nfastrnn's model writes:\n")
            print(textwrap.indent(generate(comparison.ours.model, text, 400), "    "), "\n")
    path = arguments.out / "demo.png"
    plot(comparisons, path)
    print(f"\nLosses over time: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
