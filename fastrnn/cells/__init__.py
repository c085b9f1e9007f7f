"""Recurrent cells that a user declares in Python: one unit's step as a function of tensors.

declaration  the decorator, and what a signature says
tracing      the function's graph and its derivative, by torch's own tools; what can't be expressed
slots        which numbers forward leaves for backward
printing     both as the C++ struct that csrc/cells/cell.h describes
compiler     from C++ text to a shared object, cached between processes
"""

from fastrnn.cells.declaration import Cell, CellError, cell

__all__ = ["Cell", "CellError", "cell"]
