"""docs/compatibility.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "compatibility.md"


def test_every_row_names_a_test_that_exists() -> None:
    rows = [
        line
        for line in TABLE.read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| |")
    ]
    assert len(rows) > 50
    for row in rows:
        named = re.search(r"\b(test_\w+\.py)::(test_\w+) \|$", row)
        assert named is not None, f"no test named in: {row}"
        file, name = named.groups()
        assert f"def {name}(" in (HERE / file).read_text(), f"there is no {name} in {file}"
