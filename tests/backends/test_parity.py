"""One template over every runtime: the artefact on disk computes what the simulation of its kernels says.

The oracles of the kernels themselves stand in the neighbouring files; here whole networks pass through the public
verbs, and the artefacts are compared with each other too.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from torch import nn

import edgeq
from edgeq import backends
from edgeq.graph.capture import flatten
from edgeq.graph.package import QuantizedModel
from edgeq.pages.words import tied
from edgeq.run.verify import first_parting, verify

NETWORKS = {n.__name__: n for n in networks.ALL}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, QuantizedModel]:
    made = {}
    for name, network in NETWORKS.items():
        task = edgeq.Task(
            name,
            lambda n=network: networks.seeded(n),
            lambda n=network: networks.inputs(n),
            lambda n=network: [networks.inputs(n, seed) for seed in range(4)],
        )
        made[name] = edgeq.quantize(task, output=tmp_path_factory.mktemp("parity") / name)
    return made


def batches(network: type[nn.Module]) -> list[tuple[torch.Tensor, ...]]:
    return [flatten(networks.inputs(network, seed)) for seed in range(20, 24)]


@pytest.mark.parametrize("runtime", backends.RUNTIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_artefact_equals_its_simulation(name: str, runtime: str, models: dict[str, QuantizedModel]) -> None:
    model = models[name]
    artifact = edgeq.export(model, runtime)
    parity = verify(model, artifact, batches(NETWORKS[name]))
    for kernels in parity.kernels:
        for output in kernels.outputs:
            if output.equivalent:  # computed in float; float16 constants in Core ML's package
                assert output.max_lsb < (1 if runtime == "coreml" else 0.05), (kernels.kernels, output)
            else:
                assert (output.max_lsb, output.exact_share) == (0, 1), (kernels.kernels, output)
    placed = {row.status for row in artifact.coverage if not row.inserted}
    if name != "Attention":
        assert placed == {"eligible" if runtime == "coreml" else "integer"}
    assert all(row.reason for row in artifact.coverage if row.status == "float island")


@pytest.mark.parametrize("name", ["InvertedResidual", "Neck"])
def test_runtimes_agree_on_the_answer(name: str, models: dict[str, QuantizedModel]) -> None:
    """The largest output is the QDQ program's wherever its lead exceeds what the runtime may differ by."""
    model = models[name]
    for runtime in backends.RUNTIMES:
        artifact = edgeq.export(model, runtime)
        predict = backends.backend(runtime).load(artifact.path)
        for batch in batches(NETWORKS[name]):
            wanted, got = model.qdq(batch)[0].flatten(), predict(batch)[0].flatten()
            step = model.outputs[0].qparams
            assert step is not None
            margin = 2 * float((wanted - got).abs().max())
            first, second = wanted.topk(2).values.tolist()
            assert margin <= 6 * step.scale[0]
            assert first - second <= margin or int(got.argmax()) == int(wanted.argmax())


@pytest.mark.parametrize("runtime", ["litert", "executorch", "tvm"])
def test_same_program_same_bytes(runtime: str, models: dict[str, QuantizedModel], tmp_path: Path) -> None:
    first = edgeq.export(models["InvertedResidual"], runtime, folder=tmp_path / "a").path
    again = edgeq.export(models["InvertedResidual"], runtime, folder=tmp_path / "b").path
    assert first.read_bytes() == again.read_bytes()


def test_layers_that_part_are_found(models: dict[str, QuantizedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation that rounds one operator otherwise is caught at that operator, and only there."""
    from edgeq.graph.arithmetic import tvm

    model = models["InvertedResidual"]
    batch = batches(NETWORKS["InvertedResidual"])[0]
    assert first_parting(model, "tvm", batch) is None
    honest = tvm.compute

    def shifted(op, inputs):  # type: ignore[no-untyped-def] # as compute
        computed = honest(op, inputs)
        return computed - (computed > op.low).to(torch.int8) if op.kind == "depthwise_conv2d" else computed

    monkeypatch.setattr(tvm, "KERNELS", dataclasses.replace(tvm.KERNELS, compute=shifted))
    parting = first_parting(model, "tvm", batch)
    assert parting is not None and parting.layer == "depthwise.0/depthwise_conv2d" and parting.max_lsb == 1


class Gated(nn.Module):
    """A float island between the input and an integer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * torch.sigmoid(x))


@pytest.fixture
def gated() -> tuple[QuantizedModel, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    batch = (torch.randn(300, 12),)
    return edgeq.quantize(Gated().eval(), example_inputs=batch, calibration=[batch]), batch


def test_an_integer_layer_that_parts_is_not_excused_by_its_island(
    gated: tuple[QuantizedModel, tuple[torch.Tensor, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among 3,600 values of an island some always lie near halfway between two integers."""
    from edgeq.graph.arithmetic import tvm

    honest = tvm.compute
    other = dataclasses.replace(tvm.KERNELS, compute=lambda op, inputs: honest(op, inputs) ^ (op.kind == "linear"))
    monkeypatch.setattr(tvm, "KERNELS", other)
    parting = first_parting(gated[0], "tvm", gated[1])
    assert parting is not None and parting.layer == "head/linear" and parting.tie is None


def test_an_island_that_rounds_otherwise_is_named_with_how_far_from_a_tie(
    gated: tuple[QuantizedModel, tuple[torch.Tensor, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the simulation rounds a hundredth of a step too high. Against the island computed in float64 by NumPy."""

    from edgeq.graph.arithmetic import tvm

    model, (x,) = gated
    honest, shift = tvm.KERNELS.quantize, 0.01
    higher = dataclasses.replace(tvm.KERNELS, quantize=lambda x, q: honest(x + shift * q.scale[0] * (x.dim() == 2), q))
    monkeypatch.setattr(tvm, "KERNELS", higher)
    parting = first_parting(model, "tvm", (x,))
    taken = next(op for op in model.integers.ops.values() if op.kind == "linear").input_qparams[0]
    first = model.inputs[0].qparams
    assert parting is not None and parting.layer == "mul" and parting.tie is not None and first is None
    real = x.double().numpy()
    steps = real / (1 + np.exp(-real)) / taken.scale[0]
    flipped = np.round(steps) != np.round(steps + shift)
    assert parting.exact_share == pytest.approx(1 - flipped.mean(), abs=1e-3)
    assert parting.tie == pytest.approx(np.abs(steps - np.floor(steps) - 0.5)[flipped].max(), abs=1e-4)
    assert "float kernels differ" in tied(parting.tie)


def test_float_inputs_and_outputs_on_request(models: dict[str, QuantizedModel], tmp_path: Path) -> None:
    model = models["InvertedResidual"]
    ints, floats = (edgeq.export(model, "litert", folder=tmp_path / io, io=io) for io in ("int8", "float"))
    batch = batches(NETWORKS["InvertedResidual"])[0]
    load = backends.backend("litert").load
    assert torch.equal(load(ints.path)(batch)[0], load(floats.path)(batch)[0])
    with pytest.raises(edgeq.EdgeqError, match="only litert"):
        edgeq.export(model, "tvm", folder=tmp_path / "no", io="float")


def test_a_program_for_another_target_runs_where_scales_must_be_one(tmp_path: Path) -> None:
    task = edgeq.Task(
        "neck",
        lambda: networks.seeded(networks.Neck),
        lambda: networks.inputs(networks.Neck),
        lambda: [networks.inputs(networks.Neck)],
    )
    model = edgeq.quantize(task, target="tvm")  # whose concatenation takes any scales
    assert any(op.kind == "cat" and len({q.scale for q in op.input_qparams}) > 1 for op in model.integers.ops.values())
    artifact = edgeq.export(model, "executorch", folder=tmp_path)
    got = backends.backend("executorch").load(artifact.path)(model.golden)
    for made, simulated in zip(got, model.simulate(model.golden, "xnnpack"), strict=True):
        assert torch.equal(made, simulated)


def test_running_an_artefact_leaves_the_process_its_cores(models: dict[str, QuantizedModel]) -> None:
    """TVM's thread pool would pin the caller to one core; whatever is timed afterwards would be slower."""
    before = os.sched_getaffinity(0)
    for runtime in backends.RUNTIMES:
        artifact = edgeq.export(models["InvertedResidual"], runtime)
        backends.backend(runtime).load(artifact.path)(models["InvertedResidual"].golden)
    assert os.sched_getaffinity(0) == before
