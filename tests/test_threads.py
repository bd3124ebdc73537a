"""The same task gives the same bytes for any number of threads."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeq
from edgeq.calib.recipes import RECIPES
from edgeq.calib.written import changed
from edgeq.graph.ordered import ordered
from edgeq.task import Task

THREADS = (1, 2, 3, 8)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """What torch's kernels part by threads: single cells, odd numbers of outputs, a mean of everything, a wide linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 144, 1), nn.ReLU6(), nn.Conv2d(144, 21, 1)),
        )
        self.spread = nn.Conv2d(21, 30, 5, 2, groups=3)
        self.head = nn.Linear(30, 100)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        body = self.body(x)
        return self.head(F.relu(self.spread(body)).mean((2, 3))), body * body.mean()


@pytest.mark.parametrize(
    ("recipe", "precision"), [("default", "w8a8"), ("dfq", "w8a8"), ("best-range", "w8a8"), ("adaround", "w4a8")]
)
def test_a_task_gives_the_same_files_for_any_number_of_threads(recipe: str, precision: str, tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return Net()

    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(2, 3, 61, 47, generator=generator),) for _ in range(6)]
    task = Task("threads", network, lambda: batches[0], lambda: batches)
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        folder = tmp_path / str(threads)
        edgeq.quantize(task, recipe=recipe, precision=precision, target="simulated", output=folder)
        found.append({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()})
    assert found[0] == found[1]


def products(rng: random.Random) -> Iterator[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Convolutions, transposed ones, products and sums, from small to some 2^28 multiplications."""
    for _ in range(40):
        axes, groups, kernel = rng.choice((1, 2, 2, 3)), rng.choice((1, 1, 2)), rng.choice((1, 1, 2, 3))
        inputs, outputs = groups * rng.choice((3, 16, 64)), groups * rng.choice((2, 21, 64, 100))
        sizes = [rng.randint(9, {1: 4000, 2: 90, 3: 18}[axes]) for _ in range(axes)]
        x, stride = torch.randn(rng.choice((1, 2)), inputs, *sizes), rng.choice((1, 2))
        turned = rng.random() < 0.25
        pair = (inputs, outputs // groups) if turned else (outputs, inputs // groups)
        weight, bias = torch.randn(*pair, *[kernel] * axes), torch.randn(outputs)
        if weight.numel() * x.numel() / inputs > 1 << 28:
            continue
        name = f"conv_transpose{axes}d" if turned else f"conv{axes}d"
        yield (
            lambda x, w, b, name=name, s=stride, g=groups: getattr(torch, name)(x, w, b, stride=s, groups=g),
            (x, weight, bias),
        )
    for _ in range(20):
        rows, width, outputs = (rng.choice((1, 7, 16, 50, 333, 1000)) for _ in range(3))
        yield F.linear, (torch.randn(rows, width), torch.randn(outputs, width), torch.randn(outputs))
        yield torch.matmul, (torch.randn(2, rows, width), torch.randn(width, outputs))
    for shape in ((300, 400), (7, 100000), (1, 50001)):
        yield lambda x: x.sum(), (torch.randn(shape),)
        yield lambda x: x.mean(-1, keepdim=True), (torch.randn(shape),)
        yield lambda x: x.sum(axis=-1), (torch.randn(shape),)  # NumPy's word for it
        yield lambda x: torch.sum(x, -1, True), (torch.randn(shape),)
        yield lambda x: torch.ops.aten.mean.dim(x[None], [1, 2], True), (torch.randn(shape),)
        yield lambda x: x.square().mean(tuple(range(x.dim())), keepdim=True), (torch.randn(shape),)


@pytest.mark.parametrize("seed", [0, 1])
def test_products_and_sums_are_right_and_the_same_for_any_number_of_threads(seed: int) -> None:
    torch.manual_seed(seed)
    for number, (compute, given) in enumerate(products(random.Random(seed))):
        exact = compute(*(tensor.double() for tensor in given))
        found = []
        for threads in THREADS:
            torch.set_num_threads(threads)
            with ordered():
                found.append(compute(*given))
        shapes = [tuple(tensor.shape) for tensor in given]
        assert all(torch.equal(found[0], other) for other in found), (number, shapes)
        torch.testing.assert_close(found[0].double(), exact, rtol=1e-4, atol=1e-3, msg=lambda m: f"{shapes}: {m}")  # noqa: B023 # read at once


def test_onednn_stays_as_the_user_has_it() -> None:
    x, weight = torch.randn(1, 64, 80, 80), torch.randn(64, 64, 1, 1)
    for wanted in (False, True):
        torch._C._set_mkldnn_enabled(wanted)
        with ordered():
            torch.conv2d(x, weight)
        assert torch.backends.mkldnn.enabled is wanted


class Learned(nn.Module):
    """Backward passes that torch parts by threads: dense, depthwise, single cells, transposed, over a sparse map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(4, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 32, 1)
        self.each, self.up = nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.head, self.last = nn.Conv2d(16, 3, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        x = F.relu(self.second(F.relu(self.each(F.relu(self.first(x)) + x))))
        return self.head(F.relu(self.up(x))), self.last(x.mean((2, 3)))


def masks(outputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [(outputs[0].abs().amax(1, keepdim=True) > outputs[0].abs().mean()).float(), torch.ones_like(outputs[1])]


@pytest.mark.parametrize("recipe", ["lidar-ptq", "block", "brecq", "flexround", "comq"])
def test_what_is_learned_is_the_same_for_any_number_of_threads(recipe: str) -> None:
    """Programs, bit for bit; without parts of their own `lidar-ptq` and `comq` differ here, the others on larger maps."""
    objectives = "mse,tgpl" if recipe == "lidar-ptq" else "mse"
    learning = ("reconstruct.steps=4", f"reconstruct.objectives={objectives}")
    chosen = changed(RECIPES["lidar-ptq"], learning) if recipe in ("lidar-ptq", "block") else RECIPES[recipe]
    chosen = changed(chosen, ("reconstruct.steps=4",)) if recipe == "brecq" else chosen
    torch.manual_seed(0)
    network, generator = Learned().eval(), torch.Generator().manual_seed(1)
    shape = (1, 4, 64, 64)
    batches = [
        (torch.randn(shape, generator=generator) * (torch.rand(1, 1, 64, 64, generator=generator) > 0.7),)
        for _ in range(4)
    ]
    task = Task("learned", lambda: network, lambda: batches[0], lambda: batches, hooks={"positives": masks})
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        model = edgeq.quantize(task, target="simulated", precision="w4a8", recipe=chosen)
        assert torch.get_num_threads() == threads
        held = model.program.state_dict | {k: v for k, v in model.program.constants.items() if isinstance(v, Tensor)}
        found.append(({name: tensor.detach().numpy().tobytes() for name, tensor in held.items()}, model.qparams))
    assert found[0] == found[1]
