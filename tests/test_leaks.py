"""Operators keep no memory: their results, their arguments and what an error interrupts are freed.

tests/integration/test_leaks.py makes 300,000 calls of each.
"""

from __future__ import annotations

import calls
import pytest
import torch

COUNT, MOST = 5_000, 256 << 10  # 52 bytes a call, less than any leaked string or tensor takes


@pytest.mark.parametrize("name", calls.CALLS)
def test_calls(name: str) -> None:
    assert calls.growth(calls.CALLS[name], COUNT) <= MOST


@pytest.mark.parametrize("name", calls.WRONG_CALLS)
def test_errors(name: str) -> None:
    assert calls.growth(lambda: calls.refused(calls.WRONG_CALLS[name]), COUNT) <= MOST


def test_every_op_is_called() -> None:
    """But those that return strings, which torch's stable interface copies and never frees."""
    names = {
        schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("fastrnn::")
    }
    ops = {name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")}
    assert {f"fastrnn::{name.split('-')[0]}" for name in calls.CALLS} == ops
