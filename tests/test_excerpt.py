"""Parts of a quantized model compute, one after the other, the bytes of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Attention, InvertedResidual, Pillars, Sparse, inputs, seeded
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.graph.capture import flatten
from edgeq.graph.excerpt import excerpt
from edgeq.graph.package import QuantizedModel, load
from edgeq.spec import EdgeqError, QParams


def quantized(network: type[nn.Module]) -> QuantizedModel:
    task = edgeq.Task(
        network.__name__,
        lambda: seeded(network),
        lambda: inputs(network),
        lambda: [inputs(network, seed) for seed in range(4)],
    )
    return edgeq.quantize(task)


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    return quantized(Pillars)


@pytest.fixture(scope="module")
def parts(model: QuantizedModel) -> tuple[QuantizedModel, QuantizedModel]:
    """Pillar network and dense network, the scatter between them left to the host."""
    return excerpt(model, None, ("encoder/reshape",), "pillars"), excerpt(model, ("permute",), None, "dense")


def scattered(rows: Tensor, table: Tensor, empty: float) -> Tensor:
    """Rows [P, C] → image [1, C, 8, 12] by NumPy; P picks a cell of `empty`."""
    image = np.full((96, rows.shape[1]), empty, rows.numpy().dtype)
    held = table.numpy() < len(rows)
    image[held] = rows.numpy()[table.numpy()[held]]
    return torch.from_numpy(image.reshape(1, 8, 12, -1).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("arithmetic", ["xnnpack", "tvm", "litert_reference"])
def test_parts_with_a_scatter_between_equal_the_whole(
    model: QuantizedModel, parts: tuple[QuantizedModel, QuantizedModel], arithmetic: str
) -> None:
    pillars, dense = parts
    for seed in (20, 21):
        points, table = inputs(Pillars, seed)
        (rows,) = pillars.simulate((points,), arithmetic)
        image = scattered(rows, table, 0.0)
        assert torch.equal(dense.simulate((image,), arithmetic)[0], model.simulate((points, table), arithmetic)[0])


def test_the_parts_say_what_they_take_and_give(
    model: QuantizedModel, parts: tuple[QuantizedModel, QuantizedModel]
) -> None:
    pillars, dense = parts
    assert [i.name for i in pillars.inputs] == ["pillars"] and [i.name for i in dense.inputs] == ["permute"]
    assert pillars.outputs[0].shape == (20, 12) and dense.inputs[0].shape == (1, 12, 8, 12)
    assert pillars.outputs[0].qparams == dense.inputs[0].qparams == model.qparams["permute"]
    assert dense.outputs == model.outputs and dense.preprocessing is None
    assert set(dense.qparams) == {"input permute", "convs.0.0/conv2d", "convs.1.0/conv2d"}
    assert {op.kind for op in dense.integers.ops.values()} == {"conv2d"}
    assert set(dense.plan.layers) < set(model.plan.layers)
    with torch.no_grad():
        network, (points, table) = seeded(Pillars), inputs(Pillars, 20)
        torch.testing.assert_close(pillars.float((points,))[0], network.encoder(points))  # type: ignore[operator] # a module
        image = scattered(network.encoder(points), table, 0.0)  # type: ignore[operator] # a module
        torch.testing.assert_close(dense.float((image,))[0], network(points, table))
    assert torch.equal(dense.qdq(dense.golden)[0], model.qdq(model.golden)[0])


def test_int8_goes_from_artefact_to_artefact_on_litert(
    model: QuantizedModel, parts: tuple[QuantizedModel, QuantizedModel], tmp_path: Path
) -> None:
    engine = backends.backend("litert")
    whole, first, second = (engine.lower(m.program, tmp_path, name=m.name) for m in (model, *parts))
    grid = parts[0].outputs[0].qparams
    assert isinstance(grid, QParams)
    for kernels in ("reference", "builtin", "xnnpack"):
        run, pillars, dense = (engine.load(a.path, kernels=kernels, raw=True) for a in (whole, first, second))
        points, table = inputs(Pillars, 20)
        (rows,) = pillars((points,))
        assert rows.dtype == torch.int8
        assert torch.equal(dense((scattered(rows, table, grid.zero_point[0]),))[0], run((points, table))[0])


@pytest.mark.parametrize("runtime", ["executorch", "tvm", "coreml"])
def test_parts_equal_the_whole_on_other_runtimes(
    model: QuantizedModel, parts: tuple[QuantizedModel, QuantizedModel], runtime: str, tmp_path: Path
) -> None:
    engine = backends.backend(runtime)
    paths = [engine.lower(m.program, tmp_path, name=m.name).path for m in (model, *parts)]
    run, pillars, dense = (engine.load(path) for path in paths)
    points, table = inputs(Pillars, 20)
    (rows,) = pillars((points,))
    assert torch.equal(dense((scattered(rows, table, 0.0),))[0], run((points, table))[0])


def test_a_part_is_a_model_like_any_other(parts: tuple[QuantizedModel, QuantizedModel], tmp_path: Path) -> None:
    dense = parts[1]
    dense.save(tmp_path / "dense")
    again = load(tmp_path / "dense")
    assert torch.equal(again.qdq(again.golden)[0], dense.qdq(dense.golden)[0])
    artifact = edgeq.export(again, "litert")
    assert any(row.layers == ("convs.0.0/conv2d", "convs.0.2/relu") for row in artifact.coverage)
    assert edgeq.verify(again)["backends"]["litert"]["max_lsb"] == 0
    timed = edgeq.profile(again, warmup=1, runs=2)["backends"]["litert"]
    assert timed["total_ms"]["median"] > 0 and timed["float"]["total_ms"]["median"] > 0
    later = edgeq.profile(again, warmup=1, runs=2)["backends"]["litert"]  # knows the former one, of the same file
    assert list(later["earlier_ms"]) == [timed["total_ms"]["median"]]
    assert list(later["float"]["earlier_ms"]) == [timed["float"]["total_ms"]["median"]]
    inner = excerpt(again, ("input permute",), ("convs.0.0/conv2d",), "inner")
    assert inner.inputs == dense.inputs and list(inner.plan.layers) == ["convs.0.0/conv2d", "convs.0.2/relu"]


def test_tables_are_inputs_of_the_parts_that_read_them() -> None:
    model = quantized(Sparse)
    first = excerpt(model, None, ("first.linear/linear",), "first")
    second = excerpt(model, ("first.linear/linear", "input down"), None, "second")
    assert [i.name for i in first.inputs] == ["voxels", "same"]
    assert [(i.name, i.dtype) for i in second.inputs] == [("first_linear_linear", "float32"), ("down", "int64")]
    voxels, same, down = inputs(Sparse, 20)
    (rows,) = first.simulate((voxels, same), "xnnpack")
    assert torch.equal(second.simulate((rows, down), "xnnpack")[0], model.simulate((voxels, same, down), "xnnpack")[0])


def test_a_tensor_computed_in_float_is_cut_where_it_is_quantized() -> None:
    model = quantized(Attention)
    batch = flatten(inputs(Attention, 20))
    (key,) = [k for k in model.qparams if k.startswith("add")][:1]
    head, tail = excerpt(model, None, (key,), "head"), excerpt(model, (key,), None, "tail")
    assert set(tail.islands) < set(model.islands)
    (middle,) = head.simulate(batch, "ideal")
    step = model.qparams[key].scale[0]
    difference = tail.simulate((middle,), "ideal")[0] - model.simulate(batch, "ideal")[0]
    assert float(difference.abs().max()) <= step  # the residual comes from the grid now


def test_what_cannot_be_cut_is_said_in_a_sentence() -> None:
    model = quantized(InvertedResidual)
    with pytest.raises(EdgeqError, match=r"no tensor 'expand\.1/conv2d' to cut at; there are 'expand\.0/conv2d'"):
        excerpt(model, None, ("expand.1/conv2d",), "part")
    with pytest.raises(EdgeqError, match="depend on 'input x' too"):
        excerpt(model, ("depthwise.0/depthwise_conv2d",), None, "part")
    with pytest.raises(EdgeqError, match="do not depend on 'head/linear'"):
        excerpt(model, ("input x", "head/linear"), ("mean",), "part")
