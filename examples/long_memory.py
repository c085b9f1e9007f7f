"""How far back can it learn? Plain RNN, LSTM and GRU side by side as the distance grows.

Two tasks of any length: the adding problem (the sum of the two marked numbers among T; guessing the mean
costs 1/6 = 0.167) and copy memory (a few symbols, then T blanks, then the symbols again; guessing costs
log 8 = 2.08 a symbol). For each cell and each T, the script shows the final loss, and how the gradient of
the last step's loss fades with the distance to an input, before and after training. It also shows what long
sequences and second-order methods need: gradient clipping, checkpointing in time, and double backward.

  python examples/long_memory.py
  python examples/long_memory.py --predict "0.3* 0.9 0.1 0.5* 0.7"   the sum of the starred ones
"""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import torch
from common import checkpoint, plots, training
from common.cli import Parser, launch, positive_float
from common.distributed import World
from common.errors import InputError
from common.implementation import layers
from common.report import Report, say, table
from common.training import Run
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint as recompute

NAME = "long_memory"
NOISE = 0.05  # of the adding problem's error between two seeds, where it is learned
CELLS = ("RNN", "LSTM", "GRU")
WHEN = ("at first", "after training")
SYMBOLS, COPIED = 8, 5  # copy memory: kinds of symbols, and how many are to be remembered
GUESS = {"adding": 1 / 6, "copy": math.log(SYMBOLS)}  # the loss of one that remembers nothing


class Memory(nn.Module):
    """One recurrent layer [H] over [T, B, I], and a linear layer."""

    def __init__(self, layers: ModuleType, cell: str, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn = getattr(layers, cell)(inputs, hidden)
        self.output = nn.Linear(hidden, outputs)
        if cell == "LSTM":
            # Start with an open forget gate: otherwise an LSTM forgets as fast as a plain RNN.
            with torch.no_grad():
                self.rnn.bias_hh_l0[hidden : 2 * hidden] += 1.0

    def forward(self, x: Tensor) -> Tensor:
        """x [T, B, I] -> outputs of every step [T, B, O]."""
        return self.output(self.rnn(x)[0])


@dataclass
class Task:
    """A problem of any length: batches of (x [T, B, I], truth), and the loss on the output."""

    inputs: int
    outputs: int
    draw: Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


def draw_adding(length: int, size: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and marks x [T, B, 2], one mark in each half; the sums of the marked [B]."""
    values = torch.rand(length, size, generator=numbers)
    half = length // 2
    first = torch.randint(half, (1, size), generator=numbers)
    second = torch.randint(half, length, (1, size), generator=numbers)
    marks = torch.zeros(length, size).scatter_(0, first, 1.0).scatter_(0, second, 1.0)
    return torch.stack((values, marks), dim=2), (values * marks).sum(0)


def draw_copy(length: int, size: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
    """Symbols, blanks, a call to repeat: one-hot x [T + 2 COPIED, B, SYMBOLS + 2]; the symbols."""
    symbols = torch.randint(SYMBOLS, (COPIED, size), generator=numbers)
    blanks = torch.full((length, size), SYMBOLS)
    calls = torch.full((COPIED, size), SYMBOLS + 1)
    codes = torch.cat((symbols, blanks, calls))
    return nn.functional.one_hot(codes, SYMBOLS + 2).float(), symbols


def adding_loss(out: Tensor, truth: Tensor) -> Tensor:
    return mse_loss(out[-1, :, 0], truth)


def copy_loss(out: Tensor, truth: Tensor) -> Tensor:
    return cross_entropy(out[-COPIED:].flatten(0, 1), truth.flatten())


TASKS = {
    "adding": Task(2, 1, draw_adding, adding_loss),
    "copy": Task(SYMBOLS + 2, SYMBOLS, draw_copy, copy_loss),
}


def build(source: ModuleType, cell: str, task: Task, hidden: int) -> Memory:
    return Memory(source, cell, task.inputs, hidden, task.outputs)


def gradient_norms(model: Memory, length: int, seed: int) -> Tensor:
    """Norm of the gradient of the last step's loss with respect to each input, mean over a batch: [T].

    The gradient by the input at t is the one by the state at t, times the input's weights, so it
    fades with the distance as the state's does, and one call of the layer gives it for every t.
    """
    x, truth = TASKS["adding"].draw(length, 64, torch.Generator().manual_seed(seed))
    device = next(model.parameters()).device
    x = x.to(device).requires_grad_()
    loss = adding_loss(model(x), truth.to(device)) * x.shape[1]
    return torch.autograd.grad(loss, x)[0].norm(dim=2).mean(1).cpu()


def train(args: Namespace, task: Task, name: str, cell: str, length: int) -> list[Run]:
    world = args.world
    runs = training.start(
        args.impls, lambda source: build(source, cell, task, args.hidden), world, args.seed, args.lr
    )
    numbers = torch.Generator().manual_seed(args.seed)

    def batches():
        for _ in range(args.steps):
            x, truth = task.draw(length, args.batch, numbers)
            mine = world.share(torch.arange(args.batch))
            yield x[:, mine].to(world.device), truth[..., mine].to(world.device)

    def loss_of(run: Run, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, truth = batch
        return task.loss(run.forward(x), truth), x.shape[0] * x.shape[1]

    title = f"{name}, {cell}, T = {length}"
    training.fit(runs, batches(), loss_of, world, steps=args.steps, title=title)
    return runs


@torch.inference_mode()
def error(model: Memory, task: Task, length: int, device: torch.device) -> float:
    """Loss on fresh sequences."""
    x, truth = task.draw(length, 500, torch.Generator().manual_seed(12345))
    return task.loss(model(x.to(device)), truth.to(device)).item()


def saved_bytes(loss: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Bytes that autograd saves for backward of ``loss()``, and the loss."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    return sum(kept.values()), value


def checkpoints_in_time(impl: str, hidden: int, length: int, report: Report) -> None:
    """A long sequence in chunks that backward recomputes."""
    task = TASKS["adding"]
    torch.manual_seed(0)
    model = build(layers(impl), "LSTM", task, hidden)
    x, truth = task.draw(length, 16, torch.Generator().manual_seed(0))
    chunk = max(1, round(math.sqrt(length)))

    def in_chunks() -> Tensor:
        state = None
        for part in x.split(chunk):
            out, state = recompute(model.rnn, part, state, use_reentrant=False)
        return adding_loss(model.output(out), truth)

    parameters = list(model.parameters())
    whole, loss = saved_bytes(lambda: adding_loss(model(x), truth))
    truth_gradients = torch.autograd.grad(loss, parameters)
    chunked, loss = saved_bytes(in_chunks)
    gradients = torch.autograd.grad(loss, parameters)
    pairs = list(zip(gradients, truth_gradients, strict=True))
    scale = max(b.abs().max().item() for _, b in pairs)
    gap = max((a - b).abs().max().item() for a, b in pairs) / scale
    say(
        f"{impl}: T = {length} in chunks of {chunk}, recomputed: {chunked / 1e6:.2f} MB kept for "
        f"backward instead of {whole / 1e6:.2f} MB"
    )
    report.expect(f"gradient in chunks against whole, {impl}", gap, most=1e-4)
    report.figures[f"MB kept whole, {impl}"] = whole / 1e6
    report.figures[f"MB kept in chunks, {impl}"] = chunked / 1e6


def second_order(impl: str, hidden: int, length: int, report: Report) -> float:
    """Curvature along the gradient, by double backward, against a difference of two gradients.

    cuDNN has no double backward: on a GPU torch.nn needs ``torch.backends.cudnn.flags(False)``.
    """
    torch.manual_seed(0)
    model = build(layers(impl), "LSTM", TASKS["adding"], hidden).double()
    x, truth = draw_adding(length, 16, torch.Generator().manual_seed(0))
    x, truth = x.double(), truth.double()
    parameters = list(model.parameters())

    def gradients(create_graph: bool = False) -> tuple[Tensor, ...]:
        loss = adding_loss(model(x), truth)
        return torch.autograd.grad(loss, parameters, create_graph=create_graph)

    first = gradients(create_graph=True)
    norm = torch.sqrt(sum((g.detach() ** 2).sum() for g in first))
    direction = [g.detach() / norm for g in first]
    along = sum((g * d).sum() for g, d in zip(first, direction, strict=True))
    exact = torch.autograd.grad(along, parameters)
    curvature = sum((h * d).sum() for h, d in zip(exact, direction, strict=True)).item()
    sides = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter += step * d
        sides.append(sum((g * d).sum() for g, d in zip(gradients(), direction, strict=True)).item())
    measured = (sides[0] - sides[1]) / 2e-5
    say(f"{impl}: curvature along the gradient at T = {length}: {curvature:.6f}")
    gap = abs(curvature - measured) / max(abs(measured), 1e-12)
    report.expect(f"curvature against finite differences, {impl}", gap, most=1e-4)
    return curvature


def clipping(args: Namespace, length: int, path: Path) -> dict[str, float]:
    """A plain RNN that starts near the edge of stability, with and without clipping.

    Returns the median loss of the second half of training, by the way it was trained.
    """
    alone = World(0, 1, args.world.device)  # the other processes have left by now
    figure, axes = plt.subplots(figsize=(6, 3.5))
    middle = {}
    for name, clip in (("clipped to 1", 1.0), ("not clipped", math.inf)):
        runs = training.start(
            args.impls[-1:],
            lambda source: build(source, "RNN", TASKS["adding"], args.hidden),
            alone,
            args.seed,
            0.05,
        )
        run = runs[0]
        run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
        with torch.no_grad():
            nn.init.orthogonal_(run.model.rnn.weight_hh_l0, gain=1.6)
        numbers = torch.Generator().manual_seed(args.seed)
        batches = [draw_adding(length, 32, numbers) for _ in range(150)]

        def loss_of(run: Run, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
            x, truth = (part.to(args.world.device) for part in batch)
            return adding_loss(run.forward(x), truth), x.shape[0] * x.shape[1]

        training.fit(runs, batches, loss_of, alone, steps=150, title=name, clip=clip)
        axes.plot(run.norms, label=f"{name}: gradient before clipping", linewidth=1)
        axes.plot(run.losses, "--", label=f"{name}: loss", linewidth=1)
        later = [loss if math.isfinite(loss) else math.inf for loss in run.losses[75:]]
        middle[name] = statistics.median(later)
    axes.set(xlabel="step", yscale="log", title=f"Plain RNN, adding problem, T = {length}")
    axes.legend(fontsize=8)
    plots.save(figure, path)
    return middle


def draw_gradients(norms: dict[tuple[str, str], Tensor], path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axes, when in zip(panels, WHEN, strict=True):
        for cell in CELLS:
            axes.plot(norms[cell, when].flip(0), label=cell)
        axes.set(xlabel="distance to the last step", yscale="log", title=when)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("norm of the gradient by the input")
    panels[0].legend()
    plots.save(figure, path)


def draw_errors(
    errors: dict[tuple[str, str, int], float], distances: dict[str, list[int]], path: Path
) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6))
    for axes, (name, lengths) in zip(panels, distances.items(), strict=True):
        for cell in CELLS:
            axes.plot(lengths, [errors[name, cell, T] for T in lengths], "o-", label=cell)
        axes.axhline(GUESS[name], color="gray", linestyle=":", label="guessing")
        axes.set(xlabel="T", ylabel="loss", title=name, ylim=(0, None))
        axes.legend()
    plots.save(figure, path)


def answer(args: Namespace) -> int:
    """The sum of the two starred numbers in a user's text."""
    payload = checkpoint.load(args.checkpoint, NAME, args)
    model = build(layers(args.impls[-1]), "GRU", TASKS["adding"], payload["config"]["hidden"])
    checkpoint.restore(args.checkpoint, model, checkpoint.weights(payload, args.impls))
    words = args.predict.split()
    try:
        values = [float(word.rstrip("*")) for word in words]
    except ValueError:
        raise InputError("give numbers from 0 to 1, two of them starred: 0.3* 0.9 0.5*.") from None
    marks = [float(word.endswith("*")) for word in words]
    if sum(marks) != 2 or not all(0 <= value <= 1 for value in values):
        raise InputError("give numbers from 0 to 1, two of them starred: 0.3* 0.9 0.5*.")
    x = torch.tensor([values, marks]).T[:, None]
    with torch.inference_mode():
        said = model(x)[-1, 0, 0].item()
    truth = sum(value for value, mark in zip(values, marks, strict=True) if mark)
    say(f"{args.predict}: {said:.3f} (truth: {truth:.3f})")
    return 0


def main() -> int:
    parser = Parser(NAME, __doc__)
    parser.size("--hidden", 64, 32, "hidden units")
    parser.size("--steps", 1500, 200, "batches to train on, for each cell, task and distance")
    parser.size("--batch", 32, 32, "sequences in a batch")
    parser.size("--lr", 3e-3, 1e-2, "learning rate", positive_float)
    parser.add_argument("--predict", metavar="NUMBERS", help="add the starred ones; no training")
    args = parser.parse()
    if args.predict is not None:
        return answer(args)

    distances = {"adding": [25, 50, 100], "copy": [5, 15, 40]}
    if args.quick:
        distances = {"adding": [10, 25], "copy": [2, 10]}
    report = Report(NAME, args)
    errors: dict[tuple[str, str, int], float] = {}
    rows = []
    trained: dict[tuple[str, str, int], list[Run]] = {}
    for name, lengths in distances.items():
        for length in lengths:
            for cell in CELLS:
                runs = train(args, TASKS[name], name, cell, length)
                each = [error(r.model, TASKS[name], length, args.world.device) for r in runs]
                errors[name, cell, length] = each[-1]
                rows.append((f"{name}, T = {length}, {cell}", GUESS[name], *each))
                trained[name, cell, length] = runs
                if (name, cell, length) == ("adding", "GRU", distances["adding"][0]):
                    report.same_in_both("error of GRU at the shortest T", each, NOISE)
    if args.world.rank > 0:
        return 0
    say("\n" + table(("loss on fresh sequences", "guessing", *args.impls), rows))
    kept = trained["adding", "GRU", distances["adding"][0]]
    checkpoint.save(
        args.checkpoint,
        NAME,
        {"hidden": args.hidden},
        runs={each.impl: each.saved() for each in kept},
    )
    draw_errors(errors, distances, args.out / f"{NAME}_errors.png")

    longest = distances["adding"][-1]
    norms: dict[tuple[str, str], Tensor] = {}
    rows = []
    for cell in CELLS:
        torch.manual_seed(args.seed)
        fresh = build(layers(args.impls[-1]), cell, TASKS["adding"], args.hidden)
        norms[cell, "at first"] = gradient_norms(fresh, longest, args.seed)
        model = trained["adding", cell, longest][-1].model
        norms[cell, "after training"] = gradient_norms(model, longest, args.seed)
        shares = [(norms[cell, when][0] / norms[cell, when][-1]).item() for when in WHEN]
        report.figures[f"gradient over the distance, {cell}"] = shares
        rows.append((cell, *(f"{share:.1e}" for share in shares)))
    say(f"\nGradient by the first input as a share of that by the last, T = {longest}")
    say(table(("cell", *WHEN), rows))
    draw_gradients(norms, args.out / f"{NAME}_gradients.png")

    say()
    middle = clipping(args, longest, args.out / f"{NAME}_clipping.png")
    losses = ", ".join(
        f"{way} {loss:.3g}" if math.isfinite(loss) else f"{way}: none, it overflowed"
        for way, loss in middle.items()
    )
    say(f"plain RNN near the edge, median loss in the second half: {losses}")
    report.expect("loss of the clipped RNN near the edge", middle["clipped to 1"], most=1.0)
    fades = [
        (norms[cell, "after training"][0] / norms[cell, "after training"][-1]).item()
        for cell in ("GRU", "RNN")
    ]
    report.expect(
        "gradient left over the distance, GRU's over the plain RNN's",
        fades[0] / fades[1],
        least=10 if args.quick else 100,
    )
    curvatures = []
    for impl in args.impls:
        checkpoints_in_time(impl, args.hidden, 200 if args.quick else 2000, report)
        curvatures.append(second_order(impl, args.hidden, longest, report))
    report.same_in_both("curvature", curvatures, 1e-6)
    for cell in ("LSTM", "GRU"):
        for name, share in (("adding", 0.5), ("copy", 0.8)):
            length = distances[name][0]
            report.expect(
                f"{cell}'s loss on {name}, T = {length}, against guessing",
                errors[name, cell, length] / GUESS[name],
                most=share,
            )
    report.same_start(kept)
    return report.finish(kept)


if __name__ == "__main__":
    launch(main)
