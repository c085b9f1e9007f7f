"""The ops themselves: their schema and fake implementations, their checks, and the registry of cells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from torch import Tensor

import fastrnn
from fastrnn import ops, reference
from fastrnn.nn.base import CELL_OF_MODE, Recurrent
from fastrnn.nn.variants import GENERATED
from fastrnn.sequence import Sequence

ROOT = Path(__file__).resolve().parent.parent
T, B, I, H, P = 4, 3, 5, 6, 2


def arguments(cell: str, device: str, dtype: torch.dtype = torch.float32, **changed: Any) -> dict[str, Any]:
    """Arguments of the forward op, well-formed but for what is changed."""
    gates = ops.CELLS[cell]["gates"]
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    return {
        "cell": cell,
        "x": torch.randn(T, B, I, **options),
        "h0": torch.randn(B, H, **options),
        "c0": torch.randn(B, H, **options) if ops.CELLS[cell]["has_c"] else None,
        "w_ih": torch.randn(gates * H, I, **options),
        "w_hh": torch.randn(gates * H, H, **options),
        "b_ih": torch.randn(gates * H, **options),
        "b_hh": torch.randn(gates * H, **options),
        "w_hr": None,
        "batch_sizes": None,
        "lengths": None,
        "reset": None,
        "reverse": False,
        "keep": ops.KEEP_SLOTS,
        **changed,
    }


def variants(cell: str, device: str) -> dict[str, dict[str, Any]]:
    """Forms of the forward op's arguments."""
    lengths = torch.tensor([2, 4, 1], device=device)
    reset = torch.rand(T, B, device=device) < 0.5
    packed = {"x": torch.randn(7, I, device=device), "batch_sizes": torch.tensor([3, 2, 1, 1])}
    forms: dict[str, dict[str, Any]] = {
        "plain": {},
        "reverse": {"reverse": True},
        "no_bias": {"b_ih": None, "b_hh": None},
        "masks": {"lengths": lengths, "reset": reset, "reverse": True},
        "packed": packed,
        "one_step": {"x": torch.randn(B, I, device=device)},
        "keeps_nothing": {"keep": ops.KEEP_NOTHING},
        "keeps_c": {"keep": ops.KEEP_C},
        "strided": {"x": torch.randn(B, T, 2 * I, device=device)[..., ::2].transpose(0, 1)},
        "empty_batch": {
            "x": torch.randn(T, 0, I, device=device),
            "h0": torch.randn(0, H, device=device),
            "c0": torch.randn(0, H, device=device) if ops.CELLS[cell]["has_c"] else None,
        },
    }
    if cell == "lstm":
        forms["projected"] = {
            "h0": torch.randn(B, P, device=device),
            "w_hh": torch.randn(4 * H, P, device=device),
            "w_hr": torch.randn(P, H, device=device),
        }
    return {name: arguments(cell, device, **changed) for name, changed in forms.items()}


def by_reference(given: dict[str, Any]) -> tuple[Tensor | None, ...]:
    """The reference for the forward op's arguments."""
    cell, *rest = (v for k, v in given.items() if k != "keep")
    return reference.layer(cell, *rest[:8], Sequence(*rest[8:]))


def backward_arguments(given: dict[str, Any]) -> list[Any]:
    """Arguments of the backward op for a forward call's, with a gradient of every result."""
    y, h_n, c_n, c, slots = ops.forward(*given.values())
    has_c = ops.CELLS[given["cell"]]["has_c"]
    grads = [torch.randn_like(y), torch.randn_like(h_n)]
    grads += [torch.randn_like(c_n), torch.randn_like(c)] if has_c else [None, None]
    tensors = list(given.values())[1:-1]
    return [given["cell"], *grads, *tensors, y, c, slots, [True, True]]


FORMS = [
    (c, f)
    for c in ops.CELLS
    for f in (*variants("gru", "cpu"), "projected")
    if f != "projected" or c == "lstm"
]


@pytest.mark.parametrize(("cell", "form"), FORMS)
def test_opcheck(cell: str, form: str, device: str) -> None:
    given = variants(cell, device)[form]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.fastrnn.forward.default, tuple(given.values()), test_utils=checks)
    if form == "keeps_nothing" and ops.CELLS[cell]["has_c"]:
        return
    torch.library.opcheck(
        torch.ops.fastrnn.backward.default, tuple(backward_arguments(given)), test_utils=checks
    )


@pytest.mark.parametrize(("cell", "form"), FORMS)
def test_equals_the_reference(cell: str, form: str, device: str) -> None:
    given = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in variants(cell, device)[form].items()
    }
    keep = given.pop("keep")
    fused = ops.forward(*given.values(), keep)
    plain = by_reference(given)
    for i, (a, b) in enumerate(zip(fused, plain, strict=False)):
        if b is None or (i == 3 and keep < ops.KEEP_C):
            assert a.numel() == 0
        else:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("cell", "form"), FORMS)
def test_backward_equals_the_reference(cell: str, form: str, device: str) -> None:
    given = {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in variants(cell, device)[form].items()
    }
    if given["keep"] == ops.KEEP_NOTHING and ops.CELLS[cell]["has_c"]:
        pytest.skip("backward needs c of every step")
    arguments_of_backward = backward_arguments(given)
    grads = [g for g in arguments_of_backward[1:5] if g is not None]
    given.pop("keep")
    wanted = [k for k, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()]
    given.update({k: given[k].requires_grad_() for k in wanted})
    outputs = [t for t in by_reference(given) if t is not None]
    expected = torch.autograd.grad(outputs, [given[k] for k in wanted], grads)
    fused = [g for g in ops.backward(*arguments_of_backward) if g.dim() > 1 or g.numel()]
    torch.testing.assert_close(fused, list(expected))


@pytest.mark.parametrize("cell", ops.CELLS)
def test_lengths_of_zero_and_beyond_the_end(cell: str, device: str) -> None:
    """On a GPU, where lengths are not waited for, one beyond the end is the end; a CPU refuses it."""
    if device == "cpu":
        for length in (-1, T + 3):
            given = arguments(cell, device)
            given["lengths"] = torch.tensor([0, length, 2])
            with pytest.raises(ValueError, match=rf"from 0 to {T}, the .* got {length} in row 1"):
                ops.forward(*given.values())
    for reverse in (False, True):
        given = arguments(cell, device, torch.float64, reverse=reverse)
        given["lengths"] = torch.tensor([0, T if device == "cpu" else T + 3, 2], device=device)
        given.pop("keep")
        fused, plain = ops.forward(*given.values(), 2), by_reference(given)
        torch.testing.assert_close(fused[:2], plain[:2])
        assert torch.equal(fused[1][0], given["h0"][0])
        assert not fused[0][:, 0].any()


@pytest.mark.parametrize("cell", ops.CELLS)
def test_backward_gives_what_is_asked_for(cell: str, device: str) -> None:
    every = backward_arguments(arguments(cell, device))
    whole = ops.backward(*every)
    for needs in ([False, True], [True, False], [False, False]):
        part = ops.backward(*every[:-1], needs)
        asked = [needs[0], True, True, *[needs[1]] * 6, needs[0]]
        for a, b, wanted in zip(part, whole, asked, strict=True):
            assert a.numel() == (b.numel() if wanted else 0)
            if wanted:
                torch.testing.assert_close(a, b)


# What is changed of well-formed arguments of an LSTM layer, and a piece of the error.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "cell": ({"cell": "nope"}, "nope"),
    "x_dim": ({"x": torch.zeros(I)}, "dimensions"),
    "x_features": ({"x": torch.zeros(T, B, I + 1)}, "w_ih must have the shape"),
    "no_steps": ({"x": torch.zeros(0, B, I)}, "sequence length to be larger than 0"),
    "h0": ({"h0": torch.zeros(B + 1, H)}, "h0 must have the shape"),
    "c0": ({"c0": torch.zeros(B, H + 1)}, "c0 must have the shape"),
    "no_c0": ({"c0": None}, "needs c0"),
    "w_ih_rows": ({"w_ih": torch.zeros(4 * H + 1, I)}, "w_ih must have the shape"),
    "w_ih_dim": ({"w_ih": torch.zeros(4 * H)}, "w_ih must have the shape"),
    "w_hh": ({"w_hh": torch.zeros(4 * H, H + 1)}, "w_hh must have the shape"),
    "b_ih": ({"b_ih": torch.zeros(4 * H + 1)}, "b_ih must have the shape"),
    "one_bias": ({"b_hh": None}, "come together"),
    "w_hr": ({"w_hr": torch.zeros(P, H)}, "w_hh must have the shape"),
    "w_hr_dim": ({"w_hr": torch.zeros(P)}, "w_hr must have 2 dimensions"),
    "w_hr_0d": ({"w_hr": torch.zeros(())}, "w_hr must have 2 dimensions"),
    "h0_dtype": ({"h0": torch.zeros(B, H, dtype=torch.float64)}, "h0 must be float32"),
    "x_dtype": ({"x": torch.zeros(T, B, I, dtype=torch.float64)}, "must be float64"),
    "lengths_dtype": ({"lengths": torch.zeros(B, dtype=torch.int32)}, "lengths must be int64"),
    "lengths_shape": ({"lengths": torch.zeros(B + 1, dtype=torch.int64)}, "lengths must be int64"),
    "reset_dtype": ({"reset": torch.zeros(T, B)}, "reset must be bool"),
    "reset_shape": ({"reset": torch.zeros(B, T, dtype=torch.bool)}, "reset must be bool"),
    "batch_sizes_x": ({"batch_sizes": torch.tensor([B] * T)}, "2 dimensions"),
    "batch_sizes_sum": ({"x": torch.zeros(5, I), "batch_sizes": torch.tensor([3, 1])}, "sum to 4"),
    "batch_sizes_grow": ({"x": torch.zeros(4, I), "batch_sizes": torch.tensor([1, 3])}, "never increase"),
    "batch_sizes_negative": ({"x": torch.zeros(4, I), "batch_sizes": torch.tensor([3, -1])}, "positive"),
    "batch_sizes_beyond_int64": (
        {"x": torch.zeros(0, I), "batch_sizes": torch.tensor([2**62] * 4)},
        "sum to more than the input's 0 rows",
    ),
    "batch_sizes_none": (
        {"x": torch.zeros(0, I), "batch_sizes": torch.zeros(0, dtype=torch.int64)},
        "sequence length to be larger than 0",
    ),
    "batch_sizes_dtype": (
        {"x": torch.zeros(4, I), "batch_sizes": torch.tensor([3, 1], dtype=torch.int32)},
        "int64",
    ),
    "batch_sizes_lengths": (
        {
            "x": torch.zeros(4, I),
            "batch_sizes": torch.tensor([3, 1]),
            "lengths": torch.ones(B, dtype=torch.int64),
        },
        "exclude",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments(bad: str) -> None:
    changed, piece = BAD[bad]
    # ValueError tells a caller's mistake from a failure of the kernels; "no steps" is as torch says it.
    with pytest.raises(RuntimeError if bad in ("no_steps", "batch_sizes_none") else ValueError) as raised:
        ops.forward(*{**arguments("lstm", "cpu"), **changed}.values())
    message = str(raised.value).split("\nException raised from")[0]
    assert piece in message
    assert "\n" not in message.strip()


# What only the numbers in a tensor tell, or the choice of a kernel.
TOLD_BY_VALUES = {
    "batch_sizes_beyond_int64",
    "no_steps",
    "batch_sizes_sum",
    "batch_sizes_grow",
    "batch_sizes_negative",
    "batch_sizes_none",
}


@pytest.mark.parametrize("bad", sorted(BAD.keys() - TOLD_BY_VALUES))
def test_bad_arguments_without_memory(bad: str) -> None:
    """Tracers and the meta device refuse what the kernels would, by the same class of error."""

    def without_memory(name: str, value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) and name != "batch_sizes" else value

    given = {**arguments("lstm", "cpu"), **BAD[bad][0]}
    with pytest.raises(ValueError, match=r"^fastrnn: "):
        ops.forward(*(without_memory(*item) for item in given.items()))


def test_one_tensor_elsewhere() -> None:
    """An op with tensors of several devices goes to the meta device's, which must not take it."""
    for name, t in arguments("lstm", "cpu").items():
        if isinstance(t, Tensor):
            with pytest.raises(ValueError, match=r"^fastrnn: .* must be torch.float32 of shape"):
                ops.forward(*arguments("lstm", "cpu", **{name: t.to("meta")}).values())


def prepacked_arguments(cell: str, **changed: Any) -> list[Any]:
    """Arguments of forward_prepacked for those of forward, well-formed but for what is changed."""
    given = arguments(cell, "cpu")
    panels = ops.prepack(cell, given["w_ih"], given["w_hh"], None, "own")
    for name in ("w_ih", "w_hh", "w_hr"):
        del given[name]
    masks = {name: given.pop(name) for name in ("batch_sizes", "lengths", "reset", "reverse", "keep")}
    ordered = {
        **{name: given[name] for name in ("cell", "x", "h0", "c0")},
        "panels": panels,
        **{name: given[name] for name in ("b_ih", "b_hh")},
        "hidden_size": H,
        "weights": "own",
        **masks,
    }
    return list({**ordered, **changed}.values())


@pytest.mark.parametrize(
    ("cell", "changed", "piece"),
    [
        ("lstm", {"h0": torch.zeros(H)}, "h0 must have 2 dimensions"),
        ("lstm", {"hidden_size": 0}, "sizes must be positive"),
        ("lstm", {"hidden_size": -H}, "sizes must be positive"),
        ("lstm", {"h0": torch.zeros(B, P)}, "packed for a layer of other sizes"),
        ("gru", {"h0": torch.zeros(B, P)}, "gru has no projection"),
        ("gru", {"b_hh": None}, "come together"),
        ("gru", {"b_ih": torch.zeros(3, H)}, r"b_ih must have the shape \[18\]"),
        ("gru", {"b_hh": torch.zeros(3 * H).double()}, "b_hh must be float32 as the input is, got float64"),
        ("gru", {"panels": torch.zeros(8, dtype=torch.uint8)}, "packed for a layer of other sizes"),
        ("gru", {"panels": torch.zeros(8)}, "packed for a layer of other sizes"),
        ("gru", {"weights": "int4"}, "own, bfloat16 or int8"),
    ],
)
def test_bad_prepacked_arguments(cell: str, changed: dict[str, Any], piece: str) -> None:
    with pytest.raises(ValueError, match=f"^fastrnn: .*{piece}|^fastrnn: {piece}"):
        ops.forward_prepacked(*prepacked_arguments(cell, **changed))


@pytest.mark.parametrize(
    ("cell", "shapes", "piece"),
    [
        ("lstm", ((4 * H + 1, I), (4 * H + 1, H), None), "w_ih and w_hh must have the shapes"),
        ("lstm", ((4 * H,), (4 * H, H), None), "w_ih and w_hh must have the shapes"),
        ("lstm", ((0, I), (0, H), None), "sizes must be positive"),
        ("gru", ((3 * H, 0), (3 * H, H), None), "sizes must be positive"),
        ("gru", ((3 * H, I), (3 * H, P), (P, H)), "gru has no projection"),
        ("gru", ((3 * H, I), (3 * H, P), None), "w_hr must have the shape"),
        ("lstm", ((4 * H, I), (4 * H, P), (H, P)), "w_hr must have the shape"),
        ("nope", ((4 * H, I), (4 * H, H), None), "no cell named 'nope'"),
    ],
)
def test_bad_weights_to_prepack(cell: str, shapes: tuple[Any, ...], piece: str) -> None:
    w_ih, w_hh, w_hr = (None if shape is None else torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=f"^fastrnn: .*{piece}|^fastrnn: {piece}"):
        ops.prepack(cell, w_ih, w_hh, w_hr, "own")


def test_projection_of_another_dtype_to_prepack() -> None:
    w_ih, w_hh, w_hr = torch.zeros(4 * H, I), torch.zeros(4 * H, P), torch.zeros(P, H)
    with pytest.raises(ValueError, match="the dtype of w_ih"):
        ops.prepack("lstm", w_ih, w_hh, w_hr.double(), "own")


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool, torch.float8_e5m2])
def test_dtypes_without_kernels(dtype: torch.dtype) -> None:
    given = arguments("gru", "cpu")
    given = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in given.items()}
    with pytest.raises(ValueError, match="float32, float64, bfloat16 and float16, not in"):
        ops.forward(*given.values())


@pytest.mark.parametrize("which", ["dy", "dh_n", "dc_n", "dc", "y", "c", "slots"])
def test_bad_backward_arguments(which: str) -> None:
    names = [
        "cell",
        "dy",
        "dh_n",
        "dc_n",
        "dc",
        *list(arguments("lstm", "cpu"))[1:-1],
        "y",
        "c",
        "slots",
        "needs",
    ]
    given = dict(zip(names, backward_arguments(arguments("lstm", "cpu")), strict=True))
    for wrong in (given[which][..., :-1], given[which].double()):
        with pytest.raises(ValueError, match="fastrnn: "):
            ops.backward(*{**given, which: wrong}.values())


@pytest.mark.parametrize("cell", ops.CELLS)
def test_each_cell_has_its_four_places(cell: str) -> None:
    """A header, a line in the registry (of which ops.CELLS is made), a class, a reference function."""
    headers = {p.name: p.read_text() for p in (ROOT / "csrc" / "cells").glob("*.h")}
    registered = dict(re.findall(r"X\((\w+), (\w+)\)", headers["registry.h"]))
    struct = registered[cell]
    defined = rf"struct {struct} \{{|using {struct} ="
    assert any(re.search(defined, text) for text in headers.values()), (
        f"no header in csrc/cells has {struct}"
    )
    assert cell in reference.CELLS, f"no function in fastrnn.reference.CELLS for {cell}"
    assert cell in {layer.cell for layer in layers()}, f"no class in fastrnn.nn has the cell {cell}"


def layers() -> list[Recurrent]:
    """One of each layer that there is: those that torch.nn has too, and those of this package alone."""
    classes = [getattr(fastrnn.nn, name) for name in fastrnn.nn.__all__]
    others = [cls for cls in classes if issubclass(cls, Recurrent)]
    return [support.ours(cell, 1, 1) for cell in support.LAYERS] + [cls(1, 1) for cls in others]


def test_nothing_is_registered_twice() -> None:
    registered = re.findall(r"X\((\w+), \w+\)", (ROOT / "csrc" / "cells" / "registry.h").read_text())
    assert registered == [*ops.CELLS, *GENERATED]
    assert set(reference.CELLS) == set(ops.CELLS)


def test_what_torch_nn_has_too() -> None:
    """Its layers and cells are compared with torch.nn's, mode by mode."""
    assert set(support.LAYERS) == set(support.CELLS) == set(CELL_OF_MODE.values())
    for mode, cell in CELL_OF_MODE.items():
        assert support.ours(cell, 1, 1).mode == support.theirs(cell, 1, 1).mode == mode
        assert support.ours(cell, 1, 1).cell == support.cell_twins(cell, 1, 1)[1].cell == cell


def test_build_info_has_the_op_library() -> None:
    assert fastrnn.build_info()["cpu_target"] in fastrnn.build_info()["cpu_targets_usable"]
