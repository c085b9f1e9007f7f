"""Builds the program that calls kernels of every target, and talks to it.

FASTRNN_KERNELS_ARCH=aarch64 in the environment: built by a cross-compiler, run under an emulator.
FASTRNN_SANITIZE=1: built with address and undefined-behavior sanitizers.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fastrnn._compile import CXX_FLAGS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"

ARCH = os.environ.get("FASTRNN_KERNELS_ARCH", platform.machine())
CROSS = platform.machine() != ARCH
SANITIZE = os.environ.get("FASTRNN_SANITIZE") == "1"
BUILD = ROOT / "build" / ("kernels-" + ARCH + ("-sanitized" if SANITIZE else ""))

COMPILER = f"{ARCH}-linux-gnu-g++" if CROSS else os.environ.get("CXX", "g++")
OBJDUMP = f"{ARCH}-linux-gnu-objdump" if CROSS else "objdump"
EMULATOR = [f"qemu-{ARCH}-static", "-cpu", "max"] if CROSS else []


def missing_tool() -> str | None:
    return next((tool for tool in (COMPILER, *EMULATOR[:1]) if shutil.which(tool) is None), None)


def targets() -> list[str]:
    """All targets of the architecture, and the emulated matrix tiles."""
    lists = re.findall(
        r"#define FASTRNN_TARGETS\(X\)((?:.*\\\n)*.*)", (CSRC / "cpu/dispatch.h").read_text()
    )
    found = [re.findall(r"X\((\w+)\)", names) for names in lists]
    wanted = {"x86_64": "avx2", "aarch64": "neon"}.get(ARCH, "")
    names = next((names for names in found if wanted in names), found[-1])
    return [*names, "avx512_amx_emulated"] if ARCH == "x86_64" else names


def math_object(target: str) -> Path:
    return BUILD / f"math_{target}.o"


def build() -> Path:
    """Compiles what has changed, once a process."""
    run = _run_ninja()
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    return BUILD / "program"


@cache
def _run_ninja() -> subprocess.CompletedProcess[str]:
    """Half a minute the first time: each target's kernel tables, and its exp, sigmoid and tanh."""
    flags = [*CXX_FLAGS, f"-I{CSRC}", f"-I{HERE}"]
    if SANITIZE:
        flags += ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        # C++20 defines the shift of a signed number; GCC 12 reports it still.
        flags += ["-fno-sanitize=shift-base"]
    link = ["-fsanitize=address,undefined"] if SANITIZE else ["-static"] if CROSS else []
    math = '-DFASTRNN_TARGET_CONTENTS=\\"math.inl.h\\" -include math_functions.h'
    objects: dict[str, tuple[Path, str]] = {
        "program": (HERE / "program.cpp", ""),
        "dispatch": (CSRC / "cpu/dispatch.cpp", ""),
    }
    for source in sorted((CSRC / "cpu/isa/targets").glob("*.cpp")):
        objects[source.stem] = (source, "")
        objects[f"math_{source.stem}"] = (source, math)
    # Matrix tiles in plain C++, as a target of another name.
    tiles = CSRC / "cpu/isa/targets/avx512_amx.cpp"
    objects["avx512_amx_emulated"] = (tiles, "-DFASTRNN_EMULATED_AMX -Davx512_amx=avx512_amx_emulated")
    lines = [
        "rule compile",
        f"  command = {COMPILER} {' '.join(flags)} $more -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {COMPILER} {' '.join(link)} $in -o $out",
    ]
    for name, (source, more) in objects.items():
        lines += [f"build {name}.o: compile {source}", f"  more = {more}"]
    lines += ["build program: link " + " ".join(f"{name}.o" for name in objects), ""]
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "build.ninja").write_text("\n".join(lines))
    # ninja, if it is installed next to this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["ninja", "-j", os.environ.get("MAX_JOBS", "2"), "-C", str(BUILD), "program"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )


class Program:
    """A running program. A kernel that faults ends it; the next call starts another one."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def _ask(self, words: str, arrays: Sequence[bytes]) -> str:
        if self.process is None:
            self.process = subprocess.Popen(
                [*EMULATOR, str(build())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(b"".join([words.encode(), b"\n", *arrays]))
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        reply = self.process.stdout.readline().decode().strip()
        if not reply:
            status, self.process = self.process.wait(), None
            raise AssertionError(f"{words.split()[:3]}: the kernel ended the program with status {status}")
        assert reply.startswith("ok"), f"{words.split()[:3]}: {reply}"
        return reply.removeprefix("ok")

    def numbers(self, *words: str) -> list[int]:
        """A reply's numbers to a question without arguments: (target, table, question)."""
        return [int(word) for word in self._ask(" ".join([*words, "0 0"]), []).split()]

    def call(
        self,
        target: str,
        table: str,
        kernel: str,
        numbers: Sequence[int],
        arrays: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Calls a kernel with copies of arrays and returns these copies.

        Args:
            numbers, arrays: what the kernel takes, in the order of program.cpp. Of a flat array exactly the
                part that the kernel may touch: the program fails if anything beyond is read or written.
        """
        data = [b"" if a is None else a.contiguous().view(torch.uint8).numpy().tobytes() for a in arrays]
        sizes = [-1 if a is None else len(d) for a, d in zip(arrays, data, strict=True)]
        words = [target, table, kernel, len(numbers), *(int(n) for n in numbers), len(sizes), *sizes]
        self._ask(" ".join(map(str, words)), data)
        assert self.process is not None
        assert self.process.stdout is not None
        results: list[Tensor | None] = []
        for array, size in zip(arrays, sizes, strict=True):
            if array is None:
                results.append(None)
                continue
            read = bytearray(self.process.stdout.read(size))
            flat = torch.frombuffer(read, dtype=array.dtype) if size else array.flatten()
            results.append(flat.view(array.shape))
        return results
