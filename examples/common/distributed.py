"""Several processes under torchrun, or one: the rest of the code does not need to know.

Every process draws the same batches from the same seed and keeps its own share of each;
DistributedDataParallel averages the gradients, so equal shares give the whole batch's gradient.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import InputError


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


@dataclass
class World:
    """The processes that train together, and this one's device."""

    rank: int
    size: int
    device: torch.device

    def share(self, indices: Tensor) -> Tensor:
        """This process's part of a batch's indices [B]; what can't be shared is cut."""
        if self.size == 1:
            return indices
        return indices[: len(indices) // self.size * self.size][self.rank :: self.size]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: it averages gradients over the processes."""
        if self.size == 1:
            return model
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(model, device_ids=[self.device] if on_gpu else None)


def join(device: str) -> World:
    """Enter the group torchrun started (gloo on a CPU, NCCL on GPUs), or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"--device {device} is no device; give cpu, cuda or cuda:N.") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"--device {device} is not supported; give cpu, cuda or cuda:N.")
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise InputError("--device cuda needs a GPU and a CUDA build of torch; there is none here.")
        index = int(os.environ.get("LOCAL_RANK", chosen.index or 0))
        if index >= count:
            raise InputError(f"GPU {index} was asked for, but there are only {count}.")
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(size), rank=rank(), world_size=size)
    return World(rank(), size, chosen)


def restarts() -> int:
    """How often torchrun has started the processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _store(size: int) -> dist.Store:
    """Where the processes find each other.

    torchrun keeps one store over restarts, in which a new process may find the address of a dead
    one: so every start has names of its own.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(host, port, size, is_master=not kept and rank() == 0)
    return dist.PrefixStore(f"start {restarts()}, {size} processes", store)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
