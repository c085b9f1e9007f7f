"""Builds the CUDA kernels for the host, under tests/cuda/emulation, and loads them as torch.ops."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"

# Those that keep weights on the chip, as drivers.h lists them.
_LISTED = (CSRC / "cuda/drivers.h").read_text().split("all()")[1]
ON_CHIP = sorted(set(re.findall(r"&(\w+)[,}]", _LISTED)) - {"step"})

SOURCES = [
    HERE / "emulated_ops.cpp",
    HERE / "emulated_64bit_offsets.cpp",
    HERE / "emulated_instructions.cpp",
    HERE / "emulation/emulation.cpp",
    CSRC / "torch/arguments.cpp",
    CSRC / "torch/stable/tensor.cpp",
]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-DFASTRNN_EMULATED",
    "-DFASTRNN_CHUNK_BYTES=1024",
    "-Wall",
    "-Wextra",
    "-Werror",
]
# nvcc's pragmas; and torch's headers are not ours to correct.
FLAGS += ["-Wno-unknown-pragmas", "-Wno-psabi", f"-I{CSRC}", f"-I{HERE}"]


def cuda_sources(build: Path) -> list[Path]:
    """Every .cu of the package, included in a .cpp: torch would give a .cu to nvcc."""
    wrapped = []
    for source in sorted((CSRC / "cuda").rglob("*.cu")):
        wrapper = build / f"{source.stem}.cpp"
        text = f'#include "{source.relative_to(CSRC)}"\n'
        if not wrapper.exists() or wrapper.read_text() != text:  # a new date would compile it again
            wrapper.write_text(text)
        wrapped.append(wrapper)
    return wrapped


@cache
def ops() -> torch._ops._OpNamespace:
    """torch.ops.fastrnn_emulated, built on first use (half a minute).

    FASTRNN_EMULATION_SANITIZE=1 in the environment: with the address sanitizer, whose library must
    have been loaded with the process (see run_sanitized).
    """
    sanitize = os.environ.get("FASTRNN_EMULATION_SANITIZE") == "1"
    name = "fastrnn_emulated_asan" if sanitize else "fastrnn_emulated"
    sanitizer = ["-fsanitize=address"] if sanitize else []
    # Unoptimized with it, which compiles in half the time.
    faster = ["-O0"] if sanitize else []
    os.environ.setdefault("MAX_JOBS", "2")
    # ninja, where it is installed beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # In the checkout, so that no other checkout's build, or the lock a killed one left, is in the way.
    build = CSRC.parent / "build" / name
    build.mkdir(parents=True, exist_ok=True)
    cpp_extension.load(
        name,
        [str(source) for source in (*SOURCES, *cuda_sources(build))],
        extra_cflags=[*FLAGS, *sanitizer, *faster],
        extra_ldflags=sanitizer,
        build_directory=str(build),
        is_python_module=False,
    )
    return torch.ops.fastrnn_emulated


def run_sanitized(script: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code, which may import this module, under the address sanitizer."""
    library = subprocess.run(
        ["c++", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        # Leaks are Python's own; torch's libraries define a few symbols twice.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "FASTRNN_EMULATION_SANITIZE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
