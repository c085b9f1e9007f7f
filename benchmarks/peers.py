"""Other implementations of the same layer on a CPU: ONNX Runtime, and a torch.compile'd loop over a cell.

Both run in their best form: ONNX Runtime packs the weights when it loads the model, and the loop computes
the input projection of all steps as one product.
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


def available() -> dict[str, Callable[[Case], Call]]:
    """name -> function that builds the call for a case of the suite "peers"."""
    found: dict[str, Callable[[Case], Call]] = {}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        found["ONNX Runtime"] = onnxruntime_call
    found["torch.compile"] = compiled_loop_call
    return found


def int8_available(cell: str) -> dict[str, Callable[[Case], Call]]:
    """The same for the suite "int8", in which fastrnn's own call is the one with int8 weights."""
    found: dict[str, Callable[[Case], Call]] = {
        "fastrnn": partial(prepacked_call, weights="int8"),
        "fastrnn float32": partial(prepacked_call, weights=None),
    }
    if fastrnn.build_info()["cpu_target"] in ("avx512_bf16", "avx512_amx"):
        found["fastrnn bfloat16"] = partial(prepacked_call, weights="bfloat16")
    # ONNX Runtime quantizes no GRU.
    if cell == "lstm" and importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
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


def onnxruntime_call(case: Case, int8: bool = False) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    model = onnx_model(layers.build(case), case)
    session = onnxruntime.InferenceSession(
        quantized(model) if int8 else model, options, providers=["CPUExecutionProvider"]
    )
    x = layers.inputs(case)[0].numpy()
    return lambda: session.run(["y"], {"x": x})


def onnx_model(layer: nn.Module, case: Case) -> bytes:
    """The layer as a model with one node: x [T, B, I] -> y [T, 1, B, H]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def in_onnx_order(weight: Tensor) -> np.ndarray:
        gates = weight.detach().chunk(len(_ONNX_GATES[case.cell]))
        return torch.cat([gates[i] for i in _ONNX_GATES[case.cell]]).numpy()

    w_ih, w_hh, b_ih, b_hh = (in_onnx_order(p) for p in layer.parameters())
    weights = {"w": w_ih, "r": w_hh, "b": np.concatenate([b_ih, b_hh])}
    reset_after: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}
    node = helper.make_node(
        case.cell.upper(), ["x", "w", "r", "b"], ["y"], hidden_size=case.H, **reset_after
    )
    graph = helper.make_graph(
        [node],
        case.cell,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.T, case.B, case.I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.T, 1, case.B, case.H])],
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
