"""Shared objects made of cells' C++ by this machine's compiler, kept in a cache.

A file's name has a digest of all that it is made of. The cache is safe against two processes at once (a
lock), a compiler that is killed (it writes elsewhere; only whole files are moved into place), damaged files
(each ends with its digest) and files of other users (owner and permissions are checked).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastrnn import _build

# As setup.py compiles the kernels.
_FLAGS = """-O2 -std=c++20 -fPIC -shared -fvisibility=hidden -w -Wno-psabi -fno-math-errno
-fno-trapping-math"""
FLAGS = tuple(_FLAGS.split())
SECONDS_UNTIL_NOTICE = 2
SECONDS_AT_MOST = 300
_DIGEST = hashlib.sha256


class CompilerError(RuntimeError):
    """A cell could not be compiled here, and why."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: how it is called, and what it says of itself."""

    command: tuple[str, ...]
    version: str

    @property
    def name(self) -> str:
        return " ".join(self.command)


def find_compiler() -> Compiler:
    """The first of $CXX, c++, g++ and clang++ that is there.

    Raises:
        CompilerError: none is.
    """
    return _find_compiler(os.environ.get("CXX", ""))


@cache
def _find_compiler(chosen: str) -> Compiler:
    candidates = [shlex.split(chosen)] if chosen else []
    candidates += [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0]) is None:
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            run = subprocess.run(
                [*command, "--version"], capture_output=True, text=True, timeout=60, check=True
            )
            return Compiler(tuple(command), run.stdout)
    looked_for = ", ".join(shlex.join(c) for c in candidates)
    raise CompilerError(f"there is no C++ compiler (looked for {looked_for}); name one in CXX")


@cache
def _headers_digest() -> bytes:
    digest = _DIGEST()
    folder = _build.sources()
    for path in sorted(p for kind in ("*.h", "*.cpp") for p in folder.rglob(kind)):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.digest()


def cache_folder() -> Path:
    """Where compiled cells are kept."""
    return _build.cache_folder() / "cells"


def compile_shared_object(name: str, text: str) -> Path:
    """The shared object made of a C++ text, from the cache or the compiler.

    Args:
        name: the cell's, for the file's name and messages.
        text: the whole source.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    compiler = find_compiler()
    folder = _private_folder()
    command = (*compiler.command, *FLAGS)
    parts = (text.encode(), _headers_digest(), compiler.version.encode(), repr(command).encode())
    key = _DIGEST(b"\0".join(_DIGEST(p).digest() for p in parts)).hexdigest()[:32]
    target = folder / f"{name}-{key}.so"
    if not _is_whole(target):
        with _locked(folder / "lock"):
            if not _is_whole(target):  # by another process meanwhile
                _compile(name, text, command, target)
    return target


def _private_folder() -> Path:
    """The cache folder, or where that cannot be trusted or written to, one for this process."""
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # no home
        pass
    return _folder_of_process()


@cache
def _folder_of_process() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="fastrnn-")
    _kept_until_exit.append(folder)
    return Path(folder.name)


_kept_until_exit: list[tempfile.TemporaryDirectory[str]] = []


def _is_ours(path: Path) -> bool:
    """Nobody else can have written to it."""
    found = path.stat(follow_symlinks=False)
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(path: Path) -> bool:
    """A file that we wrote, to its end."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_file() or not _is_ours(path):
            return False
        data = path.read_bytes()
        size = _DIGEST().digest_size
        return len(data) > size and _DIGEST(data[:-size]).digest() == data[-size:]
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file; it is released when its process ends, in whatever way."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(name: str, text: str, command: tuple[str, ...], target: Path) -> None:
    for left in target.parent.glob("compiling-*"):  # by a process that was killed, since we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="compiling-") as scratch:
        source, built = Path(scratch, "cell.cpp"), Path(scratch, "cell.so")
        source.write_text(text)
        _run(name, [*command, f"-I{_build.sources()}", f"-I{scratch}", str(source), "-o", str(built)])
        data = built.read_bytes()
        built.write_bytes(data + _DIGEST(data).digest())  # the loader reads what headers name, no more
        built.chmod(0o700)
        built.replace(target)


def _run(name: str, command: list[str]) -> None:
    compiler = shlex.join(command[:1])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            try:
                _, errors = process.communicate(timeout=SECONDS_UNTIL_NOTICE)
            except subprocess.TimeoutExpired:
                print(f"fastrnn: compiling the cell {name} by {compiler} ...", file=sys.stderr, flush=True)
                _, errors = process.communicate(timeout=SECONDS_AT_MOST)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CompilerError(f"{compiler} took more than {SECONDS_AT_MOST} seconds") from error
            raise
    if process.returncode < 0:
        raise CompilerError(f"{compiler} was killed by signal {-process.returncode}")
    if process.returncode:
        wrong = (
            [line for line in errors.splitlines() if "error" in line]
            or errors.splitlines()
            or ["no message"]
        )
        raise CompilerError(f"{compiler} could not compile it: {wrong[0]}")
