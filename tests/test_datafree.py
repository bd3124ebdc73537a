"""Calibration data out of the network itself: what its BatchNorms see of it, against the user's own module."""

from __future__ import annotations

import base64
import copy
import functools
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import edgeq
from edgeq.assembly import silent
from edgeq.calib.data import sources
from edgeq.calib.data.sources.genie import Genie, Swing
from edgeq.calib.data.sources.layernorm import Layernorm
from edgeq.calib.data.sources.noise import Noise
from edgeq.calib.data.sources.zeroq import Zeroq
from edgeq.calib.workspace import beside
from edgeq.graph.capture import capture
from edgeq.pages.thumbnails import thumbnails
from edgeq.spec import EdgeqError, EdgeqWarning


class Branches(nn.Module):
    """Two branches whose norms are made in another order than they are called, one norm called twice, one as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early = nn.BatchNorm2d(6, momentum=0.3), nn.BatchNorm2d(6, momentum=0.3)
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(3, 6, 1)
        self.tail, self.twice = nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.early(self.right(x))) + F.relu(self.late(self.left(x)))
        x = F.batch_norm(self.tail(x), self.mean, self.var, training=self.training, momentum=0.3)
        x = F.relu(self.twice(x)) + self.twice(-x)
        return self.head(F.relu(x).mean((2, 3)))


def trained() -> Branches:
    """Random weights, and running statistics of smooth made-up pictures: as after a training."""
    return copy.deepcopy(_trained())


@functools.cache
def _trained() -> Branches:
    torch.manual_seed(0)
    module = Branches().train()
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight)
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias, 0.0, 0.3)
    with torch.no_grad():
        for _ in range(20):
            module(
                F.interpolate(torch.randn(32, 3, 4, 4), (12, 12), mode="bilinear") + 0.2 * torch.randn(32, 3, 12, 12)
            )
    return module.eval()


def seen(module: nn.Module, names: list[str], batches: list[Tensor]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Mean and variance of each named norm's input over all batches, call by call, in NumPy's double precision."""
    calls: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda m, args, name=name: calls[name].append(args[0]))
        for name in names
    ]
    with torch.no_grad():
        module(torch.cat(batches))
    for hook in hooks:
        hook.remove()
    arrays = {name: [x.double().numpy() for x in found] for name, found in calls.items()}
    return {name: [(x.mean((0, 2, 3)), x.var((0, 2, 3))) for x in found] for name, found in arrays.items()}


def made(source: Any, module: nn.Module, *example: Tensor, output: Path | None = None) -> list[tuple[Tensor, ...]]:
    return sources.made(source, module, capture(module, example), output, silent)


def distance(module: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Of each norm: how far mean and deviation of its inputs are from those of training, in deviations of training."""
    found = {}
    for name, calls in seen(module, ["early", "late", "twice"], batches).items():
        norm = module.get_submodule(name)
        mean = np.mean([m for m, _ in calls], axis=0)
        std = np.sqrt(np.mean([v for _, v in calls], axis=0))
        wanted = norm.running_var.double().sqrt().numpy()
        off = np.abs(mean - norm.running_mean.double().numpy()) + np.abs(std - wanted)
        found[name] = float((off / wanted).mean())
    return found


def test_every_norm_sees_what_it_saw_in_training() -> None:
    """On branches, called twice, as a function, whatever the order they were made in; noise is far off."""
    module = trained()
    example = torch.zeros(1, 3, 12, 12)
    images = [x for (x,) in made(Zeroq(images=12), module, example)]
    distilled = distance(module, images)
    noise = distance(module, [x for (x,) in made(Noise(images=16), module, example)])
    assert all(distilled[name] < 0.08 for name in distilled), distilled
    assert all(distilled[name] < noise[name] / 3 for name in distilled), (distilled, noise)
    taken: list[Tensor] = []
    module.tail.register_forward_hook(lambda m, args, result: taken.append(result))
    with torch.no_grad():
        module(torch.cat(images))
    mean, std = taken[-1].mean((0, 2, 3)), taken[-1].std((0, 2, 3))
    assert ((mean - module.mean).abs() + (std - module.var.sqrt()).abs()).div(module.var.sqrt()).mean() < 0.08


def test_genie_draws_what_every_norm_saw() -> None:
    """Also 1-D signals of a length that no doubling gives; each seed draws others."""
    module, example = trained(), torch.zeros(1, 3, 12, 12)
    distilled = distance(module, [x for (x,) in made(Genie(images=16, steps=80), module, example)])
    noise = distance(module, [x for (x,) in made(Noise(images=16), module, example)])
    assert all(distilled[name] < noise[name] / 2 for name in distilled), (distilled, noise)
    torch.manual_seed(0)
    signal = nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 3)).eval()
    signal[1].running_mean.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    drawn = [made(Genie(images=3, steps=3, seed=seed), signal, torch.zeros(1, 2, 13)) for seed in (0, 0, 1)]
    assert all(x.shape == (1, 2, 13) for (x,) in drawn[0])
    assert torch.equal(drawn[0][2][0], drawn[1][2][0]) and not torch.equal(drawn[0][2][0], drawn[2][2][0])


def test_swing_shifts_strided_convolutions_alone() -> None:
    """By a whole cell at most, edges mirrored; nine shifts of a picture, all of which occur."""
    x, delta = torch.arange(36.0).view(1, 1, 6, 6), torch.zeros(1, 1, 1, 1) + 1
    padded = F.pad(x, [1, 1, 1, 1], mode="reflect")
    wanted = {(i, j): padded[:, :, i : i + 6, j : j + 6][:, :, ::2, ::2] for i in range(3) for j in range(3)}
    found = set()
    for seed in range(60):
        with Swing(seed):
            plain, strided = F.conv2d(x, delta), F.conv2d(x, delta, stride=2)
        assert torch.equal(plain, x)
        found |= {key for key, value in wanted.items() if torch.equal(strided, value)}
    assert found == set(wanted)


def test_genie_refuses_what_is_no_picture() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    with pytest.raises(EdgeqError, match="draws images and signals, and Sequential takes none: use --data zeroq"):
        made(Genie(images=2), module, torch.zeros(1, 4))


def pixels(file: bytes) -> np.ndarray:
    """[H, W, 3] of an RGB file, by the PNG specification: chunks with their CRC, lines with filter 0."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(file):
        size, name = struct.unpack(">I", file[at : at + 4])[0], file[at + 4 : at + 8]
        chunks[name] = file[at + 8 : at + 8 + size]
        assert struct.unpack(">I", file[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + chunks[name])
        at += 12 + size
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0] and at == len(file) and name == b"IEND"
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


def test_the_report_shows_what_was_made_up(tmp_path: Path) -> None:
    """Pictures with their pixels, signals as curves; the command that makes them again."""
    model = edgeq.quantize(
        trained(), example_inputs=(torch.zeros(1, 3, 12, 12),), data="noise", settings=["data.images=5"], output=tmp_path / "out"
    )  # fmt: skip
    page = edgeq.report(model).read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') == 5 and "made-up inputs (noise: images 5, seed 0)" in page
    x = torch.rand(1, 3, 6, 5)
    file = base64.b64decode(thumbnails([(x,)])[0].partition("base64,")[2])
    image = pixels(file)
    scaled = (x[0] - x.min()) / (x.max() - x.min())
    assert np.abs(image / 255 - scaled.permute(1, 2, 0).numpy()).max() < 0.003
    assert thumbnails([(torch.rand(1, 2, 30),)])[0].startswith("data:image/svg+xml;base64,")
    assert thumbnails([]) == []


def test_the_network_stays_as_it_was() -> None:
    module = trained().train()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    made(Zeroq(images=2, steps=2), module, torch.zeros(1, 3, 12, 12))
    assert module.training and not module.early._forward_hooks and not module.early._forward_pre_hooks
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


class Frozen(nn.Module):
    """A norm written out, as detectors have it, behind a forward that insists on one picture."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.inner = nn.Conv2d(3, 3, 3, padding=1), Written(3), inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.norm(self.stem(x)).view(1, 3, 12, 12))


class Written(nn.Module):
    """x → (x − mean) / sqrt(var + eps) in torch's own arithmetic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.linspace(-1, 1, channels))
        self.register_buffer("running_var", torch.linspace(0.5, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean[:, None, None]) * (self.running_var[:, None, None] + 1e-5).rsqrt()


def test_an_exported_program_is_met_by_its_operators() -> None:
    """No module is left of its norms; the pictures are those of the module."""
    module, example = trained(), torch.zeros(1, 3, 12, 12)
    program = torch.export.export(module, (example,))
    source, captured = Zeroq(images=2, steps=4), capture(module, (example,))
    found = sources.made(source, program, captured, None, silent)
    wanted = sources.made(source, module, captured, None, silent)
    assert all(torch.allclose(a, b, atol=1e-3) for (a,), (b,) in zip(found, wanted, strict=True))


def test_a_frozen_norm_and_a_batch_of_one() -> None:
    """Statistics are pooled over pictures that go through the network one by one."""
    torch.manual_seed(1)
    module = Frozen(nn.Conv2d(3, 2, 3)).eval()
    with torch.no_grad():
        x = F.avg_pool2d(torch.randn(64, 3, 14, 14), 3, 1)
        x = module.stem((x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True))
    module.norm.running_mean.copy_(x.mean((0, 2, 3)))
    module.norm.running_var.copy_(x.var((0, 2, 3)))
    batches = [x for (x,) in made(Zeroq(images=6), module, torch.zeros(1, 3, 12, 12))]
    taken: list[Tensor] = []
    module.norm.register_forward_pre_hook(lambda m, args: taken.append(args[0]))
    with torch.no_grad():
        for x in batches:
            module(x)
    held = torch.cat(taken).double()
    std = module.norm.running_var.sqrt()
    assert len(batches) == 6
    assert ((held.mean((0, 2, 3)) - module.norm.running_mean).abs() / std).max() < 0.1
    assert ((held.var((0, 2, 3)).sqrt() - std).abs() / std).max() < 0.1


def test_same_bytes_on_one_thread_and_two(tmp_path: Path) -> None:
    """Also of what is saved; another seed gives others."""
    module, found = trained(), []
    threads = torch.get_num_threads()
    try:
        for count, seed in ((1, 0), (2, 0), (2, 1)):
            torch.set_num_threads(count)
            torch.manual_seed(count)  # what else drew random numbers does not matter
            out = tmp_path / f"{count}{seed}"
            edgeq.quantize(
                module, example_inputs=(torch.zeros(1, 3, 12, 12),), data="zeroq", output=out,
                settings=["data.images=4", "data.steps=9", f"data.seed={seed}"],
            )  # fmt: skip
            found.append([(out / name).read_bytes() for name in ("distilled.safetensors", "qparams.json", "plan.json")])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_the_folder_says_where_its_data_came_from(tmp_path: Path) -> None:
    """Manifest, plan and verify; the plan alone gives the same program again; the batches come back as they were."""
    module, out = trained(), tmp_path / "out"
    given = {"example_inputs": (torch.zeros(1, 3, 12, 12),)}
    settings = ["data.images=3", "data.steps=5"]
    model = edgeq.quantize(module, **given, data="zeroq", settings=settings, output=out)
    told = {"source": "zeroq", "images": 3, "seed": 0, "steps": 5, "rate": 0.5, "batch": 0}
    assert json.loads((out / "manifest.json").read_text())["data"] == told
    assert json.loads((out / "plan.json").read_text())["data"] == told
    assert edgeq.api.summary(model)["data"] == told
    again = edgeq.quantize(module, **given, plan=out / "plan.json", output=tmp_path / "again")
    assert again.qparams == model.qparams and again.plan == model.plan
    loaded = edgeq.load(out)
    assert len(loaded.distilled) == 3 and loaded.data == told
    assert all(torch.equal(a, b) for (a,), (b,) in zip(loaded.distilled, model.distilled, strict=True))
    manifest = json.loads((out / "manifest.json").read_text())
    for wrong in ({"seed": 0}, {"source": 3}, {"source": "arrays"}):
        (out / "manifest.json").write_text(json.dumps({**manifest, "data": wrong}))
        with pytest.raises(EdgeqError, match=r"manifest.json: data does not say where"):
            edgeq.load(out)
    with safe_open(out / "distilled.safetensors", framework="np") as file:
        assert file.get_tensor("input_0").shape == (3, 1, 3, 12, 12)


def test_an_interrupted_distillation_goes_on(tmp_path: Path) -> None:
    """Ctrl-C at step 7 of 12 leaves what is done beside the output; the same call gives what an undisturbed one does."""
    module, out = trained(), tmp_path / "out"
    source, captured = Zeroq(images=4, steps=12), capture(module, (torch.zeros(1, 3, 12, 12),))
    wanted = sources.made(source, module, captured, None, silent)
    steps: list[int] = []

    def stop(stage: str, done: int, total: int | None) -> None:
        steps.append(done)
        if done == 7 and len(steps) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources.made(source, module, captured, out, stop)
    assert list(beside(out).glob("data-*"))
    steps.extend([0] * 9)
    found = sources.made(source, module, captured, out, stop)
    assert steps[16] == 8  # seven steps were there
    assert all(torch.equal(a, b) for (a,), (b,) in zip(found, wanted, strict=True))
    for path in beside(out).glob("data-*"):
        path.write_bytes(path.read_bytes()[:-40])
    found = sources.made(source, module, captured, out, silent)
    assert all(torch.equal(a, b) for (a,), (b,) in zip(found, wanted, strict=True))


class Plain(nn.Module):
    """No BatchNorm at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x)).mean(2))


def test_without_a_batch_norm_is_a_sentence() -> None:
    torch.manual_seed(0)
    module, example = Plain().eval(), torch.randn(1, 2, 16)
    with pytest.raises(
        EdgeqError,
        match=r"goes by the statistics that BatchNorms keep .*, and Plain calls none .*--data layernorm .* or noise",
    ):
        edgeq.quantize(module, example_inputs=(example,), data="zeroq")
    model = edgeq.quantize(module, example_inputs=(example,), data="noise")
    assert model.data == {"source": "noise", "images": 32, "seed": 0}


def test_layernorm_is_a_weaker_way() -> None:
    """What each norm makes has, channel by channel, nearly mean 0 and deviation 1; of noise, channels stand still."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)
    ).eval()

    def off(source: Any) -> float:
        """Mean distance from 0 and 1 over channels of both norms, in NumPy."""
        with pytest.warns(EdgeqWarning, match="is weaker than real data or what BatchNorms keep"):
            x = torch.cat([x for (x,) in made(source, module, torch.zeros(1, 5, 6))])
        found = []
        for norm in (1, 4):
            with torch.no_grad():
                y = module[:norm](x).numpy()
            z = ((y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)).reshape(-1, 8)
            found.append(np.abs(z.mean(0)) + np.abs(z.std(0) - 1))
        return float(np.mean(found))

    assert off(Layernorm(images=12)) < off(Noise(images=12)) / 2
    with pytest.raises(EdgeqError, match="--data layernorm goes by LayerNorms, and Plain calls none"):
        made(Layernorm(images=2), Plain().eval(), torch.zeros(1, 2, 16))


def test_noise_has_the_range_of_an_example_that_varies() -> None:
    module = Plain().eval()
    x = torch.cat([x for (x,) in made(Noise(images=200), module, 5 + 3 * torch.randn(1, 2, 160))])
    assert math.isclose(float(x.mean()), 5, abs_tol=0.5) and math.isclose(float(x.std()), 3, rel_tol=0.05)
    x = torch.cat([x for (x,) in made(Noise(images=200), module, torch.full((1, 2, 16), 7.0))])
    assert math.isclose(float(x.mean()), 0, abs_tol=0.1) and math.isclose(float(x.std()), 1, rel_tol=0.05)


class Indexed(nn.Module):
    """A picture, a table of rows, and a norm behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(x.index_select(0, table))))


def test_integers_are_the_examples_in_another_order() -> None:
    module = Indexed().eval()
    module.norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0]))
    table = torch.tensor([0, 3, 1, 3, 7])
    with pytest.warns(EdgeqWarning, match="input 'table' holds integers"):
        batches = made(Zeroq(images=16), module, torch.zeros(8, 4), table)
    assert len(batches) == 2  # of eight rows each
    assert all(sorted(t.tolist()) == sorted(table.tolist()) and t.dtype == table.dtype for _, t in batches)
    rows = torch.cat([x.index_select(0, t) for x, t in batches])
    assert (rows.mean(0) - module.norm.running_mean).abs().max() < 0.2


def test_integers_alone_are_refused() -> None:
    module = nn.Sequential(nn.Embedding(9, 4), nn.BatchNorm1d(5), nn.Linear(4, 2)).eval()
    with pytest.raises(EdgeqError, match="takes integers alone"):
        edgeq.quantize(module, example_inputs=(torch.zeros(1, 5, dtype=torch.long),), data="zeroq")


def test_statistics_that_are_none_are_told() -> None:
    module, example = trained(), torch.zeros(1, 3, 12, 12)
    module.late.running_var[2] = -1.0
    with pytest.raises(EdgeqError, match="late: its running statistics are NaN, infinite or negative"):
        made(Zeroq(images=2, steps=2), module, example)
    untrained = Branches().eval()
    with pytest.warns(EdgeqWarning, match="mean 0 and variance 1, as before any training"):
        made(Zeroq(images=2, steps=2), untrained, example)


class Cut(nn.Module):
    """Its forward lets no gradient through."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)


def test_no_gradient_is_a_sentence() -> None:
    with pytest.raises(EdgeqError, match="no gradient comes from its BatchNorms back to its inputs"):
        made(Zeroq(images=2, steps=2), Cut(trained()).eval(), torch.zeros(1, 3, 12, 12))


def test_a_rate_beyond_all_numbers_is_a_sentence() -> None:
    signal = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU()).eval()
    signal[1].running_mean.fill_(0.5)
    with pytest.raises(EdgeqError, match=r"the distillation's loss is (nan|inf) at step \d+: lower its rate"):
        made(Zeroq(images=2, steps=40, rate=1e30), signal, torch.zeros(1, 2, 9))


def test_pictures_stay_in_their_bounds() -> None:
    """Those of the example where it varies, else a normalised picture's; a norm that reads pixels as they come knows better."""
    module = trained()
    x = torch.cat([x for (x,) in made(Zeroq(images=2, steps=20), module, torch.zeros(1, 3, 12, 12))])
    assert float(x.abs().max()) <= 2.5
    x = torch.cat([x for (x,) in made(Zeroq(images=2, steps=20), module, torch.rand(1, 3, 12, 12))])
    assert float(x.min()) >= 0 and float(x.max()) <= 1
    pixels = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3)).eval()
    pixels[0].running_mean.fill_(40.0)
    pixels[0].running_var.fill_(100.0)
    with pytest.warns(
        EdgeqWarning, match=r"stays far from their training, most at '0' \(\d.* deviations\): give example_inputs"
    ):
        x = torch.cat([x for (x,) in made(Zeroq(images=2, steps=20), pixels, torch.zeros(1, 3, 12, 12))])
    assert float(x.max()) > 5  # on its way


@pytest.mark.parametrize(
    ("data", "settings", "why"),
    [
        ("zeroq", ["data.speed=3"], "data source 'zeroq' has images, seed, steps, rate, batch"),
        ("zeroq", ["data.images=0"], "use 1 or more images"),
        ("zeroq", ["data.images=many"], "images is a string instead of a whole number"),
        ("zerq", [], "zerq: no such folder or file; --data takes"),
        (None, ["data.seed=1"], "is an option of made-up data: add --data genie or layernorm or noise or zeroq"),
    ],
)
def test_what_no_source_takes_is_refused(data: str | None, settings: list[str], why: str) -> None:
    with pytest.raises(EdgeqError, match=why):
        edgeq.quantize(Plain().eval(), example_inputs=(torch.randn(1, 2, 16),), data=data, settings=settings)
