"""Trains and evaluates a model that tells the language of a text."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common import languages, training
from common.languages import LANGUAGES, Alphabet, Batch, Dataset, Texts
from common.metrics import Scores, confusion_matrix, scores
from common.report import say, table
from common.training import Run


@dataclass
class Data:
    """Training and test texts, and both as codes."""

    texts: Texts
    test_texts: Texts
    alphabet: Alphabet
    train: Dataset
    test: Dataset


def data(args: Namespace, alphabet: Alphabet | None = None) -> Data:
    """The data of a full or ``--quick`` run, in the given alphabet or that of its own texts."""
    share, phrases = (0.25, 60) if args.quick else (1.0, 300)
    texts, test_texts = languages.load(phrases, args.seed, share)
    alphabet = alphabet or Alphabet.of(texts)
    train, test = (Dataset(part, alphabet, args.world.device) for part in (texts, test_texts))
    return Data(texts, test_texts, alphabet, train, test)


def train(
    args: Namespace, build: Callable[[ModuleType], nn.Module], dataset: Dataset, title: str
) -> list[Run]:
    """Trains the model that ``build`` makes from each implementation's layers."""
    runs = training.start(args.impls, build, args.world, args.seed, args.lr)
    numbers = torch.Generator().manual_seed(args.seed)
    batches = [b for _ in range(args.epochs) for b in dataset.epoch(args.batch, numbers)]
    fit(args, runs, dataset, batches, title)
    return runs


def fit(args: Namespace, runs: list[Run], dataset: Dataset, batches: list[Tensor], title: str) -> None:
    """Trains on batches of text indices, with a learning rate that falls in the second half."""
    training.fit(
        runs,
        (dataset.batch(args.world.share(indices)) for indices in batches),
        loss_of,
        args.world,
        steps=len(batches),
        title=title,
        schedule=training.cooling,
    )


def loss_of(run: Run, batch: Batch) -> tuple[Tensor, int]:
    return cross_entropy(run.forward(batch.tokens, batch.lengths), batch.labels), batch.size


@torch.inference_mode()
def predict(model: nn.Module, dataset: Dataset) -> Tensor:
    """Probabilities [N, C] for a whole data set, in its order."""
    answer = torch.empty(len(dataset.codes), len(LANGUAGES))
    for indices in dataset.in_order(256):
        batch = dataset.batch(indices)
        answer[indices] = model(batch.tokens, batch.lengths).float().softmax(1).cpu()
    return answer


def evaluate(model: nn.Module, dataset: Dataset) -> tuple[Scores, Tensor]:
    """Scores and the confusion matrix on a data set."""
    predicted = predict(model, dataset).argmax(1)
    matrix = confusion_matrix(dataset.labels, predicted, len(LANGUAGES))
    return scores(matrix), matrix


def guesses(probabilities: Tensor, count: int = 3) -> str:
    """The most likely languages of one text, from its probabilities [C]."""
    best = probabilities.topk(count)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ", ".join(f"{LANGUAGES[label]} {share:.1%}" for label, share in pairs)


def show_errors(probabilities: Tensor, texts: Texts, count: int = 8) -> None:
    """The wrong answers with the highest probabilities."""
    truth = torch.tensor(texts.labels)
    best = probabilities.max(1)
    wrong = (best.indices != truth).nonzero().flatten()
    surest = wrong[best.values[wrong].argsort(descending=True)][:count].tolist()
    rows = [
        (
            LANGUAGES[texts.labels[i]],
            LANGUAGES[best.indices[i]],
            best.values[i].item(),
            texts.texts[i],
        )
        for i in surest
    ]
    say("\nSurest errors")
    say(table(("truth", "predicted", "probability", "text"), rows))
