"""Writes the headers of the cells that come with the package: python -m fastrnn.cells.headers."""

from __future__ import annotations

from pathlib import Path

from fastrnn import _build
from fastrnn.cells.declaration import Cell
from fastrnn.cells.printing import print_cell
from fastrnn.nn.variants import GENERATED


def path_of(cell: Cell) -> Path:
    return _build.sources() / "cells" / "generated" / f"{cell.__name__}.h"


def header_of(cell: Cell) -> str:
    """The header with the cell's kernels, for csrc/cells/registry.h."""
    struct = print_cell(cell, cell.__name__.title().replace("_", "")).text
    return f"""// Written by `python -m fastrnn.cells.headers` from {cell.__name__}
// in fastrnn/nn/variants.py.
#pragma once

#include "cells/cell.h"

namespace fastrnn {{

{struct}
}}  // namespace fastrnn
"""


if __name__ == "__main__":
    for cell in GENERATED.values():
        path_of(cell).write_text(header_of(cell))
