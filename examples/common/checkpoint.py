"""Checkpoints that are written atomically and identify their example."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.distributed import rank
from common.errors import InputError


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Calls ``write(temporary path)`` and renames the result to ``path``.

    If anything fails, an existing file stays as it was. The temporary name keeps the suffix, because
    savefig takes the format from it. Only the first process writes.
    """
    if rank() != 0:
        return
    temporary = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(str(temporary))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as problem:  # torch.save's own errors are RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(problem, "strerror", None) or str(problem).splitlines()[0]
        raise InputError(f"{path} can't be written: {reason}.") from None


def save(path: Path, example: str, config: dict, **content: Any) -> None:
    """Writes a checkpoint of ``example``: its sizes in ``config``, everything else in ``content``."""
    payload = {"example": example, "config": config, **content}
    write_atomically(path, lambda temporary: torch.save(payload, temporary))


def load(path: Path, example: str, args: argparse.Namespace | None = None) -> dict[str, Any]:
    """Reads a checkpoint of ``example``; sizes from the command line must agree with it."""
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}; train first, or give --checkpoint.")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise InputError(f"{path} is not a checkpoint that can be read.") from None
    if not isinstance(payload, dict) or "example" not in payload or "config" not in payload:
        raise InputError(f"{path} is not a checkpoint of these examples.")
    if payload["example"] != example:
        raise InputError(f"{path} is a checkpoint of {payload['example']}.py, not of {example}.py.")
    if args is not None:
        for name in sorted(args.given & payload["config"].keys()):
            check_size(path, payload["config"], name, getattr(args, name))
    return payload


def check_size(path: Path, config: dict, name: str, wanted: object) -> None:
    """Raises an error unless the checkpoint has this value of ``name``."""
    if config.get(name) != wanted:
        raise InputError(
            f"{path} was trained with {name} {config.get(name)}, but {wanted} is asked for; "
            "leave the option out, or give another --checkpoint."
        )


def weights(payload: dict, impls: Iterable[str]) -> dict[str, torch.Tensor]:
    """The trained weights of the last of ``impls`` in the checkpoint, or of any other.

    torch's and fastrnn's weights have the same names and shapes, so both can load either.
    """
    runs = payload["runs"]
    held = [impl for impl in impls if impl in runs]
    return runs[held[-1] if held else next(iter(runs))]["model"]


def restore(path: Path, model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Loads ``state`` into ``model``; raises an error if the shapes differ."""
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise InputError(f"the weights in {path} don't fit its sizes; it is damaged.") from None
