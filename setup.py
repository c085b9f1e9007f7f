"""Build of the compiled part, fastrnn._C. What is to be built is in pyproject.toml.

Environment:
    FASTRNN_CUDA            auto (default), 0 or 1. auto builds the CUDA kernels where torch has CUDA and
                            a toolkit is found; no GPU need be plugged in.
    TORCH_CUDA_ARCH_LIST    architectures to build for; default: those of the GPUs here, else 8.0 and 9.0a
    FASTRNN_SANITIZE        1: address and undefined-behavior sanitizers, for tests
    MAX_JOBS                compilers at once
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "fastrnn is built against the torch it will run with: install torch first, then "
        "`pip install --no-build-isolation .`"
    )

# Headers are named by their path in here.
HEADERS = str(Path("csrc").resolve())

CUDA_SOURCES = sorted(str(p) for p in Path("csrc/cuda").rglob("*.cu"))


def wants_cuda() -> bool:
    choice = os.environ.get("FASTRNN_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"FASTRNN_CUDA must be auto, 0 or 1, not {choice!r}")
    if choice == "0" or (choice == "auto" and not CUDA_SOURCES):
        return False
    missing = None
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is a build without CUDA"
    elif cpp_extension.CUDA_HOME is None:
        missing = "no CUDA toolkit was found (set CUDA_HOME)"
    elif library_headers() is None:
        missing = f"neither {cpp_extension.CUDA_HOME} nor torch's own packages have cuBLAS's headers"
    if missing and choice == "1":
        sys.exit(f"FASTRNN_CUDA=1, but {missing}")
    return missing is None


def library_headers() -> list[str] | None:
    """Folders with the headers of CUDA's libraries that the toolkit lacks; None where nobody has them.

    torch's own headers include those of cuBLAS and others. A toolkit may be a compiler alone, but torch's
    wheels bring them along.
    """
    if (Path(cpp_extension.CUDA_HOME) / "include/cublas_v2.h").exists():
        return []
    wheels = Path(torch.__file__).parent.parent / "nvidia"
    if not list(wheels.glob("*/include/cublas_v2.h")):
        return None
    return sorted(str(p) for p in wheels.glob("*/include"))


def arch_list() -> str:
    """TORCH_CUDA_ARCH_LIST, or the architectures of the GPUs here, or a choice for none."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return listed
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    names = {f"{major}.{minor}{'a' if major == 9 else ''}" for major, minor in found}
    return ";".join(sorted(names)) or "8.0;9.0a"


def extensions() -> list[object]:
    """The library of every machine, and that of GPUs. Neither is tied to one torch or one Python."""
    cxx = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra"]
    # Vector types are only passed between inlined functions, so that their calling convention, which
    # depends on the instruction set, never matters (-Wno-psabi).
    cxx += ["-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]
    link: list[str] = []
    if os.environ.get("FASTRNN_SANITIZE") == "1":
        cxx += ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        link += ["-fsanitize=address,undefined"]
    shared = {"include_dirs": [HEADERS], "extra_link_args": link, "py_limited_api": True}
    # The oldest torch that the library runs with: nothing newer of torch's interface is used.
    macros = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
    cpu = cpp_extension.CppExtension(
        "fastrnn._C",
        [*sources("csrc/torch/stable", "csrc/cpu"), *sources("csrc/torch", within=False)],
        define_macros=macros,
        extra_compile_args={"cxx": cxx},
        **shared,
    )
    if not wants_cuda():
        return [cpu]
    archs = os.environ["TORCH_CUDA_ARCH_LIST"] = arch_list()
    nvcc = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-lineinfo", "-Xptxas=-v"]
    nvcc += ["-Xcompiler=-Wall", "-Werror=all-warnings"]
    # After all others: what the toolkit has itself comes from there.
    cxx += [f"-idirafter{folder}" for folder in library_headers() or []]
    cuda = cpp_extension.CUDAExtension(
        "fastrnn._C_cuda",
        [
            "csrc/torch/cuda_ops.cpp",
            "csrc/torch/arguments.cpp",
            *sources("csrc/torch/stable"),
            *CUDA_SOURCES,
        ],
        define_macros=[*macros, ("USE_CUDA", "1"), ("FASTRNN_CUDA_ARCHS", f'"{archs}"')],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        **shared,
    )
    return [cpu, cuda]


def sources(*folders: str, within: bool = True) -> list[str]:
    """The C++ files in folders and, unless told otherwise, the folders within."""
    pattern = "**/*.cpp" if within else "*.cpp"
    files = (path for folder in folders for path in Path(folder).glob(pattern))
    return sorted(str(path) for path in files if path.name != "cuda_ops.cpp")


if platform.system() != "Linux":
    sys.exit("fastrnn is built and tested on Linux only")

setup(
    license="Apache-2.0",
    ext_modules=extensions(),
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)},
)
