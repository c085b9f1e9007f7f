"""DistributedDataParallel, FSDP2 and elastic restarts: two processes train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import distributed_worker as worker
from .common import assert_same

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


def torchrun(folder: Path, what: str, restarts: int = 0) -> None:
    """Two processes on this machine, by gloo, or by NCCL where there are two GPUs."""
    root = Path(worker.__file__).parents[2]
    path = os.pathsep.join((str(root), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", worker.__file__, what, str(folder)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[torch.Tensor]]:
    folder = tmp_path_factory.mktemp("gradients")
    torchrun(folder, "gradients")
    return torch.load(folder / "gradients.pt")


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes_give_the_gradients_of_one(
    way: str, gradients: dict[str, list[torch.Tensor]]
) -> None:
    model = worker.Tagger()
    worker.loss_of(model, *worker.batch(0)).backward()
    assert_same(gradients[way], [p.grad for p in model.parameters()])


def test_elastic_restart_from_a_checkpoint_loses_nothing(tmp_path: Path) -> None:
    # More restarts than the one that is provoked: a busy machine may be late for a rendezvous.
    torchrun(tmp_path, "elastic", restarts=3)
    trained = torch.load(tmp_path / "trained.pt")
    assert (tmp_path / "failed").exists()
    assert trained["began_at"] >= worker.STEPS // 2
    model = worker.Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(worker.STEPS):
        optimizer.zero_grad()
        worker.loss_of(model, *worker.batch(step)).backward()
        optimizer.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(trained["model"][name].cpu(), weight, rtol=0, atol=1e-5)
