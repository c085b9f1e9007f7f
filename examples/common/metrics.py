"""The usual figures of a classifier, from its confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def confusion_matrix(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts [classes, classes]: rows are the truth, columns what was predicted."""
    cells = truth * classes + predicted
    return torch.bincount(cells, minlength=classes * classes).reshape(classes, classes)


@dataclass
class Scores:
    """Accuracy, and per class [classes]: precision, recall, F1 (0 where undefined)."""

    accuracy: float
    precision: Tensor
    recall: Tensor
    f1: Tensor

    @property
    def macro_f1(self) -> float:
        return self.f1.mean().item()


def scores(confusion: Tensor) -> Scores:
    """Scores of a confusion matrix.

    >>> round(scores(torch.tensor([[8, 2], [0, 10]])).macro_f1, 3)
    0.899
    """
    right = confusion.diagonal().double()
    precision = right / confusion.sum(0).clamp(min=1)
    recall = right / confusion.sum(1).clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    accuracy = (right.sum() / confusion.sum()).item()
    return Scores(accuracy, precision, recall, f1)
