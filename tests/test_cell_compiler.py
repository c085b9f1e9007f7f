"""The compiler of declared cells: what is found, cached, shared between processes and refused."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrnn.cells import compiler
from fastrnn.cells.compiler import CompilerError, compile_shared_object

TEXT = 'extern "C" __attribute__((visibility("default"))) int answer() { return %d; }'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastrnn" / "cells"


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes a line to this file whenever it compiles."""
    log = tmp_path / "log"
    log.touch()
    chosen = script(tmp_path / "counted", f'[ "$1" = --version ] || echo x >> {log}\nexec c++ "$@"')
    monkeypatch.setenv("CXX", chosen)
    return log


def answer(path: Path) -> int:
    return ctypes.CDLL(str(path)).answer()


def times(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_compiles_once(counted: Path, folder: Path) -> None:
    path = compile_shared_object("one", TEXT % 1)
    assert answer(path) == 1
    assert compile_shared_object("one", TEXT % 1) == path
    assert times(counted) == 1
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(p.name for p in folder.iterdir()) == ["lock", path.name]


def test_another_text_compiler_or_header_is_another_file(
    counted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {compile_shared_object("one", TEXT % 1), compile_shared_object("one", TEXT % 2)}
    monkeypatch.setattr(compiler, "_headers_digest", lambda: b"others")
    paths.add(compile_shared_object("one", TEXT % 1))
    other = script(tmp_path / "other", 'if [ "$1" = --version ]; then echo 99; else exec c++ "$@"; fi')
    monkeypatch.setenv("CXX", other)
    paths.add(compile_shared_object("one", TEXT % 1))
    assert len(paths) == 4


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-1] + b"?"]
)
def test_a_damaged_file_is_compiled_again(damage, counted: Path) -> None:
    path = compile_shared_object("one", TEXT % 1)
    path.write_bytes(damage(path.read_bytes()))
    assert answer(compile_shared_object("one", TEXT % 1)) == 1
    assert times(counted) == 2


def test_a_file_that_others_may_write_is_compiled_again(counted: Path) -> None:
    path = compile_shared_object("one", TEXT % 1)
    path.chmod(0o777)
    compile_shared_object("one", TEXT % 1)
    assert times(counted) == 2
    assert not path.stat().st_mode & stat.S_IWOTH


def test_a_link_is_not_followed(counted: Path, tmp_path: Path) -> None:
    path = compile_shared_object("one", TEXT % 1)
    elsewhere = tmp_path / "elsewhere.so"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    compile_shared_object("one", TEXT % 1)
    assert times(counted) == 2


def test_a_folder_that_others_may_write_is_not_used(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True)
    folder.chmod(0o777)
    path = compile_shared_object("one", TEXT % 1)
    assert answer(path) == 1
    assert folder not in path.parents


def test_no_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert answer(compile_shared_object("one", TEXT % 1)) == 1


CHILD = """
import sys
from fastrnn.cells.compiler import compile_shared_object
print(compile_shared_object("one", sys.argv[1]))
"""


def child() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, TEXT % 1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_at_once_compile_once(counted: Path) -> None:
    children = [child() for _ in range(3)]
    paths = {c.communicate()[0].strip() for c in children}
    assert times(counted) == 1
    assert answer(Path(paths.pop())) == 1
    assert not paths


def test_a_killed_process_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    slow = f'if [ "$1" = --version ]; then echo slow; else touch {started}; sleep 60; fi'
    with monkeypatch.context() as m:
        m.setenv("CXX", script(tmp_path / "slow", slow))
        process = child()
        deadline = time.time() + 60
        while not started.exists() and time.time() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert [p for p in folder.iterdir() if p.name.startswith("compiling-")]
    path = compile_shared_object("one", TEXT % 1)
    assert answer(path) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["lock", path.name]


def test_a_killed_compiler_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    killed = 'if [ "$1" = --version ]; then echo killed; else kill -KILL $$; fi'
    monkeypatch.setenv("CXX", script(tmp_path / "killed", killed))
    with pytest.raises(CompilerError, match="was killed by signal 9"):
        compile_shared_object("one", TEXT % 1)
    assert not list(folder.glob("*.so"))


def test_what_the_compiler_says_is_passed_on() -> None:
    with pytest.raises(CompilerError, match=r"could not compile it: .*error"):
        compile_shared_object("one", "this is no C++")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "mine -m64")
    with pytest.raises(CompilerError, match=r"looked for mine -m64, c\+\+, g\+\+, clang\+\+"):
        compiler._find_compiler.__wrapped__(os.environ["CXX"])


def test_the_first_that_works_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(tmp_path / "c++", "exit 1")
    script(tmp_path / "g++", "echo 12")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler._find_compiler.__wrapped__("").command == ("g++",)


def test_a_slow_compiler_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiler, "SECONDS_UNTIL_NOTICE", 0.05)
    slow = 'if [ "$1" = --version ]; then echo slow; else sleep 0.3; exec c++ "$@"; fi'
    monkeypatch.setenv("CXX", script(tmp_path / "slow", slow))
    compile_shared_object("one", TEXT % 1)
    assert "compiling the cell one by" in capfd.readouterr().err


def test_a_compiler_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "SECONDS_UNTIL_NOTICE", 0.05)
    monkeypatch.setattr(compiler, "SECONDS_AT_MOST", 0.1)
    monkeypatch.setenv("CXX", script(tmp_path / "hangs", '[ "$1" = --version ] || exec sleep 60'))
    with pytest.raises(CompilerError, match="took more than"):
        compile_shared_object("one", TEXT % 1)
