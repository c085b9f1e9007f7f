"""The parts of torch without a stable interface that this package uses, all in one place.

A release of torch that changes one of them is dealt with here. Nothing in here imports torch's compiler or
ONNX exporter, which take seconds: hooks wait until somebody else does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.autograd import forward_ad

from fastrnn._imports import after_import

# autocast_enabled(): autocast is on for some device.
autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled

# with below_autograd(): operators run without autograd's dispatch, which costs 10 us a call.
below_autograd: Callable[[], Any] = torch._C._AutoDispatchBelowAutograd

# tracing(): torch.jit.trace is running.
tracing: Callable[[], bool] = torch._C._is_tracing

# innermost_transform(): the innermost active torch.func transform, or None.
innermost_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack

# with without_transforms(): no torch.func transform sees what is computed.
without_transforms: Callable[[], Any] = torch._C._DisableFuncTorch


# float32_matmul_precision(): torch.set_float32_matmul_precision's setting.
float32_matmul_precision: Callable[[], str] = torch._C._get_float32_matmul_precision

# fp32_precision(backend, op): as torch.backends.<backend>.<op>.fp32_precision.
fp32_precision: Callable[[str, str], str] = torch._C._get_fp32_precision_getter

# has_kernel(op, key): an operator has a kernel of its own under a dispatch key.
has_kernel: Callable[[str, str], bool] = torch._C._dispatch_has_kernel_for_dispatch_key


def assume_constant(function: Callable[[], int]) -> Callable[[], int]:
    """torch.compiler.assume_constant_result, which would import Dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


# graph_is_kept(): the backward that is running was asked to retain the graph.
graph_is_kept: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph


def above_autograd() -> Any:
    """with above_autograd(): inside an operator's kernel, what is computed is recorded by autograd."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (torch._C.DispatchKey.AutogradCPU, torch._C.DispatchKey.AutogradOther):
        # Of the first, the functionality goes, for every backend.
        excluded = excluded - torch._C.DispatchKeySet(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def deterministic_cublas() -> bool:
    """cuBLAS, and cuDNN's layers by it, are set up to be deterministic."""
    return os.environ.get("CUBLAS_WORKSPACE_CONFIG") in (":4096:8", ":16:8")


@contextmanager
def random_state(state: torch.Tensor | None) -> Iterator[None]:
    """Random numbers on the CPU as from this state on, if it is given; then those from before."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        yield


# batched_by_autograd(t): t hides a batch of gradients, for torch.autograd.grad(is_grads_batched=True).
batched_by_autograd: Callable[[torch.Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor


def vmap_over_gradients(
    function: Callable[..., tuple[torch.Tensor, ...]], grads: tuple[torch.Tensor | None, ...]
) -> tuple[torch.Tensor, ...]:
    """function(*grads) by torch.vmap over the batch that batched_by_autograd() tensors hide.

    An autograd.Function applied to such tensors would lose its graph, since autograd records what is
    computed with the tensors inside of them.
    """
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    batched = [g is not None and batched_by_autograd(g) for g in grads]
    inside = [
        torch._remove_batch_dim(g, level, 0, 0) if g is not None and b else g
        for g, b in zip(grads, batched, strict=True)
    ]
    results = torch.vmap(function, tuple(0 if b else None for b in batched))(*inside)
    return tuple(torch._add_batch_dim(r, 0, level) for r in results)


def forward_ad_active() -> bool:
    """torch.autograd.forward_ad is in use."""
    return forward_ad._current_level >= 0


def first_order_transforms() -> bool:
    """The active torch.func transforms are any number of vmap and at most one grad."""
    kind = torch._C._functorch.TransformType
    active = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    return all(k in (kind.Vmap, kind.Grad) for k in active) and active.count(kind.Grad) <= 1


def let_dynamo_trace(cls: type[torch.nn.Module]) -> None:
    """Lets torch.compile trace modules of a class derived from nn.LSTM, nn.GRU or nn.RNN.

    Dynamo refuses every instance of these unless ``torch._dynamo.config.allow_rnn`` is set, since it cannot
    trace torch's own kernels well. Setting the option for the whole program would change how torch's layers
    compile, so it is set only while Dynamo looks at an instance of ``cls``.
    """

    def wrap(builder: ModuleType) -> None:
        wrap_module = builder.VariableBuilder.wrap_module

        def wrap_module_or_ours(self: Any, value: Any) -> Any:
            if not isinstance(value, cls):
                return wrap_module(self, value)
            with torch._dynamo.config.patch(allow_rnn=True):
                return wrap_module(self, value)

        builder.VariableBuilder.wrap_module = wrap_module_or_ours

    after_import("torch._dynamo.variables.builder", wrap)


# The ONNX exporter's flags, once it is imported.
_onnx_flags: ModuleType | None = None


def exporting_to_onnx() -> bool:
    """torch.onnx.export is running.

    Dynamo takes torch.onnx.is_in_onnx_export() for False even then.
    """
    return _onnx_flags is not None and _onnx_flags._is_onnx_exporting


def _keep_onnx_flags(flags: ModuleType) -> None:
    global _onnx_flags
    _onnx_flags = flags


after_import("torch.onnx._internal.exporter._flags", _keep_onnx_flags)


def add_onnx_translation(op: Any, make: Callable[[], Callable[..., Any]]) -> None:
    """Adds make() to the ONNX exporter's translations of operators when it loads them."""

    def register(torchlib: ModuleType) -> None:
        from torch.onnx._internal.exporter._torchlib._torchlib_registry import onnx_impl

        onnx_impl(op, trace_only=True)(make())

    after_import("torch.onnx._internal.exporter._torchlib.ops", register)


def keep_onnx_defaults_out(cls: type[torch.nn.Module], keywords: tuple[str, ...]) -> None:
    """Lets torch.onnx.export(dynamo=False) call modules of ``cls``.

    That exporter passes the defaults of all parameters by position, which keyword-only ones do not take.
    """

    def wrap(exporter: Any) -> None:
        decide_input_format = exporter._decide_input_format

        def decide_input_format_or_ours(model: Any, args: Any) -> Any:
            if not isinstance(model, cls):
                return decide_input_format(model, args)
            given = args[-1] if isinstance(args, tuple | list) and isinstance(args[-1], dict) else {}
            if refused := [name for name in keywords if name in given]:
                raise ValueError(f"torch.onnx.export takes {refused[0]} with dynamo=True only")
            # torch.nn's forward has the other parameters alone.
            return decide_input_format(SimpleNamespace(forward=super(cls, model).forward), args)  # type: ignore[misc]

        exporter._decide_input_format = decide_input_format_or_ours

    after_import("torch.onnx._internal.torchscript_exporter.utils", wrap)


def per_sample(weights: Any) -> bool:
    """The first weight is one of torch.nn.utils._per_sample_grad.call_for_per_sample_grads."""
    return type(weights[0][0]).__name__ == "ExpandedWeight"
