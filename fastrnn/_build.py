"""Loading of the compiled part, and what is known about how it was built."""

from __future__ import annotations

import importlib
import platform
import sys
from types import ModuleType
from typing import Any

import torch


def load() -> ModuleType:
    """fastrnn._C, or an ImportError of one sentence that says what to do."""
    again = "build it again with `pip install --no-build-isolation --force-reinstall --no-deps .`"
    try:
        compiled = importlib.import_module("fastrnn._C")
    except ImportError as error:
        # A symbol that is missing or a library that is not there: built against another torch.
        reason = str(error).splitlines()[0]
        raise ImportError(
            f"fastrnn's compiled part does not load with torch {torch.__version__} ({reason}); {again}"
        ) from error
    if not _same_torch(compiled.torch_version, torch.__version__):
        raise ImportError(
            f"fastrnn was built against torch {compiled.torch_version} but torch "
            f"{torch.__version__} is installed; {again}"
        )
    return compiled


def _same_torch(built: str, running: str) -> bool:
    """C++ interfaces change between minor versions only."""
    return built.split("+")[0].split(".")[:2] == running.split("+")[0].split(".")[:2]


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
    from fastrnn import __version__

    compiled = load()
    return {
        "fastrnn": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_built_against": compiled.torch_version,
        "compiler": compiled.compiler,
        "cpu_targets": compiled.compiled_targets(),
        "cpu_targets_usable": compiled.usable_targets(),
        "cpu_target": compiled.cpu_target(),
        "cuda": bool(compiled.cuda_archs),
        "cuda_archs": compiled.cuda_archs,
        "cuda_drivers": torch.ops.fastrnn.cuda_drivers() if compiled.cuda_archs else [],
        "threads": torch.get_num_threads(),
    }
