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
from typing import Any, NamedTuple, get_type_hints

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


_TYPES = tuple(get_type_hints(Key).values())

DRIVERS = ("fused", "torch")


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


def _read() -> tuple[dict[str, Any], dict[Key, Choice]]:
    """The file's contents, and in it what these versions chose; empty if it is absent or not ours."""
    try:
        text = path().read_bytes()
    except (OSError, RuntimeError):  # the second is of a user without a home folder
        return {}, {}
    try:
        contents = json.loads(text)
        if contents["format"] != _FORMAT:
            raise ValueError(f"its format is {contents['format']!r}, expected {_FORMAT!r}")
        return contents, dict(map(_checked, contents["results"].get(_versions(), [])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"fastrnn ignores {path()}, which is damaged or not its own ({error}); tune again",
            stacklevel=2,
        )
        return {}, {}


def _checked(row: list[Any]) -> tuple[Key, Choice]:
    *values, driver, ratio = row
    key = Key(*values)
    if tuple(map(type, key)) != _TYPES or driver not in DRIVERS or not isinstance(ratio, int | float):
        raise ValueError(f"it has the row {row}")
    return key, Choice(driver, ratio)


# What was read, or None before.
_known: dict[Key, Choice] | None = None


def _results() -> dict[Key, Choice]:
    global _known
    if _known is None:
        _known = _read()[1] if enabled() else {}
    return _known


def has_results() -> bool:
    return bool(_known if _known is not None else _results())


def find(key: tuple[Any, ...]) -> Choice | None:
    return (_known if _known is not None else _results()).get(key)  # type: ignore[call-overload]


def any_for_cpu() -> bool:
    """Something was tuned for a CPU."""
    return any(key.device.endswith(" threads") for key in _results())


def add(found: dict[Key, Choice]) -> None:
    """Keeps results for this process, and in the file beside all that is there by now."""
    global _known
    _known = {**_results(), **found}
    if not enabled():
        return
    try:
        _known = _saved(found)
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"fastrnn can't save what was tuned, which holds for this process alone: {error}; set "
            "XDG_CACHE_HOME to a folder that can be written",
            stacklevel=3,
        )


def _saved(found: dict[Key, Choice]) -> dict[Key, Choice]:
    """The file's results after these were added to it."""
    folder = path().parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tuned.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        contents, before = _read()
        contents = contents or {"format": _FORMAT, "results": {}}
        merged = {**before, **found}
        contents["results"][_versions()] = [[*key, *choice] for key, choice in merged.items()]
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            new = Path(aside) / path().name
            new.write_text(json.dumps(contents, indent=0))
            os.replace(new, path())
    return merged
