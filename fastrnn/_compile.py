"""The CUDA library: how it is compiled, from a checkout by setup.py and from an installed package by
``python -m fastrnn compile``. setup.py loads this file by itself, before there is a package to import.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from setuptools import Distribution
from torch.utils import cpp_extension

# torch's interface as of the oldest torch that the libraries run with.
TORCH_MACROS = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
CXX_FLAGS = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Vector types are only passed between inlined functions, so that their calling convention, which depends on
# the instruction set, never matters (-Wno-psabi).
CXX_FLAGS += ["-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]
NVCC_FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-lineinfo", "-Xptxas=-v"]
NVCC_FLAGS += ["-Xcompiler=-Wall"]


def missing_for_cuda() -> str | None:
    """What keeps the CUDA library from being compiled here, in a sentence; None if nothing does."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if cpp_extension.CUDA_HOME is None:
        return "no CUDA toolkit was found (set CUDA_HOME)"
    if _library_headers() is None:
        return f"neither {cpp_extension.CUDA_HOME} nor torch's own packages have cuBLAS's headers"
    return None


def _library_headers() -> list[str] | None:
    """Folders with the headers of CUDA's libraries that the toolkit lacks; None if nobody has them.

    A toolkit may be a compiler alone, but torch's wheels bring the libraries and their headers along.
    """
    if (Path(cpp_extension.CUDA_HOME or "") / "include/cublas_v2.h").exists():
        return []
    wheels = Path(torch.__file__).parent.parent / "nvidia"
    if not list(wheels.glob("*/include/cublas_v2.h")):
        return None
    return sorted(str(p) for p in wheels.glob("*/include"))


def _arch_list() -> str:
    """TORCH_CUDA_ARCH_LIST, or the architectures of the GPUs here, or a choice for none."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return listed
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ";".join(sorted(f"{major}.{minor}" for major, minor in found)) or "8.0;9.0+PTX"


def cuda_extension(csrc: Path, link: list[str]) -> Any:
    """fastrnn._C_cuda, from the sources in csrc."""
    archs = os.environ["TORCH_CUDA_ARCH_LIST"] = _arch_list()
    shared = [csrc / "torch/cuda_ops.cpp", csrc / "torch/arguments.cpp", *csrc.glob("torch/stable/*.cpp")]
    # After all others: what the toolkit has itself comes from there.
    cxx = [*CXX_FLAGS, *(f"-idirafter{folder}" for folder in _library_headers() or [])]
    return cpp_extension.CUDAExtension(
        "fastrnn._C_cuda",
        sorted(str(p) for p in [*shared, *csrc.rglob("*.cu")]),
        include_dirs=[str(csrc.resolve())],
        define_macros=[*TORCH_MACROS, ("USE_CUDA", "1"), ("FASTRNN_CUDA_ARCHS", f'"{archs}"')],
        extra_compile_args={"cxx": cxx, "nvcc": NVCC_FLAGS},
        extra_link_args=link,
        py_limited_api=True,
    )


def compile_cuda(csrc: Path, library: Path) -> None:
    """Compiles the CUDA library from the sources in csrc, unless it is there.

    It is written aside and moved into place, by one process at a time. Exits with a sentence if it can't.
    """
    # pip puts ninja next to Python, in an environment that need not be activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    reason = missing_for_cuda()
    if reason is None and shutil.which("ninja") is None:
        reason = "no ninja was found; pip install ninja"
    if reason:
        sys.exit(f"fastrnn: the CUDA library cannot be compiled: {reason}")
    library.parent.mkdir(parents=True, exist_ok=True)
    with (library.parent.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            print(f"fastrnn: already compiled: {library}")
            return
        archs = os.environ["TORCH_CUDA_ARCH_LIST"] = _arch_list()
        print(f"fastrnn: compiling CUDA kernels for {archs}: about 5 minutes on two cores", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            os.replace(_build_cuda(csrc, Path(folder)), library)
        print(f"fastrnn: compiled in {time.monotonic() - start:.0f} s: {library}")


def _build_cuda(csrc: Path, folder: Path) -> Path:
    """The library, built in a folder."""
    project = Distribution({"name": "fastrnn", "ext_modules": [cuda_extension(csrc, [])]})
    command = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)(project)
    command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "temp")
    command.ensure_finalized()
    command.run()
    return folder / "lib/fastrnn/_C_cuda.so"


def remove_cuda(folder: Path) -> None:
    """Takes back all that compile_cuda() has put into the user's cache."""
    print(f"fastrnn: removed {folder}" if folder.exists() else "fastrnn: nothing was compiled")
    shutil.rmtree(folder, ignore_errors=True)
