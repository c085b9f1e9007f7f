"""The command line of every example: common options, sizes for --quick, errors for bad input."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from common import distributed, implementation
from common.errors import InputError


def positive_int(text: str) -> int:
    value = int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive whole number")
    return value


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
    return value


def check_writable(folder: Path) -> None:
    """Raises an error if the folder can't be written to, before minutes of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise InputError(f"cannot write to {folder}: {problem.strerror}.") from None


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors, and with sizes that depend on ``--quick``.

    A size (hidden units, epochs...) has a default for a full run and one for ``--quick``; a size from the
    command line overrides both. ``args.given`` is the set of sizes from the command line.

    ``checkpoint`` is the name of the default checkpoint, with options in braces; without it, ``name``.
    """

    def __init__(self, name: str, description: str, checkpoint: str | None = None) -> None:
        super().__init__(
            prog=f"{name}.py",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._checkpoint = f"{checkpoint or name}.pt"
        self._sizes: dict[str, tuple[Any, Any]] = {}
        self.add_argument("--quick", action="store_true", help="a small run, under 40 seconds")
        self.add_argument(
            "--impl",
            choices=("auto", "torch", "fastrnn", "both"),
            default="auto",
            help="which package's layers to train; both: from the same weights, on the same batches "
            "(default: both if fastrnn is installed, else torch)",
        )
        self.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
        self.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default 0)")
        self.add_argument("--threads", type=positive_int, help="threads of torch (default: its own)")
        self.add_argument(
            "--out",
            type=Path,
            default=Path("out"),
            help="folder for checkpoint, plots and figures (default out)",
        )
        default = re.sub(r"{(\w+)}", lambda option: option[1].upper(), self._checkpoint)
        self.add_argument("--checkpoint", type=Path, help=f"the checkpoint's file (default OUT/{default})")

    def size(self, flag: str, full: Any, quick: Any, what: str, kind: Callable = positive_int):
        """Adds an option with a default for a full run and one for ``--quick``."""
        action = self.add_argument(flag, type=kind, help=f"{what} (default {full}, with --quick {quick})")
        self._sizes[action.dest] = (full, quick)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help).")

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses and checks; returns args with ``given``, ``impls`` and ``world``."""
        args = self.parse_args(argv)
        args.given = {name for name in self._sizes if getattr(args, name) is not None}
        for name, (full, quick) in self._sizes.items():
            if name not in args.given:
                setattr(args, name, quick if args.quick else full)
        args.impls = implementation.chosen(args.impl)
        if args.threads:
            torch.set_num_threads(args.threads)
        args.world = distributed.join(args.device)
        if args.out.exists() and not args.out.is_dir():
            raise InputError(f"--out {args.out} is a file, not a folder.")
        if args.checkpoint is None:
            args.checkpoint = args.out / self._checkpoint.format_map(vars(args))
        if getattr(args, "predict", None) is None and args.world.rank == 0:
            if args.checkpoint.is_dir():
                raise InputError(f"--checkpoint {args.checkpoint} is a folder, not a file.")
            check_writable(args.out)
            check_writable(args.checkpoint.parent)
        return args


def launch(main: Callable[[], int]) -> NoReturn:
    """Exits with main's code; bad input gives one line on stderr and exit code 2."""
    try:
        code = main()
    except InputError as problem:
        if distributed.rank() == 0:
            print(f"{Path(sys.argv[0]).name}: {problem}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    finally:
        distributed.leave()
    sys.exit(code)
