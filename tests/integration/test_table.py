"""docs/compatibility.md names tests that exist, and quotes torch.nn's own words."""

from __future__ import annotations

import re
from pathlib import Path

from .test_torch_nn import FAILURES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = ROOT / "docs" / "compatibility.md"


def rows() -> list[str]:
    lines = TABLE.read_text().splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| |")]


def test_every_row_names_a_test_that_exists() -> None:
    assert len(rows()) > 70
    for row in rows():
        named = re.search(r" ((tests/)?test_\w+\.py)::(test_\w+) \|$", row)
        assert named is not None, f"no test named in: {row}"
        file, folder, name = named.groups()
        text = ((ROOT if folder else HERE) / file).read_text()
        assert f"def {name}(" in text, f"there is no {name} in {file}"


def test_torch_nns_words_are_shown() -> None:
    quoted = [words for row in rows() for words in re.findall(r'fails[^|]*?: "([^"]+)"', row)]
    assert set(quoted) <= {words for words, _, _ in FAILURES}
    assert len(quoted) >= 6
