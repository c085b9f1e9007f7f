"""Text to model: the standard library's own source, or a user's file; as characters or words."""

from __future__ import annotations

import math
import random
import re
import sysconfig
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import InputError

UNKNOWN = "<unk>"
WORD = re.compile(r"\w+|\n[ ]*|[^\w\s]|[ ]+")  # a name or number, a line's start, a sign, spaces


def standard_library(train: int, test: int, seed: int) -> tuple[str, str]:
    """``train`` and ``test`` characters of Python source, from different files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "site-packages", "idle_test", "lib2to3", "encodings"}
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not skipped & set(path.relative_to(root).parts) and path.stat().st_size > 2000
    )
    if not files:
        raise InputError(f"there is no source of the standard library in {root}; give --file.")
    random.Random(seed).shuffle(files)
    parts: list[str] = []
    for wanted in (test, train):
        part: list[str] = []
        size = 0
        while files and size < wanted:
            part.append(files.pop().read_text(encoding="utf-8", errors="replace"))
            size += len(part[-1])
        parts.append("".join(part)[:wanted])
    return parts[1], parts[0]


def own_file(path: Path) -> tuple[str, str]:
    """A user's text: the first nine tenths to train on, the rest to test on."""
    text = read_text(path)
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def read_text(path: Path) -> str:
    """A UTF-8 file that has something in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text.") from None
    except OSError as problem:
        raise InputError(f"{path} can't be read: {problem.strerror}.") from None
    if not text.strip():
        raise InputError(f"{path} is empty.")
    return text


def tokens(text: str, unit: str) -> list[str]:
    """A text's tokens: its characters ("chars") or its words ("words")."""
    return list(text) if unit == "chars" else WORD.findall(text)


class Vocabulary:
    """The most frequent tokens; all others are one unknown token, code 0."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self._codes = {word: code for code, word in enumerate(words)}

    @classmethod
    def of(cls, tokens: list[str], most: int) -> Vocabulary:
        frequent = sorted(word for word, _ in Counter(tokens).most_common(most - 1))
        return cls([UNKNOWN, *frequent])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._codes

    def codes(self, tokens: list[str]) -> Tensor:
        return torch.tensor([self._codes.get(token, 0) for token in tokens])


def streams(codes: Tensor, count: int) -> Tensor:
    """A sequence of codes cut into ``count`` streams side by side: [T, count]."""
    length = len(codes) // count
    return codes[: length * count].reshape(count, length).T.contiguous()


class NGrams:
    """An interpolated n-gram model (Witten-Bell): the baseline a recurrent model has to beat.

    The probability after a context is what was counted after it, mixed with the probability after
    the context one token shorter, by how many different tokens were seen to follow.
    """

    def __init__(self, codes: list[int], vocabulary: int, order: int) -> None:
        self.vocabulary = vocabulary
        self.order = order
        self.grams: list[Counter] = []  # by length - 1: how often each n-gram was seen
        self.seen: list[Counter] = []  # by length of the context: how often it was seen
        self.kinds: list[Counter] = []  # and how many different tokens followed it
        for size in tqdm(range(1, order + 1), desc=f"{order}-gram baseline", leave=False):
            grams = Counter(zip(*(codes[i:] for i in range(size)), strict=False))
            seen: Counter = Counter()
            kinds: Counter = Counter()
            for gram, count in grams.items():
                seen[gram[:-1]] += count
                kinds[gram[:-1]] += 1
            self.grams.append(grams)
            self.seen.append(seen)
            self.kinds.append(kinds)

    def perplexities(self, codes: list[int]) -> list[float]:
        """Perplexity of each order, 1 to ``order``, on a sequence of codes."""
        bits = [0.0] * self.order
        for at in range(len(codes)):
            share = 1 / self.vocabulary
            for size in range(1, self.order + 1):
                gram = tuple(codes[max(0, at - size + 1) : at + 1])
                if len(gram) == size and (seen := self.seen[size - 1][gram[:-1]]):
                    kinds = self.kinds[size - 1][gram[:-1]]
                    share = (self.grams[size - 1][gram] + kinds * share) / (seen + kinds)
                bits[size - 1] -= math.log(share)
        return [math.exp(total / len(codes)) for total in bits]
