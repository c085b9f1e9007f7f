"""Children of a fork: one thread if the parent's threads had started, since a child has none of them.

torch's operators would wait for the missing threads forever.
"""

from __future__ import annotations

import os

import torch


def _thread_count() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # not Linux
        return 1


class _Threads:
    at_import = _thread_count()
    started = False  # any since, as seen right before the latest fork


def _look() -> None:
    _Threads.started = _thread_count() > _Threads.at_import


def _use_one_thread() -> None:
    if _Threads.started:
        torch.set_num_threads(1)


def watch() -> None:
    """Sets torch's threads to one in every child that this process forks with its threads started."""
    os.register_at_fork(before=_look, after_in_child=_use_one_thread)
