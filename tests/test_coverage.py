"""Every count of layers is one of the same layers, whatever the verb and the runtime, and their work is the user's modules'."""

from __future__ import annotations

import json

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeq
from edgeq import api
from edgeq.graph.package import QuantizedModel
from edgeq.pages import page, words

RUNTIMES = ("litert", "executorch", "coreml", "tvm")
COUNTS = (
    *("integer_ops", "table_ops", "eligible_ops", "float_ops"),
    *("integer_macs", "table_macs", "eligible_macs", "float_macs", "inserted"),
)


class Mixed(nn.Module):
    """Curves and a resize in float between convolutions, as detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.b(F.silu(self.a(x))), 0.1)
        return self.d(F.interpolate(self.c(y), scale_factor=2, mode="bilinear"))


class Halves(nn.Module):
    """A convolution that runs twice, a transposed one and a product, on both halves of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.up, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 2, 2), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.cat([x, x[:, :1]], 1).chunk(2, -1)
        y = self.up(F.hardswish(self.twice(left)) + self.twice(right))
        return self.head(torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1))


def worked(module: nn.Module, example: tuple[object, ...]) -> tuple[int, int]:
    """Calls of a user's modules with weights, and multiply-accumulates in them, counted by hooks on the modules."""
    calls, macs = 0, 0

    def hook(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal calls, macs
        weight = layer.weight
        assert isinstance(weight, Tensor)
        calls += 1
        if isinstance(layer, nn.ConvTranspose2d):
            macs += given[0].numel() * weight[0].numel()
        else:
            macs += result.numel() * weight[0].numel()

    hooks = [
        layer.register_forward_hook(hook)
        for layer in module.modules()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear))
    ]
    with torch.no_grad():
        module(*example)
    for each in hooks:
        each.remove()
    return calls, macs


@pytest.fixture(scope="module", params=[networks.Neck, Mixed, Halves], ids=lambda n: n.__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, nn.Module]:
    """A network quantized and exported to all four runtimes."""
    network = networks.seeded(request.param)
    folder = tmp_path_factory.mktemp("coverage") / "out"
    batches = [networks.inputs(request.param, seed) for seed in range(3)]
    model = edgeq.quantize(network, example_inputs=batches[0], calibration=batches, output=folder)
    for runtime in RUNTIMES:
        edgeq.export(model, runtime)
    return model, network


def test_work_is_that_of_the_users_own_modules(made: tuple[QuantizedModel, nn.Module]) -> None:
    model, network = made
    calls, macs = worked(network, (torch.zeros(1, 3, 16, 16),))
    weighted = [layer for layer in model.layers if layer.macs]
    assert (len(weighted), sum(layer.macs for layer in weighted)) == (calls, macs)
    assert api.summary(model)["macs"] == {"integer": macs, "float": 0}


def test_every_verb_and_runtime_counts_the_same_layers(made: tuple[QuantizedModel, nn.Module]) -> None:
    model, _ = made
    assert model.folder is not None
    told = api.summary(model)
    total, work = sum(told["operators"].values()), sum(told["macs"].values())
    assert told["operators"]["float"] == len(told["islands"])
    verified = edgeq.verify(model)["backends"]
    shown = {runtime.name: runtime for runtime in page.contents(model)["runtimes"]}
    for name in RUNTIMES:
        row = api.coverage(api.find(model, name), model)
        assert sum(row[f"{kind}_ops"] for kind in ("integer", "table", "eligible", "float")) == total
        assert sum(row[f"{kind}_macs"] for kind in ("integer", "table", "eligible", "float")) == work
        # every kernel of these networks' integer layers is one on every runtime, or a table; the resize is none anywhere
        assert row["float_ops"] == told["operators"]["float"], name
        integers = row["eligible_ops" if name == "coreml" else "integer_ops"]
        assert integers + row["table_ops"] == told["operators"]["integer"], name
        curves = sum(op.kind == "curve" for op in model.integers.ops.values())
        assert row["table_ops"] == (0 if name == "tvm" else curves), name
        kept = json.loads((model.folder / name / "model.json").read_text())["counts"]
        assert kept == {key: row[key] for key in COUNTS} == {key: verified[name][key] for key in COUNTS}
        assert sum(shown[name].counts.values()) == total and shown[name].layered == words.layered(row)


def test_what_a_converter_inserts_is_no_layer(made: tuple[QuantizedModel, nn.Module]) -> None:
    model, _ = made
    artifact = api.find(model, "litert")
    row = api.coverage(artifact, model)
    boundaries = [r.kind for r in artifact.coverage if r.kind in ("QUANTIZE", "DEQUANTIZE")]
    # LiteRT's kernels take channels last, torch's networks have them first: the image is turned at the file's edge
    assert row["inserted"]["TRANSPOSE"] >= 1
    assert all(row["inserted"].get(kind, 0) == boundaries.count(kind) for kind in ("QUANTIZE", "DEQUANTIZE"))
    assert f"{row['inserted']['TRANSPOSE']} TRANSPOSE" in words.layered(row)
