"""Which driver was measured to be the fastest on this machine: the file of results, and the look-up.

The file is in the user's cache folder. It is read once a process. A writer merges its results into those
that other processes have written meanwhile, under a lock, aside, and moves the whole into place.
FASTRNN_TUNED=0 in the environment keeps results from being read and written.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastrnn import _build
from fastrnn._version import __version__

_FORMAT = "fastrnn tuned drivers 1"


class Key(NamedTuple):
    """What a result is about. B and T stand for all sizes of the same bucket."""

    device: str  # its name; of a CPU, with the number of threads
    cell: str
    dtype: str
    layers: int
    directions: int
    I: int
    H: int
    P: int  # of a projection, or 0
    packed: bool
    training: bool  # forward and backward, or forward alone
    B: int
    T: int


class Choice(NamedTuple):
    driver: str
    ratio: float  # time of the slowest driver that is right by this one's


def bucket(size: int) -> int:
    """The number of a range of sizes: 1, 2, 3 to 4, 5 to 8, 9 to 16, .."""
    return (size - 1).bit_length()


def sizes_of(number: int) -> str:
    """The range, in words."""
    low, high = (1 << number >> 1) + 1 if number > 0 else 1, 1 << number
    return str(high) if low >= high else f"{low}..{high}"


@cache
def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


@cache
def _cpu_with(threads: int) -> str:
    return f"{_processor()}, {threads} threads"


@cache
def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _gpu(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def cpu_name() -> str:
    return _cpu_with(torch.get_num_threads())


def device_name(device: torch.device) -> str:
    return _gpu(device.index) if device.type == "cuda" else device.type


def _versions() -> str:
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    return f"fastrnn {__version__}, torch {torch.__version__}, cuDNN {cudnn}"


def path() -> Path:
    return _build.cache_folder() / "tuned.json"


def enabled() -> bool:
    return os.environ.get("FASTRNN_TUNED") != "0"


def _read() -> dict[str, Any]:
    """The file's contents; empty if there is none or it is not ours, which is said once."""
    try:
        text = path().read_text()
    except OSError:
        return {}
    try:
        contents = json.loads(text)
        if contents["format"] != _FORMAT:
            raise ValueError(f"its format is {contents['format']!r}, expected {_FORMAT!r}")
        for rows in contents["results"].values():
            for *key, driver, ratio in rows:
                Key(*key), Choice(str(driver), float(ratio))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"fastrnn ignores {path()}, which is damaged or not its own ({error}); delete it, tune again",
            stacklevel=2,
        )
        return {}
    return dict(contents)


def _choices(contents: dict[str, Any]) -> dict[Key, Choice]:
    rows = contents.get("results", {}).get(_versions(), [])
    return {Key(*key): Choice(driver, ratio) for *key, driver, ratio in rows}


# What was read, or None before.
_known: dict[Key, Choice] | None = None


def _results() -> dict[Key, Choice]:
    global _known
    if _known is None:
        _known = _choices(_read()) if enabled() else {}
    return _known


def has_results() -> bool:
    return bool(_known if _known is not None else _results())


def find(key: tuple[Any, ...]) -> Choice | None:
    return (_known if _known is not None else _results()).get(key)  # type: ignore[call-overload]


def any_for_cpu() -> bool:
    """Something was tuned for a CPU. Does not read a file that is not there."""
    if _known is None and not (enabled() and path().exists()):
        return False
    return any(key.device.endswith(" threads") for key in _results())


def add(found: dict[Key, Choice]) -> None:
    """Keeps results for this process, and in the file beside all that is there by now."""
    global _known
    _known = {**_results(), **found}
    if not enabled():
        return
    folder = path().parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tuned.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        contents = _read() or {"format": _FORMAT, "results": {}}
        merged = {**_choices(contents), **found}
        contents["results"][_versions()] = [[*key, *choice] for key, choice in merged.items()]
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as aside:
            json.dump(contents, aside, indent=0)
        os.replace(aside.name, path())
    _known = merged
