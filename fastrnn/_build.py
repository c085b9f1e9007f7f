"""Loading of the compiled part, and what is known about how it was built."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from fastrnn import _torch
from fastrnn._version import __version__

# The first whose stable C interface has what the compiled part uses, and the last one tried.
OLDEST_TORCH, NEWEST_TORCH = (2, 10), (2, 14)

LIBRARY = Path(__file__).with_name("_C.so")
CUDA_LIBRARY = Path(__file__).with_name("_C_cuda.so")

# As csrc/torch/ops.cpp tells them.
_FACTS = "gates slots has_c keeps_slots projects own_states unit_weights step_inputs"


def sources() -> Path:
    """csrc, which an installed package carries and a checkout has beside it."""
    package = Path(__file__).parent
    return package / "csrc" if (package / "csrc").exists() else package.parent / "csrc"


def cache_folder() -> Path:
    """This package's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrnn"


def compiled_folder() -> Path:
    """Where ``python -m fastrnn compile`` puts CUDA libraries."""
    return cache_folder() / "cuda"


def compiled_library() -> Path:
    """The CUDA library of these sources and this torch's CUDA, if it was compiled."""
    digest = hashlib.sha256()
    for path in sorted(p for p in sources().rglob("*") if p.is_file()):
        digest.update(path.read_bytes())
    return compiled_folder() / f"{digest.hexdigest()[:16]}-cuda{torch.version.cuda}" / "_C_cuda.so"


def load() -> None:
    """Registers the compiled operators with torch.

    One file serves every torch from 2.10 on.

    Raises:
        ImportError: torch is too old, or a library does not load; one sentence that says what to do.
    """
    running = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST_TORCH, NEWEST_TORCH))
    if running < OLDEST_TORCH:
        raise ImportError(
            f"fastrnn needs torch {oldest} or later, got {torch.__version__}; install a later torch"
        )
    if running > NEWEST_TORCH:
        warnings.warn(
            f"fastrnn was tested with torch {oldest} to {newest}, got {torch.__version__}; "
            "look for a later fastrnn",
            stacklevel=2,
        )
    _load(LIBRARY)
    if torch.version.cuda is None:
        return
    if CUDA_LIBRARY.exists():
        _load(CUDA_LIBRARY)
    elif compiled_folder().exists() and (library := compiled_library()).exists():
        _load(library)


def _load(library: Path) -> None:
    folder = library.parent
    if not library.exists() and (folder.parent / "setup.py").exists():
        raise ImportError(
            f"{folder.parent} is a checkout without a compiled part, and hides an installed fastrnn; run "
            "Python in another directory, or build here with `pip install --no-build-isolation -e .`"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ImportError(
            f"fastrnn's compiled part does not load with torch {torch.__version__} ({reason}); "
            "build it again with `pip install --no-build-isolation --force-reinstall --no-deps .`"
        ) from error


def cells() -> dict[str, dict[str, int]]:
    """Facts of each cell in the registry in csrc/cells: gates, slots, has_c, keeps_slots, projects, .."""
    return dict(cell_facts(line) for line in torch.ops.fastrnn.cells().splitlines())


def cell_facts(line: str) -> tuple[str, dict[str, int]]:
    """A cell's name and facts, from the line that the library has for it."""
    name, *facts = line.split()
    return name, dict(zip(_FACTS.split(), map(int, facts), strict=True))


def facts(op: Any) -> dict[str, list[str]]:
    """What an op that tells of the build says: a line for each fact, its name and then its words."""
    return {name: words for name, *words in (line.split() for line in op().splitlines())}


def build_info() -> dict[str, Any]:
    """What this installation of fastrnn is made of, for a bug report.

    Returns:
        A dictionary with the versions of fastrnn, python and torch (running and built against), the
        compiler, the CPU targets compiled in, those this machine can run and the one in use, and the
        CUDA architectures compiled for and drivers compiled in (empty: built without CUDA).

    Example:
        >>> import fastrnn
        >>> "portable" in fastrnn.build_info()["cpu_targets"]
        True
    """
    cpu = facts(torch.ops.fastrnn.cpu_build)
    has_cuda = _torch.has_kernel("fastrnn::forward", "CUDA")
    cuda = facts(torch.ops.fastrnn.cuda_build) if has_cuda else {}
    return {
        "fastrnn": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_built_against": cpu["torch"][0],
        "compiler": " ".join(cpu["compiler"]),
        "cpu_targets": cpu["compiled_targets"],
        "cpu_targets_usable": cpu["usable_targets"],
        "cpu_target": torch.ops.fastrnn.cpu_target(),
        "cuda": bool(cuda),
        "cuda_archs": " ".join(cuda.get("archs", [])),
        "cuda_drivers": cuda.get("drivers", []),
        "threads": torch.get_num_threads(),
    }
