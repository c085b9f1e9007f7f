"""The emulated CUDA kernels under the address sanitizer: a build of its own, which takes over a minute."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "cuda"))

import emulated


@pytest.mark.parametrize("believed", [32, 33])
def test_an_off_by_one_is_seen(believed: int) -> None:
    done = emulated.run_sanitized(
        "import emulated, torch\n"
        f"print(emulated.ops().column_sums(torch.ones(50, 32), {believed})[0].item())\n"
    )
    if believed == 32:
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "50.0"
    else:
        assert done.returncode != 0
        assert "heap-buffer-overflow" in done.stderr, done.stderr


def test_kernels_keep_within_bounds() -> None:
    """Every cell and kind of sequence under the address sanitizer, in sizes that divide nothing."""
    done = emulated.run_sanitized(
        "import os, emulated, problems, torch\n"
        "for cell in problems.GATES:\n"
        "    for kind in ('plain', 'packed+reset', 'lengths+reset'):\n"
        "        for H in (7, 8):\n"
        "            p = problems.make(cell, 4, 5, 3, H, kind=kind, reverse=H == 7)\n"
        "            for keep in (1, 2):\n"
        "                problems.by_ops(emulated.ops(), p, keep)\n"
        "problems.by_ops(emulated.ops(), problems.make('lstm', 4, 5, 3, 7, P=5, kind='lengths'))\n"
        "for driver in ('cluster', 'block', 'grid'):\n"
        "    os.environ['FASTRNN_CUDA_DRIVER'] = driver\n"
        "    for cell, kind in (('lstm', 'packed+reset'), ('gru', 'lengths+reset')):\n"
        "        p = problems.make(cell, 3, 9, 3, 19, kind=kind, dtype=torch.bfloat16)\n"
        "        problems.by_ops(emulated.ops(), p)\n"
        "print('done')\n"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "done"
