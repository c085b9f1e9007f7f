"""The same classifier, smaller and faster: pruned weights, pruned units, bfloat16 and int8.

Trains the classifier of text_classifier.py (or loads one with --classifier), compresses it in the usual
ways, and compares each with the original: accuracy, size, and the time of one step of one text.

- Unstructured pruning: the smallest recurrent weights become zero, followed by some training. It saves
  storage, but a dense layer takes the same time.
- Unit pruning: removing whole hidden units leaves a smaller dense layer, which is faster.
- bfloat16 and int8 weights: with torch's tools, and with fastrnn.prepack.

  python examples/smaller_faster.py
  python examples/smaller_faster.py --predict "où es-tu"     ask the model with half of the units
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import checkpoint, classifying, plots
from common.classifying import evaluate, guesses, predict
from common.cli import Parser, launch, positive_float
from common.errors import InputError
from common.implementation import layers
from common.languages import Alphabet, Dataset, Texts
from common.report import Report, say, table
from common.training import Run
from text_classifier import TextClassifier, train
from text_classifier import load as load_classifier
from torch import Tensor, nn
from torch.nn.utils import prune

NAME = "smaller_faster"
NOISE = 0.03  # of macro-F1 between two seeds
STEPS = 32  # characters of the text whose classification is timed


@dataclass
class Variant:
    """A model to measure, and the size of its weights in bytes."""

    name: str
    impl: str
    model: nn.Module
    bytes: float
    accuracy: float = 0.0
    macro_f1: float = 0.0
    micros: float = 0.0  # of one step of one text


def classifier(
    impl: str, args: Namespace, vocabulary: int, hidden: int, time_steps: bool = False
) -> TextClassifier:
    model = TextClassifier(layers(impl), vocabulary, args.embedding, hidden, time_steps)
    return model.eval().to(args.world.device)


def recurrent_weights(model: TextClassifier) -> list[str]:
    return [name for name, _ in model.rnn.named_parameters() if name.startswith("weight")]


def bytes_of(model: TextClassifier, per_weight: float = 4, share: float = 1.0) -> float:
    """Size of a model that stores a ``share`` of its recurrent weights in ``per_weight`` bytes each."""
    weights = sum(getattr(model.rnn, name).numel() for name in recurrent_weights(model))
    others = sum(parameter.numel() for parameter in model.parameters()) - weights
    return weights * share * per_weight + others * 4


def fine_tune(args: Namespace, model: TextClassifier, impl: str, dataset: Dataset, title: str) -> None:
    """Trains a pruned model for one more epoch at a third of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr / 3, weight_decay=0.0)
    run = Run(impl, model, args.world.wrap(model), optimizer, args.lr / 3)
    batches = dataset.epoch(args.batch, torch.Generator().manual_seed(args.seed + 1))
    classifying.fit(args, [run], dataset, batches, title)


def prune_weights(
    args: Namespace, original: TextClassifier, impl: str, dataset: Dataset, share: float
) -> TextClassifier:
    """The original with the smallest ``share`` of its recurrent weights set to zero."""
    model = copy.deepcopy(original)
    names = recurrent_weights(model)
    prune.global_unstructured([(model.rnn, name) for name in names], prune.L1Unstructured, amount=share)
    fine_tune(args, model, impl, dataset, f"{share:.0%} of the weights pruned")
    for name in names:
        prune.remove(model.rnn, name)
    return model


def strongest_units(model: TextClassifier, count: int) -> list[Tensor]:
    """For each direction, the ``count`` units with the largest product of incoming and outgoing weights."""
    hidden = model.rnn.hidden_size
    kept = []
    for direction, suffix in enumerate(("", "_reverse")):
        w_ih = getattr(model.rnn, f"weight_ih_l0{suffix}")  # [4H, E]
        w_hh = getattr(model.rnn, f"weight_hh_l0{suffix}")  # [4H, H]
        output = model.output.weight[:, direction * hidden : (direction + 1) * hidden]  # [C, H]
        incoming = torch.cat((w_ih, w_hh), 1).reshape(4, hidden, -1).norm(dim=(0, 2))
        outgoing = torch.cat((w_hh, output)).norm(dim=0)
        kept.append((incoming * outgoing).topk(count).indices.sort().values)
    return kept


def keep_units(
    args: Namespace, original: TextClassifier, impl: str, vocabulary: int, count: int
) -> TextClassifier:
    """A dense model with ``count`` units in each direction and the original's weights of those units."""
    hidden = original.rnn.hidden_size
    kept = strongest_units(original, count)
    state = dict(original.state_dict())
    for keep, suffix in zip(kept, ("", "_reverse"), strict=True):
        rows = torch.cat([gate * hidden + keep for gate in range(4)])  # the gates are stacked
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            state[f"rnn.{name}{suffix}"] = state[f"rnn.{name}{suffix}"][rows]
        state[f"rnn.weight_hh_l0{suffix}"] = state[f"rnn.weight_hh_l0{suffix}"][:, keep]
    state["output.weight"] = state["output.weight"][:, torch.cat((kept[0], hidden + kept[1]))]
    model = classifier(impl, args, vocabulary, count, original.time is not None)
    model.load_state_dict(state)
    return model


class InBfloat16(nn.Module):
    """torch's bfloat16: weights, inputs and states of the recurrent layer."""

    def __init__(self, model: TextClassifier) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).bfloat16()

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.model(tokens, lengths).float()


def quantized_by_torch(model: TextClassifier) -> nn.Module:
    """torch's int8: dynamic quantization, which is deprecated but has no replacement yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.LSTM}, dtype=torch.qint8)


def variants_of(
    args: Namespace, original: TextClassifier, small: dict[str, TextClassifier], vocabulary: int
):
    """All models to measure: pruned ones in each implementation, and those with fewer bits."""
    variants = []
    on_cpu = args.world.device.type == "cpu"
    for impl in args.impls:
        here = {}
        for name, source in {"original": original, **small}.items():
            time_steps = source.time is not None
            here[name] = classifier(impl, args, vocabulary, source.rnn.hidden_size, time_steps)
            here[name].load_state_dict(source.state_dict())
            # A sparse row keeps its values and, in two bytes, their columns.
            sparse = name.endswith("weights zero")
            per_weight, share = (6, 1 - float(name.split("%")[0]) / 100) if sparse else (4, 1.0)
            size = bytes_of(here[name], per_weight, share)
            variants.append(Variant(name, impl, here[name], size))
        base = here["original"]
        if impl == "torch":
            half = sum(parameter.numel() for parameter in base.parameters()) * 2
            variants.append(Variant("bfloat16", impl, InBfloat16(base), half))
            if on_cpu:
                variants.append(Variant("int8", impl, quantized_by_torch(base), bytes_of(base, 1)))
        elif on_cpu:
            for weights, per_weight in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
                try:
                    packed = layers(impl).prepack(base, weights=weights)
                except ValueError as error:  # a processor without products of bfloat16
                    say(f"{weights} prepacked is left out: {error}")
                    continue
                size = bytes_of(base, per_weight)
                variants.append(Variant(f"{weights} prepacked", impl, packed, size))
    if not on_cpu:
        say("int8 and prepacked weights are for a CPU: left out")
    elif "fastrnn" not in args.impls:
        say("fastrnn is not used: no prepacked weights")
    return variants


@torch.inference_mode()
def measure(variants: list[Variant], test: Dataset, rounds: int) -> None:
    """Measures scores and the time of a step, interleaved, as the median of many rounds."""
    for variant in variants:
        score, _ = evaluate(variant.model, test)
        variant.accuracy, variant.macro_f1 = score.accuracy, score.macro_f1
    tokens = torch.randint(2, 100, (1, STEPS), device=test.device)
    lengths = torch.tensor([STEPS])
    micros: list[list[float]] = [[] for _ in variants]
    for _ in range(rounds):
        for variant, each in zip(variants, micros, strict=True):
            each.append(_micros(lambda m=variant.model: m(tokens, lengths), test.device))
    for variant, each in zip(variants, micros, strict=True):
        variant.micros = statistics.median(each) / STEPS


def _micros(call: Callable[[], Tensor], device: torch.device) -> float:
    call()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(3):
        call()
    if on_gpu:
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / 3 * 1e6


def draw(variants: list[Variant], path: Path) -> None:
    """Bar charts of accuracy, size and the time of a step."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 0.28 * len(variants) + 1.2), sharey=True)
    colors = ["tab:gray" if variant.impl == "torch" else "tab:orange" for variant in variants]
    columns = {
        "accuracy": [variant.accuracy for variant in variants],
        "kB": [variant.bytes / 1e3 for variant in variants],
        "microseconds per step, one text": [variant.micros for variant in variants],
    }
    rows = range(len(variants))
    for axes, (name, values) in zip(panels, columns.items(), strict=True):
        axes.barh(rows, values, color=colors)
        axes.set_xlabel(name)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(rows, [f"{variant.name}, {variant.impl}" for variant in variants], fontsize=8)
    panels[0].invert_yaxis()
    panels[0].set_xlim(0.9 * min(columns["accuracy"]), None)
    plots.save(figure, path)


def answer(args: Namespace) -> int:
    """Runs the model with half of the units on a text."""
    payload = checkpoint.load(args.checkpoint, NAME, args)
    config, alphabet = payload["config"], Alphabet(**payload["alphabet"])
    args.embedding = config["embedding"]
    model = classifier(args.impls[-1], args, len(alphabet), config["units"], config["time_steps"])
    checkpoint.restore(args.checkpoint, model, payload["model"])
    text = alphabet.read(args.predict)
    one = Dataset(Texts([text], [0]), alphabet, args.world.device)
    say(f"{text}: {guesses(predict(model, one)[0])}")
    return 0


def main() -> int:
    parser = Parser(NAME, __doc__)
    parser.size("--hidden", 256, 64, "hidden units of each direction, before pruning")
    parser.size("--embedding", 64, 32, "size of a character's embedding")
    parser.size("--epochs", 2, 2, "times through the data")
    parser.size("--batch", 64, 64, "texts in a batch")
    parser.size("--lr", 3e-3, 8e-3, "learning rate", positive_float)
    parser.add_argument("--classifier", type=Path, help="a checkpoint of text_classifier.py")
    parser.add_argument("--predict", metavar="TEXT", help="which language TEXT is in; no training")
    args = parser.parse()
    if args.predict is not None:
        return answer(args)
    if args.hidden < 4:
        raise InputError(f"--hidden {args.hidden} leaves no unit where a quarter is kept; give 4 or more.")

    torch.manual_seed(args.seed)
    report = Report(NAME, args)
    impl = args.impls[-1]
    runs: list[Run] = []
    if args.classifier:
        original, alphabet = load_classifier(args.classifier, args.impls, args.world.device)
        args.hidden, args.embedding = original.rnn.hidden_size, original.embedding.embedding_dim
        data = classifying.data(args, alphabet)
    else:
        data = classifying.data(args)
        alphabet = data.alphabet
        runs = train(args, alphabet, data.train, time_steps=False)
        original = runs[-1].model

    small: dict[str, TextClassifier] = {}
    for part in (0.5, 0.9):
        small[f"{part:.0%} weights zero"] = prune_weights(args, original, impl, data.train, part)
    units = args.hidden // 2
    for count in (units, args.hidden // 4):
        name = f"{count} of {args.hidden} units"
        small[name] = keep_units(args, original, impl, len(alphabet), count)
        fine_tune(args, small[name], impl, data.train, name)
    if args.world.rank > 0:
        return 0
    variants = variants_of(args, original, small, len(alphabet))
    measure(variants, data.test, 10 if args.quick else 60)
    first = variants[0]
    rows = [
        (
            f"{v.name}, {v.impl}",
            v.accuracy,
            v.macro_f1,
            f"{v.bytes / 1e3:,.0f}",
            f"{first.bytes / v.bytes:.2f}",
            f"{v.micros:.1f}",
            f"{first.micros / v.micros:.2f}",
        )
        for v in variants
    ]
    header = ("variant", "accuracy", "F1 (macro)", "kB", "times smaller", "us/step", "times faster")
    say("\n" + table(header, rows))
    draw(variants, args.out / f"{NAME}.png")
    half = f"{units} of {args.hidden} units"
    checkpoint.save(
        args.checkpoint,
        NAME,
        {"embedding": args.embedding, "units": units, "time_steps": original.time is not None},
        alphabet=alphabet.saved(),
        model=small[half].state_dict(),
    )

    own = {variant.name: variant for variant in variants if variant.impl == impl}
    for variant in variants:
        report.figures[f"{variant.name}, {variant.impl}"] = {
            "accuracy": variant.accuracy,
            "bytes": variant.bytes,
            "us/step": variant.micros,
        }
    lost = own["original"].accuracy - own[half].accuracy
    report.expect("accuracy lost with half of the units", lost, most=0.04 if args.quick else 0.02)
    fewer_bits = [v for v in own.values() if v.name.startswith(("bfloat16", "int8"))]
    if fewer_bits:
        worst = max(own["original"].accuracy - v.accuracy for v in fewer_bits)
        report.expect("accuracy lost to bfloat16 or int8", worst, most=0.02)
    if not args.quick:
        # The layers of a quick run are so small that other calls take most of the time.
        share = own[half].micros / own["original"].micros
        report.expect("time of a step with half of the units", share, most=0.9)
    if runs:
        report.same_start(runs)
        both = [evaluate(each.model, data.test)[0].macro_f1 for each in runs]
        report.same_in_both("macro-F1", both, NOISE)
    return report.finish(runs)


if __name__ == "__main__":
    launch(main)
