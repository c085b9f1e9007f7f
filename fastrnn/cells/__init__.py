"""Recurrent cells that a user declares in Python: one unit's step as a function of tensors.

declaration  the decorator, and what a signature says
inspection   runs the function; what can't be compiled
tracing      the function and its derivative as one graph, by torch's own tools
slots        which numbers forward keeps for backward
printing     the graph as the C++ struct that csrc/cells/cell.h describes
operators    torch's operators in C++
compiler     from C++ text to a shared object, cached between processes
plugin       loads it; finds a cell by its name
headers      writes the cells that come with the package to csrc/cells/generated
"""

from fastrnn.cells.declaration import Cell, CellError, cell

__all__ = ["Cell", "CellError", "cell"]
