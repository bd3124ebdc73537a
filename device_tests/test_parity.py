"""One template over runtimes, devices and real networks: every output byte is the simulation's."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_random_ops import MATRIX, need_device
from torch import Tensor, nn

import edgeq
from edgeq.devices import open_device
from edgeq.graph.capture import flatten
from edgeq.graph.package import QuantizedModel
from edgeq.run.place import Place
from edgeq.run.verify import verify

DATA = Path(os.environ.get("EDGEQ_DATA", Path(__file__).parents[2] / "shared" / "data"))
BATCHES = 2


def resnet20() -> edgeq.Task:
    """ResNet-20 for CIFAR-10, with its trained weights where EDGEQ_DATA has them, else seeded ones."""
    from edgeq.examples import resnet20_cifar10 as example

    stored = DATA / "resnet_cifar10" / "resnet20.safetensors"

    def model() -> nn.Module:
        if stored.is_file():
            os.environ["EDGEQ_DATA"] = str(DATA)
            return importlib.reload(example).model()
        torch.manual_seed(0)
        return example.ResNet20().eval()

    return task("resnet20", model, (3, 32, 32))


def efficientnet_lite0() -> edgeq.Task:
    """EfficientNet-Lite0 with its ImageNet weights, on small images: emulation takes its time."""
    from edgeq.examples import efficientnet_lite0 as example

    return task("efficientnet_lite0", example.model, (3, 96, 96))


def centerpoint_pillar() -> edgeq.Task:
    """The detector that edgeq ships, with its trained weights, on a sixteenth of its map: pillars, scatter, heads."""
    from safetensors.torch import load_file

    from edgeq.lidar.detectors import WEIGHTS
    from edgeq.lidar.networks import CenterPointPillar

    def model() -> nn.Module:
        network = CenterPointPillar(grid=(64, 64))
        network.load_state_dict(load_file(WEIGHTS / "centerpoint_pillar.safetensors"))
        return network.eval()

    def scene(seed: int) -> tuple[Tensor, ...]:
        """300 pillars of 8 points, each in a cell of its own."""
        generator = torch.Generator().manual_seed(seed)
        cells = torch.randperm(64 * 64, generator=generator)[:300]
        table = torch.full((64 * 64,), 300, dtype=torch.int64)
        table[cells] = torch.arange(300)
        return torch.rand(1, 10, 300, 8, generator=generator) * 2 - 1, table

    return edgeq.Task("centerpoint_pillar", model, lambda: scene(0), lambda: [scene(seed) for seed in range(8)])


def task(name: str, model: Callable[[], nn.Module], shape: tuple[int, ...]) -> edgeq.Task:
    """Seeded noise with a slow wave in it, about as large as normalised images."""

    def image(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        wave = torch.sin(torch.linspace(0, 6, shape[-1]) + seed)
        return ((torch.randn(1, *shape, generator=generator) * 0.5 + wave).clamp(-2, 2),)

    return edgeq.Task(name, model, lambda: image(0), lambda: [image(seed) for seed in range(8)])


NETWORKS = {make.__name__: make for make in (resnet20, efficientnet_lite0, centerpoint_pillar)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], QuantizedModel]]:
    @functools.cache
    def quantized(name: str) -> QuantizedModel:
        return edgeq.quantize(NETWORKS[name](), output=tmp_path_factory.mktemp("parity") / name)

    yield quantized


@pytest.mark.parametrize(("backend", "device"), MATRIX)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_byte_is_the_simulations(
    name: str, backend: str, device: str, models: Callable[[str], QuantizedModel]
) -> None:
    need_device(device)
    model = models(name)
    batches = [flatten(batch) for batch in list(NETWORKS[name]().calibration())[-BATCHES:]]
    artifact = edgeq.export(model, backend)
    assert {row.status for row in artifact.coverage if not row.inserted} == {"integer"}
    with open_device(device) as opened:
        parity = verify(model, artifact, batches, place=Place(opened))
    for kernels in parity.kernels:
        for output in kernels.outputs:
            assert (output.max_lsb, output.exact_share) == (0, 1), (kernels.kernels, output)
