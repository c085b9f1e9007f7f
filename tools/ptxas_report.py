"""Registers, stack and spills of every kernel, from what ptxas -v wrote while building.

Example:
    python tools/ptxas_report.py build.log --worst 10
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


class Kernel(NamedTuple):
    arch: str
    name: str
    registers: int
    stack: int
    spills: int


def read(log: str) -> list[Kernel]:
    kernels, name, arch, spill = [], "", "", (0, 0, 0)
    for line in log.splitlines():
        if match := ENTRY.search(line):
            name, arch = match.groups()
        elif match := SPILL.search(line):
            spill = tuple(int(n) for n in match.groups())  # type: ignore[assignment]
        elif (match := USED.search(line)) and name:
            kernels.append(Kernel(arch, name, int(match[1]), spill[0], spill[1] + spill[2]))
            name = ""
    return kernels


def readable(names: list[str]) -> list[str]:
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    if plain.returncode:
        return names
    return [re.sub(r"fastrnn::(cuda::)?|^void |\(.*\)$", "", line) for line in plain.stdout.splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="output of the build")
    parser.add_argument("kept", type=Path, nargs="?", help="folder where the last report is kept,"
                        " for builds that had nothing to compile")  # fmt: skip
    parser.add_argument("--worst", type=int, default=12, help="kernels to show for an architecture")
    args = parser.parse_args()
    log = args.log.read_text(errors="replace")
    last = args.kept / "ptxas.log" if args.kept else None
    if not read(log) and last and last.exists():
        log = last.read_text(errors="replace")
    elif last:
        last.write_text(log)
    kernels = read(log)
    if not kernels:
        print("no kernel was compiled: the log has no output of ptxas -v", file=sys.stderr)
        return 1
    for arch in sorted({k.arch for k in kernels}):
        own = [k for k in kernels if k.arch == arch]
        spilling = [k for k in own if k.spills]
        print(f"{arch}: {len(own)} kernels, {len(spilling)} that spill")
        shown = sorted(own, key=lambda k: (-k.spills, -k.registers))[: args.worst]
        for kernel, name in zip(shown, readable([k.name for k in shown]), strict=True):
            print(f"  {kernel.registers:4d} registers {kernel.spills:5d} bytes spilled  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
