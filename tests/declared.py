"""Cells declared for tests: classic ones, other papers' gates, and a strategy that writes random ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import strategies as st

from fastrnn.cells import Cell, cell


@cell(states="h c")
def lstm(i, f, g, o, h, c):
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell
def gru(r, z, n_x, n_h, h):
    r, z = torch.sigmoid(r), torch.sigmoid(z)
    n = torch.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h


@cell
def rnn_tanh(a, h):
    return torch.tanh(a)


@cell
def rnn_relu(a, h):
    return torch.relu(a)


@cell(states="h c", weights="p_i p_f p_o")
def peephole(i, f, g, o, h, c, p_i, p_f, p_o):
    i, f = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


@cell(states="h c")
def coupled(i, g, o, h, c):
    c = c + i.sigmoid() * (g.tanh() - c)
    return o.sigmoid() * c.tanh(), c


@cell
def ligru(a, z, h):
    z = torch.sigmoid(z)
    return z * h + (1 - z) * torch.relu(a)


@cell(states="h c", inputs="z_h z_c")
def zoneout(i, f, g, o, h, c, z_h, z_c):
    new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    new_h = torch.sigmoid(o) * torch.tanh(new_c)
    return new_h + z_h * (h - new_h), new_c + z_c * (c - new_c)


@cell(states="h c n m")
def slstm(z, i, f, o, h, c, n, m):
    f = F.logsigmoid(f) + m
    m = torch.maximum(f, i)
    i, f = torch.exp(i - m), torch.exp(f - m)
    c = f * c + i * torch.tanh(z)
    n = f * n + i
    return torch.sigmoid(o) * c / n, c, n, m


@cell
def minimal_gated(f, n_x, n_h, h):
    f = torch.sigmoid(f)
    return (1 - f) * h + f * torch.tanh(n_x + f * n_h)


@cell
def split_first(n_x, n_h, r, z, h):
    """Gates in two parts before whole ones."""
    n = torch.tanh(n_x + torch.sigmoid(r) * n_h)
    return torch.lerp(n, h, torch.sigmoid(z))


@cell
def all_split(a_x, a_h, b_x, b_h, h):
    return torch.tanh(a_x * torch.sigmoid(a_h)) + 0.5 * b_x / (1 + b_h * b_h) + 0.1 * h


@cell
def multiplicative_integration(a_x, a_h, h):
    return torch.tanh(a_x * a_h + 0.5 * a_x + 0.5 * a_h)


@cell(states="h c", weights="alpha beta")
def multiplicative_lstm(i_x, i_h, f_x, f_h, g_x, g_h, o_x, o_h, h, c, alpha, beta):
    i, f, o = (torch.sigmoid(alpha * x * y + x + y) for x, y in ((i_x, i_h), (f_x, f_h), (o_x, o_h)))
    c = f * c + i * torch.tanh(beta * g_x * g_h + g_x + g_h)
    return o * torch.tanh(c), c


@cell(states="h c")
def conditional(a, b_x, b_h, h, c):
    m = torch.where((a > c) & (b_x < 0.3), torch.exp(-a), torch.sqrt(1 + b_h * b_h))
    c = torch.clamp(0.5 * c + m * torch.tanh(b_x), -1.5, 2.0)
    return F.softplus(c) / (1 + h * h) + F.leaky_relu(b_h, 0.1), c


@cell(states="h a b c d")
def five_states(x, y, h, a, b, c, d):
    a = 0.9 * a + torch.tanh(x)
    b = 0.5 * b + a
    c = torch.where(b > 0, c * 0.5 + b, c - 0.1 * a)
    d = d + torch.sigmoid(y) * (c - d)
    return torch.tanh(d + 0.1 * h), a, b, c, d


@cell(states="h c")
def seven_gates(i, f, g, o, p, q, r, h, c):
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g) * torch.sigmoid(p)
    h = torch.sigmoid(o) * torch.tanh(c) + 0.1 * torch.tanh(q) * h
    return h + 0.1 * F.hardtanh(r), c


@cell(states="h c", weights="decay threshold")
def spiking(a, h, c, decay, threshold):
    """Leaky integrate and fire, with a straight-through gradient."""
    c = torch.sigmoid(decay) * c * (1 - h) + a
    soft = torch.sigmoid(4 * (c - threshold))
    return soft + ((c > threshold).to(c.dtype) - soft).detach(), c


@cell(inputs="gamma", weights="tau")
def decaying(r, z, n_x, n_h, h, gamma, tau):
    h = torch.exp(-torch.relu(tau * gamma)) * h
    r, z = torch.sigmoid(r), torch.sigmoid(z)
    return (1 - z) * torch.tanh(n_x + r * n_h) + z * h


@cell(states="h")
def constant_state(a, h):
    """New numbers that no gate reaches."""
    return torch.zeros_like(h) + torch.tensor(0.25) * torch.ones(h.shape)


@cell(states="h c")
def masks(a, b, h, c):
    up, down = a > 0.1, ~(b >= 0)
    c = torch.where(up ^ down, c, up.to(c.dtype) - 0.5 * down * b)
    return (up & ~down) * a + torch.where(up | (c == 0), h, 0.5) * (b != 0), c


@cell(states="h c")
def mask_arithmetic(a, b, h, c):
    """Sums, products and predicates of masks, and operators that torch makes of them."""
    up, down = a > 0.1, b > c
    c = torch.where((up * down + torch.isclose(a, b, atol=0.2)).minimum(torch.isfinite(b)), c, 0.5 * a)
    return torch.nan_to_num(a) * (up + down) + torch.sgn(b) * (up * ~down) + 0.1 * h, c


@cell
def made_for_the_arguments(a, b, h):
    """Tensors made with the arguments' shape and dtype."""
    batch, units = h.shape
    return torch.tanh(h.new_tensor(0.3) * a) + torch.ones(batch, units, dtype=h.dtype) * b.view(-1, units)


class Surrogate(torch.autograd.Function):
    """A step with the gradient of a smooth function."""

    @staticmethod
    def forward(x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + x.abs()) ** 2


@cell(states="h c")
def surrogate(a, h, c):
    c = 0.9 * c * (1 - h) + a
    return Surrogate.apply(c - 0.5), c


@cell(states="h c")
def activations(a, b, h, c):
    """Activations of torch.nn.functional."""
    x = F.gelu(a) + F.elu(b) + F.silu(a) + F.mish(b) + F.selu(a) + F.celu(b) + F.gelu(b, approximate="tanh")
    y = F.softplus(a) + F.softsign(b) + F.logsigmoid(a) + F.hardtanh(b) + F.relu6(a)
    c = 0.1 * (x + y) + F.hardswish(c) + F.leaky_relu(b, 0.2) + F.softshrink(a, 0.3) + F.hardshrink(b, 0.2)
    return torch.tanh(c) + 0.1 * F.threshold(h, 0.1, -0.2) + F.tanhshrink(a), c


@cell(states="h c")
def functions(a, b, h, c):
    """torch's element-wise functions, each where it is defined and smooth."""
    p, q = 1 + a * a, torch.sigmoid(b)
    x = torch.log(p) + torch.log1p(q) + torch.expm1(q) + torch.log2(p) + torch.log10(p) + torch.exp2(q)
    x = (
        x
        + torch.sqrt(p)
        + torch.rsqrt(p)
        + torch.square(b)
        + p**1.5
        + p**-2
        + 2.0**q
        + p**q
        + torch.reciprocal(p)
    )
    y = (
        torch.sin(a)
        + torch.cos(b)
        + torch.tan(q)
        + torch.asin(q)
        + torch.acos(q)
        + torch.atan(a)
        + torch.atan2(p, b)
    )
    y = y + torch.sinh(q) + torch.cosh(q) + torch.asinh(a) + torch.acosh(1 + p) + torch.atanh(0.9 * q)
    z = torch.erf(a) + torch.erfc(b) + torch.hypot(p, q) + torch.logaddexp(a, b) + torch.lerp(a, b, q)
    z = (
        z
        + torch.addcmul(a, b, q)
        + torch.addcdiv(a, b, p)
        + torch.logit(q)
        + torch.sinc(p)
        + torch.xlogy(q, p)
    )
    z = (
        z
        + torch.abs(a)
        + torch.maximum(a, b)
        + torch.minimum(a, c)
        + torch.clamp(b, min=-0.3)
        + torch.floor(4 * a)
    )
    z = (
        z
        + torch.round(3 * b)
        + torch.frac(2.3 * a)
        + torch.sign(b)
        + torch.remainder(a, 0.7)
        + torch.fmod(b, 0.6)
    )
    return 0.02 * (x + y + z) + 0.1 * h, 0.5 * c + q


CELLS: dict[str, Cell] = {name: value for name, value in globals().items() if isinstance(value, Cell)}


FORMS = """torch.tanh({0}) torch.sigmoid({0}) torch.relu({0}) torch.sin({0}) F.softplus({0})
torch.exp(-{0}**2) ({0}+{1}) ({0}-0.5*{1}) (0.3*{0}*{1}) ({0}/(1+{1}**2)) torch.maximum({0},{1})
torch.lerp({0},{1},0.25) torch.where({0}>{1},{2},-{0}) torch.where(({0}<0.2)|({1}>={2}),{1},{2})
(torch.clamp({0},-0.5,1.5)+{2})"""


def _expressions(names: list[str]) -> st.SearchStrategy[str]:
    """Python expressions of these names that stay finite."""

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.builds(str.format, st.sampled_from(FORMS.split()), inner, inner, inner)

    return st.recursive(st.sampled_from(names), larger, max_leaves=8)


@st.composite
def random_cells(draw: st.DrawFn) -> Cell:
    """A cell that nobody wrote: some gates, some of them in two parts, states, weights and inputs."""
    gates = [f"g{i}" for i in range(draw(st.integers(1, 7)))]
    split = draw(st.sets(st.sampled_from(gates), max_size=3))
    parts = [p for g in gates for p in ((f"{g}_x", f"{g}_h") if g in split else (g,))]
    states = [f"s{i}" for i in range(draw(st.integers(1, 5)))]
    weights = [f"w{i}" for i in range(draw(st.integers(0, 3)))]
    inputs = [f"e{i}" for i in range(draw(st.integers(0, 2)))]
    parameters = draw(st.permutations([*parts, *states, *weights, *inputs]))
    # Gates' order is the signature's; the states' too.
    lines = [f"def step({', '.join(parameters)}):"]
    known = list(parameters)
    for i in range(draw(st.integers(0, 3))):
        lines.append(f"    t{i} = {draw(_expressions(known))}")
        known.append(f"t{i}")
    for state in states:
        lines.append(f"    new_{state} = torch.tanh(0.5 * {state} + {draw(_expressions(known))})")
    lines.append(f"    return {', '.join(f'new_{s}' for s in states)}")
    scope = {"torch": torch, "F": F}
    exec("\n".join(lines), scope)
    step = scope["step"]
    step.__doc__ = "\n".join(lines)  # what hypothesis shows of a failure
    return cell(states=states, weights=weights, inputs=inputs)(step)
