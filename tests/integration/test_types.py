"""What mypy knows of a layer's call: packed input gives packed output, states=True a third value."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = """from typing import assert_type
import fastrnn
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
Pair = tuple[Tensor, Tensor]
def check(x: Tensor, packed: PackedSequence) -> None:
    lstm, gru, rnn = fastrnn.LSTM(2, 3), fastrnn.GRU(2, 3), fastrnn.RNN(2, 3)
    reset_before = fastrnn.GRUResetBefore(2, 3)
"""
RIGHT = [
    "assert_type(lstm(x), tuple[Tensor, Pair])",
    "assert_type(lstm(x, (x, x), lengths=[1, 2], reset=x), tuple[Tensor, Pair])",
    "assert_type(lstm(x, states=True), tuple[Tensor, Pair, list[Pair]])",
    "assert_type(lstm(packed), tuple[PackedSequence, Pair])",
    "assert_type(lstm(packed, states=True)[2], list[tuple[PackedSequence, PackedSequence]])",
    "assert_type(gru(x, lengths=x), tuple[Tensor, Tensor])",
    "assert_type(gru(x, states=True), tuple[Tensor, Tensor, list[Tensor]])",
    "assert_type(gru(packed, x), tuple[PackedSequence, Tensor])",
    "assert_type(rnn(packed, states=True), tuple[PackedSequence, Tensor, list[PackedSequence]])",
    "assert_type(reset_before(x), tuple[Tensor, Tensor])",
]
WRONG = [
    "assert_type(lstm(packed), tuple[Tensor, Pair])",
    "lstm(packed, lengths=x)",
    "gru(x, (x, x))",
    "lstm(x, length=x)",
    "rnn(x, states=1)",
]


def test_types_of_a_call(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    program = tmp_path / "program.py"
    program.write_text(NAMES + "".join(f"    {line}\n" for line in (*RIGHT, *WRONG)))
    command = [sys.executable, "-m", "mypy", "--strict", str(program)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    first = NAMES.count("\n") + len(RIGHT) + 1
    lines = {int(n) for n in re.findall(r"program\.py:(\d+): error", said)}
    assert lines == {first + i for i in range(len(WRONG))}, said
