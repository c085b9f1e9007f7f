"""Registers and spills of every kernel, from what ptxas -v wrote while building.

Exit status 1 if a kernel spills. A build compiles only what has changed. With a folder to keep reports in,
those of the other files are the ones of earlier builds.

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

SOURCE = re.compile(r"^\[\d+/\d+\] .* -c (\S+\.cu) ")  # ninja's line of a command, before its output
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


class Kernel(NamedTuple):
    arch: str
    name: str
    registers: int
    spills: int  # bytes, stored and loaded


def read(log: str) -> list[Kernel]:
    kernels, name, arch, spills = [], "", "", 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            name, arch = match.groups()
        elif match := SPILL.search(line):
            spills = int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and name:
            kernels.append(Kernel(arch, name, int(match[1]), spills))
            name = ""
    return kernels


def by_source(log: str) -> dict[str, str]:
    """The part of a log that is about each source file that is still there."""
    parts: dict[str, str] = {}
    source = ""
    for line in log.splitlines(keepends=True):
        if line.startswith("["):
            match = SOURCE.match(line)
            source = match[1] if match else ""
        if source:
            parts[source] = parts.get(source, "") + line
    return {name: part for name, part in parts.items() if Path(name).exists()}


def with_kept(log: str, kept: Path) -> str:
    """The log, and of files that it says nothing of what the last one said that did, kept in the folder."""
    last = kept / "ptxas.log"
    parts = by_source(last.read_text()) if last.exists() else {}
    text = "".join((parts | by_source(log)).values())
    last.write_text(text)
    return text


def readable(names: list[str]) -> list[str]:
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    if plain.returncode:
        return names
    return [re.sub(r"fastrnn::(cuda::)?|^void |\(.*\)$", "", line) for line in plain.stdout.splitlines()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="output of the build")
    parser.add_argument("kept", type=Path, nargs="?", help="folder for the reports of earlier builds")
    parser.add_argument("--worst", type=int, default=12, help="kernels to show for an architecture")
    args = parser.parse_args(arguments)
    log = args.log.read_text(errors="replace")
    kernels = read(with_kept(log, args.kept) if args.kept else log)
    if not kernels:
        print("ptxas_report: no kernel was compiled; build with -Xptxas=-v", file=sys.stderr)
        return 1
    for arch in sorted({k.arch for k in kernels}):
        own = [k for k in kernels if k.arch == arch]
        print(f"{arch}: {len(own)} kernels, {sum(k.spills > 0 for k in own)} that spill")
        shown = sorted(own, key=lambda k: (-k.spills, -k.registers))[: args.worst]
        for kernel, name in zip(shown, readable([k.name for k in shown]), strict=True):
            print(f"  {kernel.registers:4d} registers {kernel.spills:5d} bytes spilled  {name}")
    if any(k.spills for k in kernels):
        print(
            "ptxas_report: kernels spill; keep fewer values alive or relax launch bounds", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
