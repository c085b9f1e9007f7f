"""Every output and every gradient against torch.nn in float64, over random configurations.

The rule: our error is at most twice torch's own error in the same dtype, plus a few ulp of the tensor's
largest value. FASTRNN_TEST_CONFIGS=1000 draws a thousand configurations in place of 150.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import support
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

# One below and one above tile sizes, primes, and 1.
FEATURES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130)
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 33)
STEPS = (1, 2, 3, 7, 16, 31)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Config:
    cell: str
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    P: int  # proj_size in 64ths of H
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    form: str  # of the batch
    layout: str  # of x in memory
    state: bool  # an initial state is given
    wanted: str  # which results have a gradient
    memory: str
    threads: int
    seed: int

    def flags(self) -> dict[str, Any]:
        flags: dict[str, Any] = {
            "num_layers": self.num_layers,
            "bias": self.bias or self.kinked(),
            "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
        }
        if self.cell == "lstm" and self.P and self.H > 1:
            flags["proj_size"] = max(1, self.H * self.P // 64)
        return flags

    def kinked(self) -> bool:
        """The derivative jumps, so that a rounding error may become an error of any size."""
        return self.cell == "rnn_relu" and self.dtype != torch.float64

    def sum_terms(self) -> int:
        """About as many numbers as are added up on the way to one result."""
        return self.num_layers * self.T * (self.I + 4 * self.H) + self.T * self.B


configs = st.builds(
    Config,
    cell=st.sampled_from(list(support.LAYERS)),
    dtype=st.sampled_from(DTYPES),
    T=st.sampled_from(STEPS),
    B=st.sampled_from(BATCHES),
    I=st.sampled_from(FEATURES),
    H=st.sampled_from(FEATURES),
    P=st.sampled_from((0, 0, 1, 31, 63)),
    num_layers=st.sampled_from((1, 2)),
    bias=st.booleans(),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    form=st.sampled_from(
        ("padded", "unbatched", "sorted", "unsorted", "lengths", "reset", "lengths_reset")
    ),
    layout=st.sampled_from(("dense", "dense", "strided", "rows", "expanded")),
    state=st.booleans(),
    wanted=st.sampled_from(("all", "all", "output", "state")),
    memory=st.sampled_from(("full", "lean")),
    threads=st.sampled_from((1, 2)),
    seed=st.integers(0, 99),
)


@dataclass
class Case:
    """What a configuration's modules are called with; tensors in the configuration's dtype."""

    config: Config
    x: Tensor  # a leaf, of which input() is a view
    states: list[Tensor]
    lengths: list[int]
    reset: Tensor  # [T, B]

    def to(self, dtype: torch.dtype) -> Case:
        x, *states = support.leaves(*(t.to(dtype) for t in (self.x, *self.states)))
        return Case(self.config, x, states, self.lengths, self.reset)

    def input(self) -> Tensor:
        """x [T, B, I], or [T, I] unbatched, laid out as the configuration says."""
        c, x = self.config, self.x
        if c.layout == "strided":
            x = x[..., ::2]
        elif c.layout == "rows":
            x = x[:, ::2]
        elif c.layout == "expanded":
            x = x.expand(c.T, c.B, c.I)
        return x[:, 0] if c.form == "unbatched" else x

    def hx(self) -> Any:
        states = [s[:, 0] for s in self.states] if self.config.form == "unbatched" else self.states
        return None if not states else tuple(states) if len(states) == 2 else states[0]


def make_case(c: Config, layer: Any, device: str) -> Case:
    leading = {"strided": (c.T, c.B, 2 * c.I), "rows": (c.T, 2 * c.B, c.I), "expanded": (c.T, 1, c.I)}
    x = torch.randn(leading.get(c.layout, (c.T, c.B, c.I)))
    states = support.initial_state(layer, c.B) if c.state else ()
    states = [states] if isinstance(states, Tensor) else list(states)
    if c.kinked():
        states = [s.abs() for s in states]
    lengths = torch.randint(1, c.T + 1, (c.B,)).tolist()
    if c.form == "sorted":
        lengths.sort(reverse=True)
    reset = torch.rand(c.T, c.B) < 0.3
    x, *states = (t.to(device=device, dtype=c.dtype) for t in (x, *states))
    return Case(c, x, states, lengths, reset.to(device))


def keep_from_the_kink(layer: torch.nn.Module) -> None:
    """Biases of +-3 and small weights, so that no pre-activation comes near zero."""
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.startswith("bias_ih"):
                p.copy_(torch.randint(2, p.shape, device=p.device) * 6 - 3)
            elif name.startswith("bias_hh"):
                p.zero_()
            else:
                p.mul_(0.25 * (layer.hidden_size / p.shape[1]) ** 0.5)


def call_torch(layer: Any, case: Case) -> list[Tensor]:
    c, x = case.config, case.input()
    if c.form in ("lengths", "reset", "lengths_reset"):
        lengths = [c.T] * c.B if c.form == "reset" else case.lengths
        reset = torch.zeros_like(case.reset) if c.form == "lengths" else case.reset
        return cut(layer, x, case.states, lengths, reset)
    return support.tensors_of(layer(in_layout(case, x), case.hx()))


def call_ours(layer: Any, case: Case) -> list[Tensor]:
    c, x = case.config, case.input()
    if c.form not in ("lengths", "reset", "lengths_reset"):
        return support.tensors_of(layer(in_layout(case, x), case.hx()))
    masks = {}
    if "lengths" in c.form:
        masks["lengths"] = torch.tensor(case.lengths, device=x.device)
    if "reset" in c.form:
        masks["reset"] = case.reset.t() if c.batch_first else case.reset
    return support.tensors_of(layer(in_layout(case, x), case.hx(), **masks))


def in_layout(case: Case, x: Tensor) -> Any:
    """x [T, B, I] as the layer takes it."""
    c = case.config
    if c.form in ("sorted", "unsorted"):
        packed = x.transpose(0, 1) if c.batch_first else x
        return pack_padded_sequence(
            packed, torch.tensor(case.lengths), batch_first=c.batch_first, enforce_sorted=c.form == "sorted"
        )
    return x.transpose(0, 1) if c.batch_first and c.form != "unbatched" else x


def cut(layer: Any, x: Tensor, states: list[Tensor], lengths: list[int], reset: Tensor) -> list[Tensor]:
    """What lengths and reset mean, by torch.nn: each stretch between resets is a sequence of its own.

    x [T, B, I] and reset [T, B] whatever the layer's batch_first is.
    """
    T, B = x.shape[:2]
    stretches: list[tuple[int, int, int]] = []
    for b in range(B):
        starts = [0, *(t for t in range(1, lengths[b]) if reset[t, b])]
        ends = [*starts[1:], lengths[b]]
        stretches += [(b, s, e) for s, e in zip(starts, ends, strict=True)]
    rows = torch.tensor([b for b, _, _ in stretches], device=x.device)
    begins = torch.tensor([s == 0 and not bool(reset[0, b]) for b, s, _ in stretches], device=x.device)
    finishes = torch.tensor([e == lengths[b] for b, _, e in stretches], device=x.device)
    # The forward direction meets the initial state at a row's first stretch, the reverse one at its last.
    directions = 2 if layer.bidirectional else 1
    takes = torch.stack([begins, finishes][:directions]).repeat(layer.num_layers, 1).unsqueeze(-1)
    hx = [s[:, rows] * takes for s in states]
    packed = pack_sequence([x[s:e, b] for b, s, e in stretches], enforce_sorted=False)
    result, state = layer(packed, None if not hx else tuple(hx) if len(hx) == 2 else hx[0])
    padded, _ = pad_packed_sequence(result)
    columns = []
    for b in range(B):
        parts = [padded[: e - s, i] for i, (row, s, e) in enumerate(stretches) if row == b]
        columns.append(torch.cat([*parts, padded.new_zeros(T - lengths[b], padded.shape[-1])]))
    y = torch.stack(columns, 0 if layer.batch_first else 1)
    first_of = [next(i for i, s in enumerate(stretches) if s[0] == b) for b in range(B)]
    last_of = [max(i for i, s in enumerate(stretches) if s[0] == b) for b in range(B)]
    index = torch.tensor([last_of, first_of][:directions], device=x.device).repeat(layer.num_layers, 1)
    layers = torch.arange(index.shape[0], device=x.device).unsqueeze(1)
    return [y, *(s[layers, index] for s in support.tensors_of(state))]


def results(call: Any, layer: Any, case: Case, weights: list[Tensor]) -> list[Tensor]:
    """Outputs, then the gradients of their weighted sum by x, states and parameters."""
    outputs = call(layer, case)
    graded = {"all": outputs, "output": outputs[:1], "state": outputs[1:]}[case.config.wanted]
    inputs = [case.x, *case.states, *layer.parameters()]
    gradients = torch.autograd.grad(
        graded,
        inputs,
        [w.reshape(-1)[: o.numel()].view(o.shape).to(o) for o, w in zip(graded, weights, strict=False)],
        materialize_grads=True,
    )
    return [*outputs, *gradients]


def measure(c: Config, device: str, draw: int) -> list[support.Error]:
    torch.manual_seed(c.seed + 1000 * draw)
    reference = support.theirs(c.cell, c.I, c.H, **c.flags()).to(device)
    if c.kinked():
        keep_from_the_kink(reference)
    reference = reference.to(c.dtype)
    mine = support.ours(c.cell, c.I, c.H, memory=c.memory, **c.flags()).to(device, c.dtype)
    mine.load_state_dict(reference.state_dict())
    exact = support.in_float64(reference)
    case = make_case(c, reference, device)
    weights = [torch.randn(2 * c.T * c.B * c.H * 2, device=device).to(c.dtype) for _ in range(3)]

    names = ["output", "h_n", "c_n"][: 3 if c.cell == "lstm" else 2]
    names += [f"gradient of {n}" for n in ["x", "h_0", "c_0"][: 1 + len(case.states)]]
    names += [f"gradient of {n}" for n, _ in reference.named_parameters()]
    expected = results(call_torch, exact, case.to(torch.float64), weights)
    torchs = results(call_torch, reference, case.to(c.dtype), weights)
    with support.threads(c.threads):
        measured = results(call_ours, mine, case.to(c.dtype), weights)
    ulps = 8 + c.sum_terms() ** 0.5 if c.dtype == torch.float64 else 4
    return support.errors(names, expected, torchs, measured, c.dtype, ulps)


def check(c: Config, device: str) -> None:
    if c.form == "unbatched":
        c = replace(c, B=1)
    support.check_rule(str(c), c.dtype, lambda draw: measure(c, device, draw))


@given(config=configs)
def test_random_configurations(device: str, config: Config) -> None:
    check(config, device)


# Sizes at which the drivers do what they do not at the sizes above: more rows than a chunk of the input's
# product, several chunks, threads that share units or sequences, panels walked in parts.
LARGE = {
    "chunks": {"T": 40, "B": 65, "I": 70, "H": 96},
    "by_units": {"T": 6, "B": 33, "I": 300, "H": 520},
    "long": {"T": 1000, "B": 1, "I": 5, "H": 33},
    "wide_batch": {"T": 3, "B": 500, "I": 20, "H": 40},
}


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_large(cell: str, dtype: torch.dtype, size: str, device: str) -> None:
    plain = Config(
        cell, dtype, 1, 1, 1, 1, 0, 1, True, False, False, "unsorted", "dense", True, "all", "full", 2, 0
    )
    check(replace(plain, **LARGE[size]), device)


def layer_in_longdouble(
    cell: str, x: np.ndarray, state: list[np.ndarray], weights: list[np.ndarray]
) -> list:
    """Output and last states of one layer in numpy's longest floats: x [T, B, I], states [B, H]."""
    w_ih, w_hh, b_ih, b_hh = weights

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    h, c = state[0], state[-1]
    y = []
    for x_t in x:
        x_part, h_part = x_t @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        if cell == "lstm":
            i, f, g, o = np.split(x_part + h_part, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif cell == "gru":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(x_part, 3, -1), np.split(h_part, 3, -1)
            n = np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
            z = sigmoid(x_z + h_z)
            h = (1 - z) * n + z * h
        else:
            h = np.tanh(x_part + h_part) if cell == "rnn_tanh" else np.maximum(x_part + h_part, 0)
        y.append(h)
    return [np.stack(y), h, c] if cell == "lstm" else [np.stack(y), h]


@pytest.mark.parametrize("size", [(7, 5, 13, 33), (20, 1, 3, 130), (3, 33, 65, 16)], ids=str)
@pytest.mark.parametrize("cell", support.LAYERS)
def test_float64_against_longer_floats(cell: str, size: tuple[int, int, int, int], device: str) -> None:
    """In float64, where the comparison above cannot see torch's own error."""
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("numpy has no longer floats on this processor")
    T, B, I, H = size

    def draw(seed: int) -> list[support.Error]:
        torch.manual_seed(seed)
        torchs, mine = (m.to(device).double() for m in support.twins(cell, I, H))
        x = torch.randn(T, B, I, dtype=torch.float64, device=device)
        hx = support.initial_state(mine, B, dtype=torch.float64, device=device)
        with torch.no_grad():
            results = [support.tensors_of(m(x, hx)) for m in (torchs, mine)]
        as_long = [t.detach().cpu().numpy().astype(np.longdouble) for t in (x, *support.tensors_of(hx))]
        weights = [p.detach().cpu().numpy().astype(np.longdouble) for p in mine.parameters()]
        exact = layer_in_longdouble(cell, as_long[0], [s[0] for s in as_long[1:]], weights)
        found = []
        for name, e, r, m in zip(("output", "h_n", "c_n"), exact, *results, strict=False):
            scale = np.abs(e).max()
            off = [float(np.abs(t.cpu().numpy().reshape(e.shape) - e).max() / scale) for t in (m, r)]
            found.append(support.Error(name, *off, few_ulps=4 * np.finfo(np.float64).eps))
        return found

    support.check_rule(f"{cell} {size} beside longdouble", torch.float64, draw)
