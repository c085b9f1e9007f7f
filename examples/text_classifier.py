"""Which language is it? A text classifier: embedding, bidirectional LSTM, last state, softmax.

Trains on words and phrases in 28 languages from babel's locale data (CLDR), one token per character.
Texts differ in length; the classifier uses the state after each text's last token.

Trains two variants: plain, and with each token's embedding multiplied by a learned embedding of its
time step.

  python examples/text_classifier.py                       train, evaluate, plot
  python examples/text_classifier.py --predict "où es-tu"  ask the trained model
  torchrun --nproc-per-node 2 examples/text_classifier.py  train on two processes
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import torch
from common import checkpoint, classifying, languages, plots
from common.classifying import evaluate, guesses, predict, show_errors
from common.cli import Parser, launch, positive_float
from common.errors import InputError
from common.implementation import layers
from common.languages import LANGUAGES, LONGEST, Alphabet, Dataset
from common.metrics import Scores
from common.report import Report, say, table
from common.training import Run
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

NAME = "text_classifier"
NOISE = 0.03  # of macro-F1 between two seeds


class TextClassifier(nn.Module):
    """Embedding [E], bidirectional LSTM [H], linear from the last states of both directions [2H]."""

    def __init__(
        self, layers: ModuleType, vocabulary: int, embedding: int, hidden: int, time_steps: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=languages.PADDING)
        self.time = nn.Parameter(torch.ones(LONGEST, embedding)) if time_steps else None
        self.dropout = nn.Dropout(0.2)
        self.rnn = layers.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * hidden, len(LANGUAGES))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens [B, T], lengths [B] on the CPU -> scores of the classes [B, C]."""
        x = self.embedding(tokens)
        if self.time is not None:
            x = x * self.time[: tokens.shape[1]]
        packed = pack_padded_sequence(self.dropout(x), lengths, True, enforce_sorted=False)
        _, (h, _) = self.rnn(packed)  # h [2, B, H]: each direction's state at its own last token
        return self.output(self.dropout(torch.cat((h[0], h[1]), dim=1)))


def train(args: Namespace, alphabet: Alphabet, dataset: Dataset, time_steps: bool) -> list[Run]:
    return classifying.train(
        args,
        lambda source: TextClassifier(source, len(alphabet), args.embedding, args.hidden, time_steps),
        dataset,
        "with time-step embedding" if time_steps else "plain",
    )


def load(
    path: Path, impls: list[str], device: torch.device, args: Namespace | None = None
) -> tuple[nn.Module, Alphabet]:
    """The trained classifier from a checkpoint."""
    payload = checkpoint.load(path, NAME, args)
    config, alphabet = payload["config"], Alphabet(**payload["alphabet"])
    if config["languages"] != LANGUAGES:
        raise InputError(f"{path} was trained on other languages than this version has.")
    model = TextClassifier(
        layers(impls[-1]),
        len(alphabet),
        config["embedding"],
        config["hidden"],
        config["time_steps"],
    )
    checkpoint.restore(path, model, checkpoint.weights(payload, impls))
    return model.eval().to(device), alphabet


def answer(args: Namespace) -> int:
    """Prints the three most likely languages of a text."""
    model, alphabet = load(args.checkpoint, args.impls, args.world.device, args)
    text = alphabet.read(args.predict)
    one = Dataset(languages.Texts([text], [0]), alphabet, args.world.device)
    say(f"{text}: {guesses(predict(model, one)[0])}")
    return 0


def main() -> int:
    parser = Parser(NAME, __doc__)
    parser.size("--hidden", 128, 64, "hidden units of each direction")
    parser.size("--embedding", 64, 32, "size of a character's embedding")
    parser.size("--epochs", 3, 2, "times through the data")
    parser.size("--batch", 64, 64, "texts in a batch")
    parser.size("--lr", 4e-3, 6e-3, "learning rate", positive_float)
    parser.add_argument("--predict", metavar="TEXT", help="which language TEXT is in; no training")
    args = parser.parse()
    if args.predict is not None:
        return answer(args)

    data = classifying.data(args)
    alphabet, test = data.alphabet, data.test
    say(
        f"{len(data.texts.texts)} texts in {len(LANGUAGES)} languages to train on, "
        f"{len(data.test_texts.texts)} others to test; {len(alphabet)} characters"
    )

    report = Report(NAME, args)
    variants = {time_steps: train(args, alphabet, data.train, time_steps) for time_steps in (False, True)}
    rows = []
    results: dict[bool, list[Scores]] = {}
    for time_steps, runs in variants.items():
        results[time_steps] = [evaluate(run.model, test)[0] for run in runs]
        for each, score in zip(runs, results[time_steps], strict=True):
            rows.append(
                (
                    f"{'time-step embedding' if time_steps else 'plain'}, {each.impl}",
                    score.accuracy,
                    score.precision.mean().item(),
                    score.recall.mean().item(),
                    score.macro_f1,
                )
            )
    say("\n" + table(("variant", "accuracy", "precision", "recall", "F1 (macro)"), rows))

    best = max(variants, key=lambda variant: results[variant][-1].macro_f1)
    runs = variants[best]
    checkpoint.save(
        args.checkpoint,
        NAME,
        {
            "hidden": args.hidden,
            "embedding": args.embedding,
            "time_steps": best,
            "languages": LANGUAGES,
        },
        alphabet=alphabet.saved(),
        runs={run.impl: run.saved() for run in runs},
    )
    if args.world.rank > 0:
        return 0
    model, _ = load(args.checkpoint, args.impls, args.world.device)
    probabilities = predict(model, test)
    score, matrix = evaluate(model, test)
    per_class = zip(
        LANGUAGES, score.precision.tolist(), score.recall.tolist(), score.f1.tolist(), strict=True
    )
    say("\n" + table(("language", "precision", "recall", "F1"), list(per_class)))
    show_errors(probabilities, data.test_texts)
    plots.confusion(matrix, LANGUAGES, args.out / f"{NAME}_confusion.png", "Languages")
    plots.losses(runs, args.out / f"{NAME}_loss.png", "Text classifier")

    report.figures["macro-F1 plain"] = results[False][-1].macro_f1
    report.figures["macro-F1 with time-step embedding"] = results[True][-1].macro_f1
    report.expect("macro-F1 of the reloaded checkpoint", score.macro_f1, least=0.5 if args.quick else 0.8)
    report.same_start(runs)
    report.same_in_both("macro-F1", [s.macro_f1 for s in results[best]], NOISE)
    return report.finish(runs)


if __name__ == "__main__":
    launch(main)
