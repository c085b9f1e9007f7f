"""Dates as people write them in many languages, and their ISO form, from babel's locale data."""

from __future__ import annotations

import datetime
import random
import re
import unicodedata
import zlib
from dataclasses import dataclass

from common.errors import InputError

LANGUAGES = [
    "en", "en_GB", "de", "nl", "sv", "da", "fr", "es", "pt", "it", "ro", "pl", "cs",
    "hu", "fi", "tr", "id", "vi", "ru", "uk", "el", "he", "hi", "zh", "ja", "ko",
]  # fmt: skip
STYLES = ("full", "long", "medium", "short")
SKELETONS = ("yMMMEd", "yMMMMd", "yMMMd", "yMEd", "yMd")
FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)


@dataclass(frozen=True)
class Format:
    """A way to write dates: a language and one of its patterns (CLDR)."""

    language: str
    pattern: str

    def write(self, date: datetime.date) -> str:
        return clean(_format_date(date, self.pattern, self.language))

    def write_without_weekday(self, date: datetime.date) -> str:
        """As ``write``, but only the language is told where the name of the weekday goes."""
        pattern = re.sub("E+", f"'{self.language[:2]}'", self.pattern)
        return clean(_format_date(date, pattern, self.language))


def _format_date(date: datetime.date, pattern: str, language: str) -> str:
    from babel.dates import format_date

    return format_date(date, pattern, locale=language)


def clean(text: str) -> str:
    """One form for what looks alike: compatible characters, single spaces, no direction marks."""
    visible = (c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", "".join(visible)).split())


def formats(languages: list[str]) -> list[Format]:
    """Every format that tells the date: no two of them write different dates alike.

    What is left out on that ground are two-digit years and orders of numbers that another language
    reads differently (4/3/2021), unless the name of the weekday tells the language.
    """
    try:
        from babel import Locale
    except ImportError:
        raise InputError("babel is not installed: pip install -r examples/requirements.txt.") from None
    every: dict[Format, None] = {}
    for language in languages:
        locale = Locale.parse(language)
        patterns = [locale.date_formats[style].pattern for style in STYLES]
        patterns += [
            locale.datetime_skeletons[skeleton].pattern
            for skeleton in SKELETONS
            if skeleton in locale.datetime_skeletons
        ]
        every |= dict.fromkeys(Format(language, pattern) for pattern in patterns)
    readings: dict[str, set[datetime.date]] = {}
    writers: dict[str, set[Format]] = {}
    for date in _probes():
        for way in every:
            text = way.write_without_weekday(date)
            readings.setdefault(text, set()).add(date)
            writers.setdefault(text, set()).add(way)
    unclear = {way for text, ways in writers.items() if len(readings[text]) > 1 for way in ways}
    return [way for way in every if way not in unclear]


def _probes() -> list[datetime.date]:
    """Dates that show what is unclear: each day and month below 13, in years a century apart."""
    return [
        datetime.date(year, month, day)
        for year in (1904, 2004, 2011)
        for month in range(1, 13)
        for day in (4, 7, 11, 12, 28)
    ]


def split(ways: list[Format]) -> tuple[list[Format], list[Format]]:
    """Formats to train on and formats held out, one in eight, always the same ones."""
    held = [way for way in ways if zlib.crc32(f"{way.language} {way.pattern}".encode()) % 8 == 0]
    return [way for way in ways if way not in held], held


def draw(ways: list[Format], count: int, seed: int, part: str) -> list[tuple[str, str]]:
    """``count`` pairs (written, ISO); the days of the "train" and the "test" part differ."""
    numbers = random.Random(f"{seed} {part}")
    span = (LAST - FIRST).days
    pairs = []
    while len(pairs) < count:
        date = FIRST + datetime.timedelta(days=numbers.randint(0, span))
        if (zlib.crc32(str(date).encode()) % 10 == 0) == (part == "test"):
            pairs.append((numbers.choice(ways).write(date), date.isoformat()))
    return pairs
