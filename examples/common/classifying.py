"""Training and judging a model that says which language a text is in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common.languages import LANGUAGES, Batch, Dataset, Texts
from common.metrics import Scores, confusion_matrix, scores
from common.report import say, table
from common.training import Run


def loss_of(run: Run, batch: Batch) -> tuple[Tensor, int]:
    return cross_entropy(run.forward(batch.tokens, batch.lengths), batch.labels), batch.size


@torch.inference_mode()
def predict(model: nn.Module, dataset: Dataset) -> Tensor:
    """Probabilities [N, C] of a whole data set, in its order."""
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
    """The likeliest languages of one text, from its probabilities [C]."""
    best = probabilities.topk(count)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ", ".join(f"{LANGUAGES[label]} {share:.1%}" for label, share in pairs)


def show_errors(probabilities: Tensor, texts: Texts, count: int = 8) -> None:
    """The wrong answers the model was surest of."""
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
