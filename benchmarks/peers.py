"""Other implementations of the same layer on a CPU: ONNX Runtime, OpenVINO, a loop by torch.compile.

Each runs in its best form: ONNX Runtime and OpenVINO pack the weights when they load the model, as
fastrnn's prepacked layer does, and the loop computes the input projection of all steps as one product.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import fastrnn
from benchmarks import layers
from benchmarks.shapes import Case

Call = Callable[[], object]

# torch's gates in ONNX's order: i f g o -> i o f g, and r z n -> z r n.
_ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
_STATES = ("h", "c")


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def available() -> dict[str, Callable[[Case], Call]]:
    """name -> function that builds the call for a case of the suite "peers"."""
    found: dict[str, Callable[[Case], Call]] = {"fastrnn prepacked": partial(prepacked_call, weights=None)}
    if _installed("onnxruntime", "onnx"):
        found["ONNX Runtime"] = onnxruntime_call
    if _installed("openvino", "onnx"):
        found["OpenVINO"] = openvino_call
    found["torch.compile"] = compiled_loop_call
    return found


def stream_available() -> dict[str, Callable[[Case], Call]]:
    """The same for the suite "stream", in which each step's state is given to the next one."""
    found: dict[str, Callable[[Case], Call]] = {"fastrnn": stream_call, "torch.nn": torch_step_call}
    if _installed("onnxruntime", "onnx"):
        found["ONNX Runtime"] = onnxruntime_step_call
    return found


def int8_available(cell: str) -> dict[str, Callable[[Case], Call]]:
    """The same for the suite "int8", in which fastrnn's own call is the one with int8 weights."""
    found: dict[str, Callable[[Case], Call]] = {
        "fastrnn": partial(prepacked_call, weights="int8"),
        "fastrnn float32": partial(prepacked_call, weights=None),
    }
    if fastrnn.build_info()["cpu_target"] in ("avx512_bf16", "avx512_amx", "neon_bf16"):
        found["fastrnn bfloat16"] = partial(prepacked_call, weights="bfloat16")
    # ONNX Runtime quantizes no GRU.
    if cell == "lstm" and _installed("onnxruntime", "onnx"):
        found["ONNX Runtime int8"] = partial(onnxruntime_call, int8=True)
    found["torch.ao int8"] = torch_int8_call
    return found


def prepacked_call(case: Case, weights: str | None) -> Call:
    return _inference(fastrnn.prepack(layers.build(case).eval(), weights), case)


def torch_int8_call(case: Case) -> Call:
    quantize = torch.ao.quantization.quantize_dynamic
    model = nn.Sequential(layers.build(case).eval())
    return _inference(quantize(model, {nn.LSTM, nn.GRU}, dtype=torch.qint8)[0], case)


def _inference(layer: nn.Module, case: Case) -> Call:
    x = layers.inputs(case)[0]

    def run() -> object:
        with torch.inference_mode():
            return layer(x)

    return run


def stream_call(case: Case) -> Call:
    live = fastrnn.stream(layers.build(case).eval())
    x, live.state = layers.inputs(case)

    def step() -> object:
        with torch.inference_mode():
            return live(x)

    return step


def torch_step_call(case: Case) -> Call:
    layer, (x, state) = layers.build(case).eval(), layers.inputs(case)

    def step() -> object:
        nonlocal state
        with torch.inference_mode():
            y, state = layer(x, state)
        return y

    return step


def onnxruntime_call(case: Case, int8: bool = False) -> Call:
    model = onnx_model(layers.build(case), case)
    session = _onnxruntime_session(quantized(model) if int8 else model)
    x = layers.inputs(case)[0].numpy()
    return lambda: session.run(["y"], {"x": x})


def onnxruntime_step_call(case: Case) -> Call:
    session = _onnxruntime_session(onnx_model(layers.build(case), case, state=True))
    x, state = layers.inputs(case)
    states = [s.numpy() for s in (state if isinstance(state, tuple) else (state,)) if s is not None]

    def step() -> object:
        nonlocal states
        y, *states = session.run(None, {"x": x.numpy(), **dict(zip(_STATES, states, strict=False))})
        return y

    return step


def _onnxruntime_session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_call(case: Case) -> Call:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # by default bfloat16 if the processor multiplies it
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(core.read_model(onnx_model(layers.build(case), case)), "CPU", options)
    request = model.create_infer_request()
    x = layers.inputs(case)[0].numpy()
    return lambda: request.infer([x], share_inputs=True)[0]


def onnx_model(layer: nn.Module, case: Case, state: bool = False) -> bytes:
    """The layer as a model with one node: x [T, B, I] -> y [T, 1, B, H].

    state: it takes h and for LSTM c, [1, B, H], and also returns the new ones.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def in_onnx_order(weight: Tensor) -> np.ndarray:
        gates = weight.detach().chunk(len(_ONNX_GATES[case.cell]))
        return torch.cat([gates[i] for i in _ONNX_GATES[case.cell]]).numpy()

    w_ih, w_hh, b_ih, b_hh = (in_onnx_order(p) for p in layer.parameters())
    weights = {"w": w_ih, "r": w_hh, "b": np.concatenate([b_ih, b_hh])}
    reset_after: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}
    states = _STATES[: 2 if case.cell == "lstm" else 1] if state else ()
    # The empty name is that of the lengths.
    node_inputs = ["x", "w", "r", "b", *(["", *states] if states else [])]
    new_states = [f"new_{name}" for name in states]
    node = helper.make_node(
        case.cell.upper(), node_inputs, ["y", *new_states], hidden_size=case.H, **reset_after
    )

    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        case.cell,
        [value("x", case.T, case.B, case.I), *(value(name, 1, case.B, case.H) for name in states)],
        [value("y", case.T, 1, case.B, case.H), *(value(name, 1, case.B, case.H) for name in new_states)],
        [numpy_helper.from_array(weight[None], name) for name, weight in weights.items()],
    )
    # Every recent ONNX Runtime reads this opset and format.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def quantized(model: bytes) -> bytes:
    """The model with its LSTM in int8, a scale for each row of the weights, by ONNX Runtime's own tool."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder:
        given, made = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        given.write_bytes(model)
        quantize_dynamic(given, made, weight_type=QuantType.QInt8, per_channel=True)
        return made.read_bytes()


def _lstm_step(
    x_gates: Tensor, state: tuple[Tensor, Tensor], w_hh: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """x_gates [B, 4H]; state h and c [B, H]."""
    h, c = state
    i, f, g, o = (x_gates + functional.linear(h, w_hh, b_hh)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(x_gates: Tensor, state: tuple[Tensor], w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor]:
    """x_gates [B, 3H]; state h [B, H]."""
    (h,) = state
    x_r, x_z, x_n = x_gates.chunk(3, 1)
    h_r, h_z, h_n = functional.linear(h, w_hh, b_hh).chunk(3, 1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (n + z * (h - n),)


# dynamic: one compilation serves all sizes, except batch 1, which always compiles separately.
_COMPILED_STEPS: dict[str, Callable[..., Any]] = {
    "lstm": torch.compile(_lstm_step, dynamic=True),
    "gru": torch.compile(_gru_step, dynamic=True),
}


def compiled_loop_call(case: Case) -> Call:
    w_ih, w_hh, b_ih, b_hh = (p.detach() for p in layers.build(case).parameters())
    x = layers.inputs(case)[0]
    step = _COMPILED_STEPS[case.cell]
    slots = 2 if case.cell == "lstm" else 1

    def run() -> Tensor:
        with torch.no_grad():
            state = tuple(torch.zeros(case.B, case.H) for _ in range(slots))
            y = []
            for x_gates in functional.linear(x, w_ih, b_ih).unbind():
                state = step(x_gates, state, w_hh, b_hh)
                y.append(state[0])
            return torch.stack(y)

    return run
