"""Facts about the machine and the software under measurement."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import fastrnn

_CPU = Path("/sys/devices/system/cpu/cpu0")


def facts() -> dict[str, Any]:
    info = fastrnn.build_info()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": {name: size for name, (size, _) in caches().items()},
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "target": info["cpu_target"],
        "fastrnn": info["fastrnn"],
        "torch": info["torch"],
        "compiler": info["compiler"],
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"model name\s*:\s*(.+)", info)
    name = named[1].strip() if named else platform.processor() or platform.machine()
    generation = zen_generation(info)
    return f"{name} (Zen {generation})" if generation else name


def zen_generation(cpuinfo: str) -> int | None:
    """3, 4 or 5 for such an AMD processor, which virtual machines leave out of its name; else None."""
    family = re.search(r"cpu family\s*:\s*(\d+)", cpuinfo)
    if "AuthenticAMD" not in cpuinfo or family is None:
        return None
    has_bf16 = "avx512_bf16" in cpuinfo
    return {25: 4 if has_bf16 else 3, 26: 5}.get(int(family[1]))


def caches() -> dict[str, tuple[int, int]]:
    """Size in bytes of "L1d", "L2" and "L3", and how many processors share each."""
    found = {}
    for entry in sorted(_CPU.glob("cache/index*")):
        kind = (entry / "type").read_text().strip()
        if kind != "Instruction":
            level = (entry / "level").read_text().strip()
            size = (entry / "size").read_text().strip()
            shared = _count_cpus((entry / "shared_cpu_list").read_text())
            scale = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = (int(size.rstrip("KM")) * scale, shared)
    return found


def _count_cpus(listed: str) -> int:
    """The number of processors in a list such as "0-3,8"."""
    ends = [part.split("-") for part in listed.strip().split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)


def slug(machine: dict[str, Any]) -> str:
    """The machine's name for a file name."""
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*", " ", machine["cpu"].lower())
    words = re.findall(r"[a-z0-9]+", name)
    threads = machine["threads"]
    return "-".join([*words, f"{threads}-thread{'s' if threads > 1 else ''}"])


def bytes_text(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
