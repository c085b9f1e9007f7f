"""``python -m fastrnn compile``, all but the compiler: missing tools, the lock, the library loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from fastrnn import _build, _compile

CUDA = "13.0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, and a torch with CUDA."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", CUDA)
    return tmp_path


def run(cache: Path, *words: str, first: str = "pass") -> subprocess.CompletedProcess[str]:
    """python -m fastrnn, after the Python statements in `first`."""
    code = f"import sys; {first}; sys.argv[1:] = {list(words)}\n"
    code += "import runpy; runpy.run_module('fastrnn', None, '__main__')"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def put(library: Path) -> None:
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not loadable")


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("import torch; torch.version.cuda = None", "is a build without CUDA"),
        ("sys.modules['setuptools'] = None", "no setuptools; pip install setuptools"),
        (
            "from fastrnn import _compile; _compile.missing_for_cuda = lambda: None; "
            "_compile.shutil.which = lambda name: None",
            "no ninja was found; pip install ninja",
        ),
    ],
)
def test_what_is_missing_is_told_in_one_line(tmp_path: Path, first: str, message: str) -> None:
    done = run(tmp_path, "compile", first=first)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_two_at_once_compile_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = []

    def build(csrc: Path, folder: Path) -> Path:
        built.append(folder)
        (result := folder / "built.so").write_bytes(b"x")
        return result

    monkeypatch.setattr(_compile, "_build_cuda", build)
    monkeypatch.setattr(_compile, "missing_for_cuda", lambda: None)
    monkeypatch.setattr(_compile.shutil, "which", lambda name: name)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    library = _build.compiled_library()
    threads = [
        threading.Thread(target=_compile.compile_cuda, args=(_build.sources(), library)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert library.read_bytes() == b"x"
    assert list(library.parent.iterdir()) == [library]
    assert "already compiled" in capsys.readouterr().out


def test_a_failed_build_leaves_no_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(csrc: Path, folder: Path) -> Path:
        (folder / "half.so").write_bytes(b"x")
        raise RuntimeError("the compiler failed")

    monkeypatch.setattr(_compile, "_build_cuda", build)
    monkeypatch.setattr(_compile, "missing_for_cuda", lambda: None)
    monkeypatch.setattr(_compile.shutil, "which", lambda name: name)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with pytest.raises(RuntimeError, match="the compiler failed"):
        _compile.compile_cuda(_build.sources(), _build.compiled_library())
    assert not list(cache.rglob("*.so"))


def test_a_foreign_library_is_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    monkeypatch.setattr(_build, "_load", loaded.append)
    monkeypatch.setattr(_build, "CUDA_LIBRARY", cache / "none")
    ours = _build.compiled_library()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    other_cuda = _build.compiled_library()
    monkeypatch.setattr(torch.version, "cuda", CUDA)
    (cache / "csrc").mkdir()
    (cache / "csrc" / "changed.cu").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(_build, "sources", lambda: cache / "csrc")
        other_sources = _build.compiled_library()
    assert len({ours, other_cuda, other_sources}) == 3
    put(other_cuda)
    put(other_sources)
    _build.load()
    assert loaded == [_build.LIBRARY]
    put(ours)
    _build.load()
    assert loaded == [_build.LIBRARY, _build.LIBRARY, ours]


def test_remove(cache: Path) -> None:
    assert "nothing was compiled" in run(cache, "compile", "--remove").stdout
    put(_build.compiled_library())
    done = run(cache, "compile", "--remove")
    assert done.returncode == 0
    assert f"removed {_build.compiled_folder()}" in done.stdout
    assert not _build.compiled_folder().exists()
