"""What test_distributed.py runs under torchrun: ``distributed_worker.py gradients|elastic FOLDER``."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastrnn

STEPS, ROWS, T, I, H = 6, 4, 5, 4, 8


class Tagger(nn.Module):
    """An embedding's place, two kinds of recurrent layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = fastrnn.GRU(2 * H, H, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x, _ = self.lstm(x, lengths=lengths)
        x, _ = self.gru(x, lengths=lengths)
        return self.head(x)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, T, I, generator=generator), torch.tensor([5, 2, 4, 3])


def part(step: int, device: str) -> tuple[Tensor, Tensor]:
    """This process's rows of the batch."""
    rows = slice(dist.get_rank(), None, dist.get_world_size())
    x, lengths = batch(step)
    return x[rows].to(device), lengths[rows].to(device)


def loss_of(model: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    return model(x, lengths).square().mean()


def full(t: Tensor) -> Tensor:
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().cpu()


def gradients(folder: Path, device: str) -> None:
    """Gradients of one step with DDP and with FSDP2, saved by the first process."""
    results = {}
    model = DistributedDataParallel(Tagger().to(device))
    loss_of(model, *part(0, device)).backward()
    results["ddp"] = [full(p.grad) for p in model.parameters()]

    model = Tagger().to(device)
    mesh = dist.device_mesh.init_device_mesh(device, (dist.get_world_size(),))
    for layer in (model.lstm, model.gru, model):
        fully_shard(layer, mesh=mesh)
    loss_of(model, *part(0, device)).backward()
    results["fsdp2"] = [full(p.grad) for p in model.parameters()]
    if dist.get_rank() == 0:
        torch.save(results, folder / "gradients.pt")


def elastic(folder: Path, device: str) -> None:
    """Trains with a checkpoint after every step; the first time, one process fails halfway."""
    model = DistributedDataParallel(Tagger().to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    checkpoint, start = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    for step in range(start, STEPS):
        failed = folder / "failed"
        if step == STEPS // 2 and dist.get_rank() == 1 and not failed.exists():
            failed.touch()
            os._exit(1)
        optimizer.zero_grad()
        loss_of(model, *part(step, device)).backward()
        optimizer.step()
        if dist.get_rank() == 0:
            state = {
                "model": model.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, folder / "checkpoint.tmp")
            os.replace(folder / "checkpoint.tmp", checkpoint)
        dist.barrier()
    if dist.get_rank() == 0:
        torch.save({"model": model.module.state_dict(), "began_at": start}, folder / "trained.pt")


def start_store() -> dist.Store:
    """Where the processes find each other: torchrun keeps one store over restarts, in which a new process
    may find the address of a dead one, so that every start has names of its own."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = not kept and os.environ["RANK"] == "0"
    store = dist.TCPStore(*address, int(os.environ["WORLD_SIZE"]), is_master=is_master)
    return dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def main() -> None:
    torch.set_num_threads(1)
    gpus = torch.cuda.device_count() >= int(os.environ["WORLD_SIZE"])
    # Processes that do not find each other give up soon.
    dist.init_process_group(
        "nccl" if gpus else "gloo",
        store=start_store(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=60),
    )
    if gpus:
        torch.cuda.set_device(dist.get_rank())
    run = {"gradients": gradients, "elastic": elastic}[sys.argv[1]]
    run(Path(sys.argv[2]), "cuda" if gpus else "cpu")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
