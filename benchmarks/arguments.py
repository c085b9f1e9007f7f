"""Types of command-line arguments: a bad value is an error before anything is measured."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive whole number")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number of seconds")
    return value


def folder(text: str) -> Path:
    """A folder that can be written to, created if it does not exist."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write to {path}: {error.strerror}") from None
