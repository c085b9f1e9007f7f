"""``python -m fastrnn`` prints what a bug report needs; ``... compile`` builds the CUDA library."""

from __future__ import annotations

import argparse
import sys

from fastrnn import _build


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastrnn", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    compile_ = commands.add_parser(
        "compile",
        help="compile the CUDA kernels for the GPUs here (or TORCH_CUDA_ARCH_LIST) into the user's cache",
    )
    compile_.add_argument("--remove", action="store_true", help="remove what was compiled")
    arguments = parser.parse_args()
    if arguments.command == "compile":
        try:
            # torch's build tools take a second to import.
            from fastrnn import _compile
        except ModuleNotFoundError as error:
            sys.exit(
                f"fastrnn: the CUDA library cannot be compiled: no {error.name}; pip install {error.name}"
            )

        if arguments.remove:
            _compile.remove_cuda(_build.compiled_folder())
        else:
            _compile.compile_cuda(_build.sources(), _build.compiled_library())
        return
    for name, value in _build.build_info().items():
        print(f"{name:20} {', '.join(value) if isinstance(value, list) else value}")


main()
