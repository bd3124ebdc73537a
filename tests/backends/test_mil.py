"""The MIL interpreter against hand-computed one-operator packages and NumPy loops."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeq.backends.coreml import run
from edgeq.backends.coreml.operators import OPERATORS
from edgeq.backends.coreml.package import WEIGHTS, coremltools, read
from edgeq.backends.coreml.resizing import grid
from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError

Array = np.ndarray[Any, Any]


def save(folder: Path, build: Callable[..., Any], *shapes: tuple[int, ...], dtype: str = "fp32") -> Path:
    """A package of the MIL program that `build(mb, *inputs)` writes."""
    ct = coremltools()
    with quiet():
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.mil import types

        element = {"fp32": types.fp32, "int32": types.int32}[dtype]
        specs = [mb.TensorSpec(shape, dtype=element) for shape in shapes]
        names = "abc"[: len(shapes)]
        scope: dict[str, Any] = {"build": build, "mb": mb}
        exec(f"def main({', '.join(names)}):\n    return build(mb, {', '.join(names)})", scope)
        program = mb.program(input_specs=specs, opset_version=ct.target.iOS17)(scope["main"])
        model = ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(folder / "one.mlpackage"))
    return folder / "one.mlpackage"


def outputs(path: Path, *inputs: Sequence[Any] | Array | Tensor, compute: run.Compute = "fp32") -> list[Array]:
    tensors = [torch.as_tensor(np.asarray(i)) for i in inputs]
    return [o.numpy() for o in run.load(path, compute=compute)(tensors)]


def call(name: str, **parameters: Any) -> Tensor:
    """One operator on plain values."""
    typed = {k: torch.as_tensor(v) if not isinstance(v, (str, tuple)) else v for k, v in parameters.items()}
    result = OPERATORS[name](typed)
    assert isinstance(result, Tensor)
    return result


def test_quantize_rounds_ties_to_even_and_saturates(tmp_path: Path) -> None:
    def build(mb: Any, x: Any) -> Any:
        signed = mb.quantize(input=x, scale=np.float32(0.5), zero_point=np.int8(3), output_dtype="int8")
        unsigned = mb.quantize(input=x, scale=np.float32(0.5), output_dtype="uint8")
        return [mb.dequantize(input=q, scale=np.float32(1.0)) for q in (signed, unsigned)]

    path = save(tmp_path, build, (8,))
    signed, unsigned = outputs(path, np.float32([0.25, 0.75, 1.25, -0.25, -0.75, 0.26, 99.0, -99.0]))
    # x / 0.5 = 0.5, 1.5, 2.5, -0.5, -1.5, 0.52, 198, -198
    assert signed.tolist() == [3, 5, 5, 3, 1, 4, 127, -128]
    assert unsigned.tolist() == [0, 2, 2, 0, 0, 1, 198, 0]


def test_dequantize_takes_the_zero_point_off_before_it_scales() -> None:
    q = torch.tensor([[-128, 0], [127, 5]], dtype=torch.int8)
    assert call("dequantize", input=q, scale=0.5, zero_point=np.int8(5)).tolist() == [[-66.5, -2.5], [61.0, 0.0]]
    along = call("dequantize", input=q, scale=np.float32([1.0, 2.0]), zero_point=np.int8([0, 1]), axis=1)
    assert along.tolist() == [[-128.0, -2.0], [127.0, 8.0]]


def test_constexpr_weights_are_read_from_the_weight_file(tmp_path: Path) -> None:
    integers = np.arange(-6, 6, dtype=np.int8).reshape(3, 4, 1, 1)
    scales = np.float32([0.5, 1.0, 2.0])

    def build(mb: Any, x: Any) -> Any:
        weight = mb.constexpr_affine_dequantize(
            quantized_data=integers, zero_point=np.zeros(3, np.int8), scale=scales, axis=np.int32(0)
        )
        return mb.conv(x=x, weight=weight, bias=np.float32([1.0, 2.0, 3.0]))

    path = save(tmp_path, build, (1, 4, 1, 1))
    constants = [v for v in read(path).constants.values() if isinstance(v, Tensor)]
    stored = [v for v in constants if v.dtype == torch.int8 and v.dim() == 4]
    assert [v.flatten().tolist() for v in stored] == [list(range(-6, 6))]
    (y,) = outputs(path, np.float32([1, 2, 3, 4]).reshape(1, 4, 1, 1))
    # rows -6..-3, -2..1, 2..5 times 1..4 give -40, 0, 40
    assert y.flatten().tolist() == [-19.0, 2.0, 83.0]


def test_a_chain_of_movement_operators(tmp_path: Path) -> None:
    def build(mb: Any, x: Any) -> Any:
        parts = mb.split(x=x, split_sizes=[1, 2], axis=1)
        woven = mb.concat(values=[x, x], axis=1, interleave=True)
        tail = mb.slice_by_index(
            x=x, begin=[1, 2], end=[0, 0], stride=[1, -1], squeeze_mask=[True, False], end_mask=[False, True]
        )
        padded = mb.pad(x=x, pad=[1, 2], mode="reflect")
        top = mb.topk(x=x, k=2, axis=1, ascending=False)
        return [*parts, woven, tail, padded, *top, mb.transpose(x=x, perm=[1, 0]), mb.tile(x=x, reps=[1, 2])]

    path = save(tmp_path, build, (2, 3))
    x = [[1.0, 5.0, 3.0], [4.0, 2.0, 4.0]]
    got = [o.tolist() for o in outputs(path, np.float32(x))]
    assert got[0] == [[1], [4]] and got[1] == [[5, 3], [2, 4]]
    assert got[2] == [[1, 1, 5, 5, 3, 3], [4, 4, 2, 2, 4, 4]]
    assert got[3] == [4, 2, 4]
    assert got[4] == [[5, 1, 5, 3, 5, 1], [2, 4, 2, 4, 2, 4]]
    assert got[5] == [[5, 3], [4, 4]] and got[6] == [[1, 2], [0, 2]]
    assert got[7] == [[1, 4], [5, 2], [3, 4]] and got[8] == [row + row for row in x]


def test_gather_reads_rows_and_refuses_what_lies_outside(tmp_path: Path) -> None:
    table = np.float32([[0, 1], [10, 11], [20, 21], [30, 31], [40, 41]])
    path = save(tmp_path, lambda mb, at: mb.gather(x=table, indices=at, axis=0), (2, 2), dtype="int32")
    (rows,) = outputs(path, np.int64([[4, 0], [2, 2]]))
    assert rows.tolist() == [[[40, 41], [0, 1]], [[20, 21], [20, 21]]]
    with pytest.raises(EdgeqError, match=r"outside 0\.\.4"):
        outputs(path, np.int64([[5, 0], [0, 0]]))


def test_gather_with_batch_dims() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    got = call("gather", x=x, indices=torch.tensor([[2, 0], [1, 1]]), axis=1, batch_dims=1)
    assert got.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_scatters_update_or_combine_and_refuse_what_lies_outside() -> None:
    x = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    rows = {"data": x, "indices": [1, 0], "updates": [[5.0, 6, 7], [8, 9, 10]], "axis": 0}
    assert call("scatter", **rows, mode="add").tolist() == [[9, 11, 13], [9, 11, 13]]  # coremltools' own example
    assert call("scatter", **rows, mode="update").tolist() == [[8, 9, 10], [5, 6, 7]]
    assert call("scatter", data=x, indices=[2], updates=[[5.0], [1]], axis=1, mode="max").tolist() == [
        [1, 2, 5],
        [4, 5, 6],
    ]
    along = {"data": x, "indices": [[2, 2], [0, 1]], "updates": [[10.0, 20], [2, 3]], "axis": 1}
    assert call("scatter_along_axis", **along, mode="sub").tolist() == [[1, 2, -27], [2, 2, 6]]
    assert call("scatter_along_axis", **along, mode="mul").tolist() == [[1, 2, 600], [8, 15, 6]]
    single = {"data": x, "indices": [[0, 2], [1, 0]], "updates": [7.0, 8]}
    assert call("scatter_nd", **single, mode="update").tolist() == [[1, 2, 7], [8, 5, 6]]
    assert call("scatter_nd", data=x, indices=[[1]], updates=[[1.0, 1, 1]]).tolist() == [[1, 2, 3], [5, 6, 7]]
    with pytest.raises(EdgeqError, match=r"outside 0\.\.1"):
        call("scatter", data=x, indices=[2], updates=[[0.0, 0, 0]])
    with pytest.raises(EdgeqError, match="mode div is not interpreted"):
        call("scatter", data=x, indices=[0], updates=[[1.0, 1, 1]], mode="div")


def test_normalisation_and_activations(tmp_path: Path) -> None:
    gamma = np.float32([1, 2, 3, 4])

    def build(mb: Any, x: Any) -> Any:
        return [
            mb.layer_norm(x=x, axes=[1], gamma=gamma, beta=np.float32([0, 0, 1, 1]), epsilon=np.float32(0)),
            mb.gelu(x=x, mode="EXACT"),
            mb.gelu(x=x, mode="TANH_APPROXIMATION"),
            mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
            mb.softmax(x=x, axis=1),
            mb.sigmoid_hard(x=x, alpha=np.float32(0.5), beta=np.float32(0.5)),
            mb.clip(x=x, alpha=np.float32(-1), beta=np.float32(2)),
        ]

    path = save(tmp_path, build, (1, 4))
    x = [-3.0, -1.0, 1.0, 3.0]
    norm, exact, tanh, sigmoid, soft, hard, clip = (o[0] for o in outputs(path, np.float32([x])))
    root = math.sqrt(5)  # the variance of -3, -1, 1, 3
    np.testing.assert_allclose(norm, [-3 / root, -2 / root, 3 / root + 1, 12 / root + 1], rtol=1e-6)
    np.testing.assert_allclose(exact, [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x], rtol=1e-5, atol=1e-6)
    cube = [math.sqrt(2 / math.pi) * (v + 0.044715 * v**3) for v in x]
    wanted = [0.5 * v * (1 + math.tanh(c)) for v, c in zip(x, cube, strict=True)]
    np.testing.assert_allclose(tanh, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sigmoid, [v / (1 + math.exp(-1.702 * v)) for v in x], rtol=1e-5)
    total = sum(math.exp(v) for v in x)
    np.testing.assert_allclose(soft, [math.exp(v) / total for v in x], rtol=1e-6)
    assert hard.tolist() == [0, 0, 1, 1] and clip.tolist() == [-1, -1, 1, 2]


def test_half_precision_rounds_after_each_operator(tmp_path: Path) -> None:
    path = save(tmp_path, lambda mb, a: mb.sub(x=mb.add(x=a, y=np.float32(1)), y=np.float32(2048)), (3,))
    x = np.float32([2048, 2049, 70000])
    assert outputs(path, x)[0].tolist() == [1, 2, 67953]
    # halves are 2 apart at 2048 and end at 65504; 2049 itself is a tie that goes to the even 2048
    assert outputs(path, x, compute="fp16")[0].tolist() == [0, 0, math.inf]


@pytest.mark.parametrize(
    ("mode", "size", "target", "places"),
    [  # the tables in coremltools' documentation of resize_bilinear
        ("UNALIGN_CORNERS", 2, 5, [0, 0.1, 0.5, 0.9, 1]),
        ("STRICT_ALIGN_CORNERS", 2, 5, [0, 0.25, 0.5, 0.75, 1]),
        ("DEFAULT", 2, 5, [0, 0.4, 0.8, 1, 1]),
        ("OFFSET_CORNERS", 2, 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("UNALIGN_CORNERS", 2, 6, [0, 0, 1 / 3, 2 / 3, 1, 1]),
        ("STRICT_ALIGN_CORNERS", 2, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("DEFAULT", 2, 6, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ("OFFSET_CORNERS", 2, 6, [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12]),
    ],
)
def test_sampling_grids(mode: str, size: int, target: int, places: list[float]) -> None:
    np.testing.assert_allclose(grid(mode, size, target).numpy(), places, atol=1e-12)


def test_upsample_nearest_and_bilinear() -> None:
    x = torch.tensor([[[0.0, 4.0]]])
    assert call("upsample_nearest_neighbor", x=x, scale_factor_width=2.0).tolist() == [[[0, 0, 4, 4]]]
    assert call("upsample_bilinear", x=x, scale_factor_width=2, align_corners=False).tolist() == [[[0, 1, 3, 4]]]


conv_cases = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2),
    st.lists(st.integers(0, 2), min_size=4, max_size=4), st.integers(0, 2**31),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(conv_cases)
def test_conv_against_loops(case: tuple[int, int, int, int, int, list[int], int]) -> None:
    groups, per_group, stride, kernel, dilation, pads, seed = case
    random = np.random.default_rng(seed)
    x = random.integers(-9, 9, (1, groups * per_group, 7, 6))
    w = random.integers(-9, 9, (2 * groups, per_group, kernel, kernel))
    b = random.integers(-9, 9, 2 * groups)
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[1]), (pads[2], pads[3])))
    extent = (kernel - 1) * dilation + 1
    height, width = ((n - extent) // stride + 1 for n in padded.shape[2:])
    want = np.zeros((1, 2 * groups, height, width), np.int64)
    for o, i, j in np.ndindex(2 * groups, height, width):
        first = o // 2 * per_group
        window = padded[0, first : first + per_group, i * stride :, j * stride :][:, :extent:dilation, :extent:dilation]
        want[0, o, i, j] = (window * w[o]).sum() + b[o]
    got = call(
        "conv", x=np.float32(x), weight=np.float32(w), bias=np.float32(b), strides=[stride] * 2, pad_type="custom",
        pad=pads, dilations=[dilation] * 2, groups=groups,
    )  # fmt: skip
    np.testing.assert_array_equal(got.numpy(), want)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.lists(st.integers(0, 1), min_size=4, max_size=4),
       st.integers(0, 2), st.integers(0, 2**31))  # fmt: skip
def test_conv_transpose_against_loops(
    stride: int, kernel: int, groups: int, pads: list[int], extra: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(-9, 9, (1, 2 * groups, 4, 3))
    w = random.integers(-9, 9, (2 * groups, 3, kernel, kernel))
    b = random.integers(-9, 9, 3 * groups)
    sizes = [(n - 1) * stride + kernel - pads[2 * i] - pads[2 * i + 1] + extra for i, n in enumerate(x.shape[2:])]
    if min(sizes) < 1:
        return
    want = np.broadcast_to(b[None, :, None, None], (1, 3 * groups, *sizes)).copy()
    for c, i, j, o, u, v in np.ndindex(2 * groups, 4, 3, 3, kernel, kernel):
        row, column = i * stride + u - pads[0], j * stride + v - pads[2]
        if 0 <= row < sizes[0] and 0 <= column < sizes[1]:
            want[0, c // 2 * 3 + o, row, column] += x[0, c, i, j] * w[c, o, u, v]
    got = call(
        "conv_transpose", x=np.float32(x), weight=np.float32(w), bias=np.float32(b), strides=[stride] * 2,
        pad_type="custom", pad=pads, groups=groups, output_shape=[1, 3 * groups, *sizes],
    )  # fmt: skip
    np.testing.assert_array_equal(got.numpy(), want)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(0, 1), min_size=4, max_size=4), st.booleans(),
       st.integers(0, 2**31))  # fmt: skip
def test_pools_against_loops(kernel: int, stride: int, pads: list[int], exclude: bool, seed: int) -> None:
    if max(pads) >= kernel:  # a window of nothing but padding
        return
    x = np.random.default_rng(seed).integers(-9, 9, (1, 2, 6, 5)).astype(np.float64)
    around = ((0, 0), (0, 0), (pads[0], pads[1]), (pads[2], pads[3]))
    low, zero, inside = (np.pad(v, around, constant_values=c) for v, c in ((x, -np.inf), (x, 0), (np.ones_like(x), 0)))
    height, width = ((n - kernel) // stride + 1 for n in low.shape[2:])
    largest, mean = np.zeros((1, 2, height, width)), np.zeros((1, 2, height, width))
    for c, i, j in np.ndindex(2, height, width):
        at = (0, c, slice(i * stride, i * stride + kernel), slice(j * stride, j * stride + kernel))
        largest[0, c, i, j] = low[at].max()
        mean[0, c, i, j] = zero[at].sum() / (inside[at].sum() if exclude else kernel**2)
    window = {"kernel_sizes": [kernel] * 2, "strides": [stride] * 2, "pad_type": "custom", "pad": pads}
    shared = {"x": np.float32(x), **window}
    np.testing.assert_array_equal(call("max_pool", **shared).numpy(), largest)
    got = call("avg_pool", **shared, exclude_padding_from_average=exclude).numpy()
    np.testing.assert_allclose(got, mean, rtol=1e-6, atol=1e-6)


def test_same_padding_puts_the_odd_one_last() -> None:
    x = np.float32([[[1, 2, 3, 4]]])
    w = np.float32([[[1, 10]]])
    assert call("conv", x=x, weight=w, pad_type="same").tolist() == [[[21, 32, 43, 4]]]
    assert call("conv", x=x, weight=w, pad_type="same_lower").tolist() == [[[10, 21, 32, 43]]]


def test_small_operators() -> None:
    x = np.float32([[1, 2], [3, 4]])
    assert call("cumsum", x=x, axis=1, exclusive=True).tolist() == [[0, 1], [0, 3]]
    assert call("cumsum", x=x, axis=0, reverse=True).tolist() == [[4, 6], [3, 4]]
    assert call("band_part", x=x, lower=0, upper=-1).tolist() == [[1, 2], [0, 4]]
    assert call("one_hot", indices=[1, 0], one_hot_vector_size=3).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert call("reduce_mean", x=x, axes=[0], keep_dims=True).tolist() == [[2, 3]]
    assert call("reduce_argmax", x=x, axis=1).dtype == torch.int32
    assert call("inverse", x=np.float32([1.0]), epsilon=np.float32(1)).tolist() == [0.5]
    assert call("cast", x=np.float32([-1.7, 1.7]), dtype="int32").tolist() == [-1, 1]
    assert call("reshape", x=x, shape=[0, -1]).shape == (2, 2)
    assert call("matmul", x=x, y=x, transpose_y=True).tolist() == [[5, 11], [11, 25]]
    assert call("gather_along_axis", x=x, indices=[[1, 0], [0, 0]], axis=1).tolist() == [[2, 1], [3, 3]]
    assert call("select", cond=[True, False], a=[1, 2], b=[3, 4]).tolist() == [1, 4]
    assert call("instance_norm", x=np.float32([[[1, 3]]]), epsilon=0.0).tolist() == [[[-1, 1]]]
    assert call("prelu", x=np.float32([[[-2], [-2]]]), alpha=np.float32([0.5, 0.25])).tolist() == [[[-1], [-0.5]]]


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, lambda mb, a: mb.local_response_norm(x=a, size=np.int32(3)), (1, 4, 2))
    with pytest.raises(EdgeqError, match="does not know the MIL operator local_response_norm"):
        run.load(path)


def test_damaged_packages_and_wrong_inputs_end_in_a_sentence(tmp_path: Path) -> None:
    weight = np.arange(64, dtype=np.float32).reshape(8, 8)
    path = save(tmp_path, lambda mb, a: mb.linear(x=a, weight=weight), (1, 8))
    with pytest.raises(EdgeqError, match="takes 1 inputs, not 2"):
        outputs(path, np.float32([[0] * 8]), np.float32([[0] * 8]))
    with pytest.raises(EdgeqError, match=r"has shape \(8,\), not \(1, 8\)"):
        outputs(path, np.float32([0] * 8))
    cut = tmp_path / "cut.mlpackage"
    shutil.copytree(path, cut)
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:100])
    with pytest.raises(EdgeqError, match="damaged"):
        run.load(cut)
    with pytest.raises(EdgeqError, match="is no Core ML package"):
        run.load(tmp_path / "missing.mlpackage")
