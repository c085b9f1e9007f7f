"""Words and phrases in 28 languages, from the locale data (CLDR) that babel installs.

Names of countries, languages, currencies, scripts and units of measure, and phrases that list
several of them ("Kanada, Brasilien und Japan"). A name and all its translations fall on one side of
the split, and no text is on both sides.
"""

from __future__ import annotations

import random
import re
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.errors import InputError

# Several scripts, several close relatives (Danish and Swedish, Spanish and Portuguese...).
LANGUAGES = [
    "ar", "bg", "cs", "da", "de", "el", "en", "es", "fi", "fr", "he", "hi", "hu", "id",
    "it", "ja", "ko", "nl", "pl", "pt", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh",
]  # fmt: skip
LONGEST = 64  # characters; what is longer is cut
PADDING, UNKNOWN = 0, 1  # codes of no character, and of one in no script seen in training


@dataclass
class Texts:
    """Texts and their languages (indices into LANGUAGES)."""

    texts: list[str]
    labels: list[int]


def load(phrases: int, seed: int, share: float = 1.0) -> tuple[Texts, Texts]:
    """Texts to train on and to test on.

    Args:
        phrases: how many listing phrases a language gets for training (a fifth of it for the test).
        share: part of the names that is used.
    """
    try:
        from babel import Locale
        from babel.lists import format_list
    except ImportError:
        raise InputError("babel is not installed: pip install -r examples/requirements.txt.") from None
    numbers = random.Random(seed)
    names: list[tuple[dict[str, str], dict[str, str]]] = []  # by language: train, test
    for language in LANGUAGES:
        sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
        for key, name in sorted(_names(Locale.parse(language)).items()):
            place = zlib.crc32(key.encode()) % 1000
            if place % 100 < share * 100:
                sides[place >= 850][key] = clean(name)
        names.append(sides)
    # A text that reads the same in two languages has no right answer: it is left out.
    owners: dict[str, set[int]] = {}
    for label, sides in enumerate(names):
        for side in sides:
            for name in side.values():
                owners.setdefault(name.casefold(), set()).add(label)
    train, test = Texts([], []), Texts([], [])
    for label, (language, sides) in enumerate(zip(LANGUAGES, names, strict=True)):
        for texts, side, count in ((train, sides[0], phrases), (test, sides[1], phrases // 5)):
            own = [name for name in side.values() if len(owners[name.casefold()]) == 1]
            own = list(dict.fromkeys(own))
            every = list(side.values())
            listed = [
                clean(format_list(numbers.sample(every, numbers.choice((2, 3))), locale=language))
                for _ in range(count)
            ]
            texts.texts += own + listed
            texts.labels += [label] * (len(own) + len(listed))
    seen = set(train.texts)
    kept = [(text, label) for text, label in zip(*_pair(test), strict=True) if text not in seen]
    return train, Texts([text for text, _ in kept], [label for _, label in kept])


def _pair(texts: Texts) -> tuple[list[str], list[int]]:
    return texts.texts, texts.labels


def _names(locale) -> dict[str, str]:
    """Every name the locale has, by a key that is the same in all languages."""
    named = {}
    for kind in ("territories", "languages", "currencies", "scripts"):
        for code, name in getattr(locale, kind).items():
            named[f"{kind}/{code}"] = name
    for unit, widths in locale._data["unit_display_names"].items():
        if "long" in widths:
            named[f"units/{unit}"] = widths["long"]
    return named


def clean(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))[:LONGEST]


def script_of(character: str) -> str:
    """The script of a letter, as its Unicode name begins (LATIN, CYRILLIC, CJK...); else "OTHER"."""
    name = unicodedata.name(character, "OTHER")
    return re.split("[ -]", name)[0] if character.isalpha() else "OTHER"


class Alphabet:
    """The characters seen more than once in training, their scripts, and the codes of both.

    A character that is not among them has its script's code: Chinese has far more characters than
    the training texts show, but one can be told to be Chinese. What was seen once teaches that code.
    """

    def __init__(self, characters: str, scripts: list[str]) -> None:
        self.characters = characters
        self.scripts = scripts
        first = 2 + len(scripts)
        self._scripts = {script: code for code, script in enumerate(scripts, start=2)}
        self._codes = {character: code for code, character in enumerate(characters, start=first)}

    @classmethod
    def of(cls, texts: Texts) -> Alphabet:
        seen = Counter("".join(texts.texts))
        often = "".join(sorted(character for character, count in seen.items() if count > 1))
        return cls(often, sorted({script_of(character) for character in seen}))

    def saved(self) -> dict:
        """What a checkpoint keeps: the arguments to make this alphabet again."""
        return {"characters": self.characters, "scripts": self.scripts}

    def __len__(self) -> int:
        return 2 + len(self.scripts) + len(self.characters)

    def _code(self, character: str) -> int:
        code = self._codes.get(character)
        return self._scripts.get(script_of(character), UNKNOWN) if code is None else code

    def codes(self, text: str) -> Tensor:
        """Codes [T] of a text."""
        return torch.tensor([self._code(character) for character in text])

    def read(self, text: str) -> str:
        """A user's text, cleaned; refused where most of it is in no language known here."""
        text = clean(text)
        if not text:
            raise InputError("the text is empty; give a word or a phrase.")
        letters = [character for character in text if character.isalpha()]
        unknown = sum(script_of(letter) not in self._scripts for letter in letters)
        if not letters or 2 * unknown > len(letters):
            raise InputError(f"“{text}” is in no language this model knows ({', '.join(LANGUAGES)}).")
        return text


@dataclass
class Batch:
    """Texts of a batch, padded: tokens [B, T], lengths [B] (on the CPU), labels [B]."""

    tokens: Tensor
    lengths: Tensor
    labels: Tensor

    @property
    def size(self) -> int:
        return int(self.lengths.sum())


class Dataset:
    """Texts as codes, drawn in batches of near lengths so that little is padding."""

    def __init__(self, texts: Texts, alphabet: Alphabet, device: torch.device) -> None:
        self.codes = [alphabet.codes(text) for text in texts.texts]
        self.labels = torch.tensor(texts.labels)
        self.lengths = torch.tensor([len(code) for code in self.codes])
        self.device = device

    def batch(self, indices: Tensor) -> Batch:
        tokens = pad_sequence([self.codes[i] for i in indices.tolist()], batch_first=True)
        return Batch(tokens.to(self.device), self.lengths[indices], self.labels[indices].to(self.device))

    def epoch(self, size: int, numbers: torch.Generator) -> list[Tensor]:
        """The indices of an epoch's batches, in an order drawn from ``numbers``."""
        order = torch.randperm(len(self.codes), generator=numbers)
        chunks = order.split(size * 32)
        batches = [
            batch
            for chunk in chunks
            for batch in chunk[self.lengths[chunk].argsort(stable=True)].split(size)
        ]
        shuffled = torch.randperm(len(batches), generator=numbers).tolist()
        return [batches[i] for i in shuffled]

    def in_order(self, size: int) -> list[Tensor]:
        """The indices of all texts, shortest first, in batches."""
        return list(self.lengths.argsort(stable=True).split(size))
