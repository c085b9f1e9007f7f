"""Resident memory stays flat over 300,000 calls of every operator, and as many refused ones."""

from __future__ import annotations

import calls
import pytest

COUNT, MOST = 300_000, 1 << 20  # 3.5 bytes a call


@pytest.mark.parametrize("name", calls.CALLS)
def test_calls(name: str) -> None:
    assert calls.growth(calls.CALLS[name], COUNT) <= MOST


@pytest.mark.parametrize("name", calls.WRONG_CALLS)
def test_errors(name: str) -> None:
    assert calls.growth(lambda: calls.refused(calls.WRONG_CALLS[name]), COUNT) <= MOST
