"""A process that checks and measures one driver on a GPU, one point after another.

benchmarks/cuda.py starts it. A line is written to its output when it is ready, then one for each request,
a line of its input. Whatever else is printed goes to the log. After an error the process ends, since a
fault of the device stays with it: the next request is for another process.

Without a GPU, drivers that hang, fault, raise or compute something wrong stand in for those of a GPU, to
try what becomes of them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

NN = "torch.nn"
MODULES = {"lstm": nn.LSTM, "gru": nn.GRU}
# Name: dtype, whether float32 may be rounded to TF32.
DTYPES = {
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
    "bf16": (torch.bfloat16, True),
    "fp16": (torch.float16, True),
}
CHECKED_STEPS = 8


def _falsify(results: list[Tensor]) -> None:
    results[0][0] += 1


# What drivers of a rehearsal do with results that are checked, and one of them when it is timed.
REHEARSED: dict[str, Callable[[list[Tensor]], Any]] = {
    "hangs": lambda _: time.sleep(3600),
    "faults": lambda _: os.abort(),
    "raises": lambda _: torch.empty(-1),
    "wrong": _falsify,
}
FAULTS_TIMED = "faults-timed"


class Layer:
    """torch.nn's module of a point, and fastrnn's with the same weights."""

    def __init__(self, request: dict[str, Any], driver: str, device: str) -> None:
        self.cell, self.H, self.B = request["cell"], request["H"], request["B"]
        self.dtype, tf32 = DTYPES[request["dtype"]]
        self.driver, self.device = driver, device
        self.eps = torch.finfo(torch.float16 if self.dtype == torch.float32 and tf32 else self.dtype).eps
        torch.backends.cudnn.allow_tf32 = tf32
        torch.manual_seed(0)
        where = {"device": device, "dtype": self.dtype}
        self.theirs = MODULES[self.cell](self.H, self.H, **where)
        self.module = self.theirs
        if driver != NN:
            import fastrnn  # torch.nn is measured while fastrnn is built

            self.module = getattr(fastrnn, MODULES[self.cell].__name__)(self.H, self.H, **where)
            self.module.load_state_dict(self.theirs.state_dict())

    def input(self, T: int) -> Tensor:
        return torch.randn(T, self.B, self.H, device=self.device, dtype=self.dtype)

    def is_served(self) -> bool:
        """Whether forward and backward are this driver's; on a CPU, whether this package's kernels run."""
        if self.driver == NN:
            return True
        import fastrnn

        explanation = fastrnn.explain(self.module, self.input(CHECKED_STEPS))
        if self.device == "cpu":
            return explanation.path == "fused"
        return explanation.driver == explanation.backward_driver == self.driver


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the last states, and every gradient."""
    x = x.detach().requires_grad_()
    y, state = module(x)
    weights = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
    gradients = torch.autograd.grad(y, [x, *module.parameters()], weights)
    states = [state] if isinstance(state, Tensor) else state
    return [t.detach() for t in (y, *states, *gradients)]


def errors(got: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of each result, relative to the largest number of the exact one."""
    return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(got, exact, strict=True)]


def check(layer: Layer) -> dict[str, Any]:
    """Compares with float64: no error may exceed twice torch.nn's plus a few ulp."""
    x = layer.input(CHECKED_STEPS)
    wide = MODULES[layer.cell](layer.H, layer.H, device=layer.device, dtype=torch.float64)
    wide.load_state_dict({name: t.double() for name, t in layer.theirs.state_dict().items()})
    exact = results(wide, x.double())
    theirs, got = results(layer.theirs, x), results(layer.module, x)
    if layer.driver in REHEARSED:
        REHEARSED[layer.driver](got)
    pairs = list(zip(errors(got, exact), errors(theirs, exact), strict=True))
    return {
        "error": max(own for own, _ in pairs),
        "torch_error": max(other for _, other in pairs),
        # A NaN fails the comparison.
        "right": all(own <= 2 * other + 4 * layer.eps for own, other in pairs),
    }


def passes(layer: Layer, T: int) -> dict[str, Callable[[], Any]]:
    """A call's parts, each by itself: inference, forward that keeps what backward needs, and backward."""
    x = layer.input(T)
    leaf = x.detach().requires_grad_()
    wanted = [leaf, *layer.module.parameters()]
    kept: list[Tensor] = []

    def inference() -> None:
        with torch.no_grad():
            layer.module(x)

    def forward() -> None:
        kept[:] = [layer.module(leaf)[0]]

    def backward() -> None:
        torch.autograd.grad(kept, wanted, torch.ones_like(kept[0]), retain_graph=True)

    return {"inference": inference, "forward": forward, "backward": backward}


def captured(calls: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """The same as CUDA graphs, so that neither package is charged for Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls.values():
            call()
    torch.cuda.current_stream().wait_stream(stream)
    pool, graphs = torch.cuda.graph_pool_handle(), {}
    for name, call in calls.items():
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name], pool=pool):
            call()
    return {name: graph.replay for name, graph in graphs.items()}


def median_us(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Of calls in a row, of which so many are timed together that the clock is fine enough."""

    def time_us(calls: int) -> float:
        if device == "cpu":
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) * 1e6 / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / calls

    call()
    calls = max(1, min(50, round(500 / max(time_us(1), 1.0))))
    return statistics.median(time_us(calls) for _ in range(repeats))


def measure(layer: Layer, steps: list[int], repeats: int, plain: bool) -> dict[str, Any]:
    """Microseconds of each pass for each number of steps: by CUDA graphs, and `plain` by calls too."""
    ways = {"us": captured if layer.device == "cuda" else dict}
    if plain:
        ways["plain_us"] = dict
    if layer.driver == FAULTS_TIMED:
        os.abort()
    answer: dict[str, Any] = {}
    for T in steps:
        calls = passes(layer, T)
        for name, way in ways.items():
            of_way = answer.setdefault(name, {})
            for which, call in way(calls).items():
                of_way.setdefault(which, {})[str(T)] = median_us(call, repeats, layer.device)
        if layer.device == "cuda":
            torch.cuda.empty_cache()
    return answer


def own_kernels(driver: str) -> AbstractContextManager[None]:
    """This package's kernels run, whatever FASTRNN_DRIVER or fastrnn.tune chose, and also on a GPU."""
    if driver == NN:
        return nullcontext()
    from fastrnn import drivers

    return drivers.forced("fused")


def answer(request: dict[str, Any], driver: str, device: str) -> dict[str, Any]:
    with own_kernels(driver):
        return _answer(request, driver, device)


def _answer(request: dict[str, Any], driver: str, device: str) -> dict[str, Any]:
    layer = Layer(request, driver, device)
    if not layer.is_served():
        return {"served": False}
    if request["what"] == "check":
        return {"served": True, **check(layer)}
    return {"served": True, **measure(layer, request["steps"], request["repeats"], request["plain"])}


def main() -> int:
    driver, device = sys.argv[1:]
    with os.fdopen(os.dup(1), "w") as to:
        os.dup2(2, 1)
        torch.zeros(1, device=device)
        torch.set_num_threads(1)

        def reply(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=to, flush=True)

        reply({"ready": True})
        if driver != NN and device == "cuda":  # those of a rehearsal are unknown to fastrnn
            os.environ["FASTRNN_CUDA_DRIVER"] = driver
        for line in sys.stdin:
            try:
                answered = answer(json.loads(line), driver, device)
                if device == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:
                reply({"failed": f"{type(error).__name__}: {error}"[:500]})
                return 1
            reply(answered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
