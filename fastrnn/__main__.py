"""``python -m fastrnn`` prints what a bug report needs.

``... compile`` builds the CUDA library; ``... tune`` measures which driver is the fastest for a layer.
"""

from __future__ import annotations

import argparse
import sys

from fastrnn import _build


def _tune(arguments: argparse.Namespace) -> None:
    import torch

    import fastrnn

    options = {"dtype": getattr(torch, arguments.dtype), "device": arguments.device}
    inputs = arguments.input or arguments.hidden
    layer = getattr(fastrnn, {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[arguments.cell])(
        inputs, arguments.hidden, arguments.layers, bidirectional=arguments.bidirectional, **options
    )
    x = torch.randn(arguments.steps, arguments.batch, inputs, **options)
    print(fastrnn.tune(layer.train(not arguments.inference), x, again=arguments.again))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastrnn", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    compile_ = commands.add_parser(
        "compile",
        help="compile the CUDA kernels for the GPUs here (or TORCH_CUDA_ARCH_LIST) into the user's cache",
    )
    compile_.add_argument("--remove", action="store_true", help="remove what was compiled")
    tune = commands.add_parser("tune", help="measure which driver is the fastest for a layer, and use it")
    tune.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="lstm")
    for name, default in (("hidden", 512), ("input", None), ("batch", 32), ("steps", 100), ("layers", 1)):
        tune.add_argument(f"--{name}", type=int, default=default)
    tune.add_argument("--bidirectional", action="store_true")
    tune.add_argument("--inference", action="store_true", help="measure no training")
    tune.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    tune.add_argument("--device", default="cpu")
    tune.add_argument("--again", action="store_true", help="measure what was tuned before, too")
    arguments = parser.parse_args()
    if arguments.command == "tune":
        _tune(arguments)
        return
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
