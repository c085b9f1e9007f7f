"""Build of the compiled part, fastrnn._C. What is to be built is in pyproject.toml.

Environment:
    FASTRNN_CUDA            auto (default), 0 or 1. auto builds the CUDA kernels where torch has CUDA and
                            a toolkit is found; no GPU need be plugged in.
    TORCH_CUDA_ARCH_LIST    architectures to build for; default: those of the GPUs here, else
                            8.0;9.0+PTX, which newer GPUs run too
    FASTRNN_SANITIZE        1: address and undefined-behavior sanitizers, for tests
    MAX_JOBS                compilers at once
"""

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

try:
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "fastrnn is built against the torch it will run with: install torch first, then "
        "`pip install --no-build-isolation .`"
    )

CSRC = Path("csrc")

# How the CUDA library is compiled is in the package, which is not there to be imported yet.
compiling = importlib.util.module_from_spec(
    spec := importlib.util.spec_from_file_location("compiling", "fastrnn/_compile.py")
)
spec.loader.exec_module(compiling)


def wants_cuda() -> bool:
    choice = os.environ.get("FASTRNN_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"FASTRNN_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "0":
        return False
    missing = compiling.missing_for_cuda()
    if missing and choice == "1":
        sys.exit(f"FASTRNN_CUDA=1, but {missing}")
    return missing is None


def extensions() -> list[object]:
    """The library of every machine, and that of GPUs. Neither is tied to one torch or one Python."""
    cxx, link = list(compiling.CXX_FLAGS), []
    if os.environ.get("FASTRNN_SANITIZE") == "1":
        cxx += ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        link += ["-fsanitize=address,undefined"]
    sources = [p for p in CSRC.rglob("*.cpp") if p.name != "cuda_ops.cpp"]
    cpu = cpp_extension.CppExtension(
        "fastrnn._C",
        sorted(map(str, sources)),
        include_dirs=[str(CSRC.resolve())],
        define_macros=compiling.TORCH_MACROS,
        extra_compile_args={"cxx": cxx},
        extra_link_args=link,
        py_limited_api=True,
    )
    return [cpu, compiling.cuda_extension(CSRC, link)] if wants_cuda() else [cpu]


class Announced(cpp_extension.BuildExtension):
    """Tells what is compiled and how long it takes. On the terminal, since pip hides a build's output."""

    def build_extensions(self) -> None:
        files = sum(len(extension.sources) for extension in self.extensions)
        if self.distribution.verbose:
            tell(
                f"fastrnn: compiling {files} files against torch {compiling.torch.__version__}; this takes "
                "about a minute on two cores the first time, and several more with CUDA"
            )
        super().build_extensions()


def tell(text: str) -> None:
    try:
        with open("/dev/tty", "w") as terminal:
            print(f"\n{text}", file=terminal)
    except OSError:
        print(text, file=sys.stderr)


class WithSources(build_py):
    """Puts csrc into the package: `python -m fastrnn compile` builds the CUDA library from it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "fastrnn" / "csrc"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(CSRC, folder)


class AnyPython(bdist_wheel):
    """The compiled part links nothing of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if platform.system() != "Linux":
    sys.exit("fastrnn is built and tested on Linux only")

setup(
    license="Apache-2.0",
    ext_modules=extensions(),
    cmdclass={
        "build_ext": Announced.with_options(no_python_abi_suffix=True),
        "build_py": WithSources,
        "bdist_wheel": AnyPython,
    },
)
