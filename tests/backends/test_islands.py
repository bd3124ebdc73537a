"""Float parts of a network, which no kernel of ours computes, on every runtime against torch itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq import backends
from edgeq.graph.capture import capture
from edgeq.graph.convert import float_program
from edgeq.spec import EdgeqError

LSTM, GRU = nn.LSTM(6, 4, batch_first=True), nn.GRU(6, 4, batch_first=True)
PRELU = nn.PReLU(6)
LEFT, PICKED = torch.arange(1.0, 6.0), torch.tensor([0, 0, 1, 2, 2])
KERNEL = torch.linspace(-1, 1, 5 * 5).reshape(5, 5, 1)
RUNTIMES = [name for name in backends.RUNTIMES if name == "coreml" or backends.runs_here(name) == "yes"]
NETWORKS: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "the last step of an LSTM": lambda x: LSTM(x)[0][:, -1],
    "the last step of a GRU": lambda x: GRU(x)[0][:, -1],
    "indices from the end": lambda x: (
        x[:, -1] * 2,
        x.select(-2, -3) * 2,
        x[:, :, [-1, 0]] * 2,
        x.narrow(1, -3, 2) * 2,
    ),
    "a choice between numbers": lambda x: (
        torch.where(x > 0, x, -3.0) * 2,
        torch.where(x > 0, 0.5, x) * 2,
        torch.where(x > 0, 1.0, 2.0) * x,
    ),
    "truths that are counted": lambda x: ((x > 0).cumsum(1) * 0.5, (x > 0).sum(1) * 0.5, (x > 0).sum() * 0.5),
    "whole numbers beside a fraction": lambda x: (
        (x * 4).long() * 0.5 + (x * 4).int() / 2,
        (x * 4).long() - 0.5,
        torch.where((x * 4).long() > 1.5, x, (x * 4).int()),
        0.5 - (x > 0).long(),
    ),
    "a part from the middle": lambda x: x.narrow(1, 1, 3) * 2,
    "computed indices": lambda x: x[0, (x[0, :, 0] > 0).long() - 1] * 2,
    "the largest of an axis": lambda x: (x * 2).max(1)[0],
    "a chunk that nobody reads": lambda x: torch.cat([x.chunk(3, -1)[0], x.chunk(3, -1)[2]], 1),
    "a PReLU of two axes": lambda x: PRELU(x[0]) * 2,
    "a GELU by tanh": lambda x: F.gelu(x, approximate="tanh") * 2,
    "a constant less or over what is transposed": lambda x: (
        1.0 - x.permute(0, 2, 1),
        LEFT - x.permute(0, 2, 1),
        torch.rsub(x.transpose(1, 2), 3, alpha=2),
        torch.rsub(x.transpose(1, 2), LEFT),
        torch.sub(LEFT, x.transpose(1, 2), alpha=2),
        LEFT.exp() - x.index_select(2, PICKED).transpose(1, 2),
        1 / (1 + x.transpose(1, 2).exp()),
        LEFT / (1 + x.permute(0, 2, 1).exp()),
        torch.div(LEFT, x.permute(0, 2, 1), rounding_mode="trunc"),
        2.0 / (1 + x.index_select(1, PICKED).exp()),
        2.0 - F.conv1d(x, KERNEL),
        2.0 / (9.0 + F.conv1d(x, KERNEL)),
    ),
    "arguments that importers leave out": lambda x: (
        F.celu(x, 0.5),
        F.rrelu(x, 0.1, 0.3),
        F.softplus(x, 2, 1),
        F.logsigmoid(x),
        x.std(2, correction=2),
        x.var((1, 2), correction=0),
        F.instance_norm(x, eps=0.1),
        torch.add(x, x * x, alpha=3),
        torch.rsub(x, x * x, alpha=3),
        torch.lerp(x, x * x, 0.3),
        torch.addcmul(x, x, x + 1, value=0.5),
        F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], scale=0.3),
    ),
    "places of a grid": lambda x: tuple(
        F.grid_sample(x[:, None], torch.stack([x[:, :3], x[:, 1:4] / 2], -1), mode, padding, align_corners=corners)
        for mode in ("bilinear", "nearest")
        for padding in ("zeros", "border")
        for corners in (False, True)
    ),
    "a batch norm by numbers of forward's own": lambda x: F.batch_norm(x, torch.arange(5.0), torch.arange(1.0, 6.0)),
    "one number": lambda x: (x * x).mean(),
    "one number beside others": lambda x: x + x.mean(),
}


class Net(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function, self.lstm, self.gru, self.prelu = function, LSTM, GRU, PRELU

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(x)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_islands_compute_what_torch_does(name: str, runtime: str, tmp_path: Path) -> None:
    net = Net(NETWORKS[name]).eval()
    x = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(2))
    engine = backends.backend(runtime)
    if runtime == "coreml" and name.endswith(("LSTM", "GRU")):
        with pytest.raises(EdgeqError, match="no conversion for the operator"):
            engine.lower(float_program(capture(net, (x,)))[0], tmp_path, name="model", layers={})
        return
    artifact = engine.lower(float_program(capture(net, (x,)))[0], tmp_path, name="model", layers={})
    with torch.no_grad():
        wanted = net(x)
    for got, right in zip(
        engine.load(artifact.path)([x]), wanted if isinstance(wanted, tuple) else (wanted,), strict=True
    ):
        close = {"atol": 2e-2, "rtol": 1e-2} if runtime == "coreml" else {"atol": 1e-5, "rtol": 1e-4}  # float16
        torch.testing.assert_close(got, right, **close)


def heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(1, 5, count, -1).transpose(1, 2)


LOWER = torch.ones(5, 5).tril()
ATTENTIONS: tuple[Callable[[Tensor], tuple[Tensor, Tensor, Tensor, dict[str, Any]]], ...] = (
    lambda x: (heads(x, 2), heads(x * 2, 2), heads(x, 2), {"scale": 1.0}),
    lambda x: (heads(x, 2), heads(x * 2, 2), heads(x, 2), {"attn_mask": LOWER[None, None] * 3, "scale": 0.3}),
    lambda x: (heads(x, 2), heads(x * 2, 2), heads(x, 2), {"attn_mask": LOWER.bool()}),
    lambda x: (heads(x, 2), heads(x * 2, 2), heads(x, 2), {"attn_mask": (x[:, None, :, :5] > 0) | (LOWER > 0)}),
    lambda x: (heads(x, 2), heads(x * 2, 2), heads(x, 2), {"is_causal": True}),
    lambda x: (heads(x, 6), heads(x * 2, 6)[:, :2], heads(x, 6)[:, :2], {"enable_gqa": True}),
    lambda x: (x[:, :3], x * 2, x, {}),
    lambda x: (x[0], x[0] * 2, x[0], {}),
)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_attention_is_torchs_in_every_way_to_call_it(runtime: str, tmp_path: Path) -> None:
    def attention(make: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, dict[str, Any]]], x: Tensor) -> Tensor:
        query, key, values, options = make(x)
        return F.scaled_dot_product_attention(query, key, values, **options)

    net = Net(lambda x: tuple(attention(make, x) for make in ATTENTIONS)).eval()
    x = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(2))
    engine = backends.backend(runtime)
    artifact = engine.lower(float_program(capture(net, (x,)))[0], tmp_path, name="model", layers={})
    for number, (got, right) in enumerate(zip(engine.load(artifact.path)([x]), net(x), strict=True)):
        loose = 2e-3 if runtime == "coreml" else 1e-5  # constants in float16
        torch.testing.assert_close(got, right, atol=loose, rtol=loose, msg=lambda m, n=number: f"{n}: {m}")


def check_each(net: Net, x: Tensor, runtime: str, folder: Path) -> None:
    """Every output of `net` on `runtime` beside torch's; the first that differs is named by its number."""
    with torch.no_grad():
        wanted = net(x)
    engine = backends.backend(runtime)
    artifact = engine.lower(float_program(capture(net.eval(), (x,)))[0], folder, name="model", layers={})
    for number, (got, right) in enumerate(zip(engine.load(artifact.path)([x]), wanted, strict=True)):
        torch.testing.assert_close(
            got, right, atol=1e-4, rtol=1e-4, msg=lambda m, n=number: f"{tuple(x.shape)}, {n}: {m}"
        )


NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
MODES = {3: ("linear",), 4: ("bilinear", "bicubic"), 5: ("trilinear",)}


def normalised(rank: int) -> nn.Module:
    norm = NORMS[rank](4)
    for tensor, low in ((norm.running_mean, -1.0), (norm.running_var, 0.5), (norm.weight, 0.5), (norm.bias, -1.0)):
        nn.init.uniform_(tensor, low, low + 1.5)
    return norm.eval()


def resamplings(rank: int, rng: np.random.Generator) -> list[Callable[[Tensor], Tensor]]:
    """Of an image of rank - 2 axes: each mode by a whole factor, a fraction, and to sizes of which one may be 1."""
    axes = rank - 2

    def resampled(mode: str, corners: bool | None, size: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        return lambda x: F.interpolate(x, mode=mode, align_corners=corners, **size)

    sizes = (
        {"scale_factor": 2.0},
        {"scale_factor": (1.5, 2.5, 0.7)[:axes]},
        {"size": (1, 7, 5)[:axes]},
        {"size": tuple(int(n) for n in rng.integers(1, 11, axes))},
    )
    modes = [("nearest", None), ("nearest-exact", None), *((m, c) for m in MODES[rank] for c in (False, True))]
    made = [resampled(mode, corners, size) for mode, corners in modes for size in sizes]
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[axes]
    return [*made, *(lambda x, n=n: pool(x, n) for n in (1, 2, 3))]


def test_core_ml_takes_bilinear_factors_that_sizes_are_no_ratio_of(tmp_path: Path) -> None:
    factors = (1.5, (1.3, 2.7), 0.6, (2.5, 1.0), 2)
    net = Net(lambda x: tuple(F.interpolate(x, scale_factor=f, mode="bilinear") for f in factors))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 9, 7), dtype=np.float32))
    artifact = backends.backend("coreml").lower(float_program(capture(net.eval(), (x,)))[0], tmp_path, compute="fp32")
    for got, wanted in zip(backends.backend("coreml").load(artifact.path)([x]), net(x), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_core_ml_enlarges_by_cubics_as_torch_does(tmp_path: Path) -> None:
    """coremltools has no bicubic; factors that are no ratio of sizes, sizes, smaller ones, corners that stay."""
    ways: list[dict[str, Any]] = [
        {"scale_factor": 4},
        {"scale_factor": (1.3, 0.6)},
        {"size": (5, 11)},
        {"size": (18, 1)},
    ]
    every = [dict(way, align_corners=corners) for way in ways for corners in (False, True)]
    net = Net(lambda x: tuple(F.interpolate(x, mode="bicubic", **way) for way in every))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 9, 7), dtype=np.float32))
    artifact = backends.backend("coreml").lower(float_program(capture(net.eval(), (x,)))[0], tmp_path, compute="fp32")
    for got, wanted in zip(backends.backend("coreml").load(artifact.path)([x]), net(x), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_islands_of_tvm_in_every_rank(rank: int, tmp_path: Path) -> None:
    """What the importer lacks, or takes and computes otherwise, on random shapes."""
    rng = np.random.default_rng(rank)
    shape = ((2, 4, *rng.integers(5, 9, 3)) if rank > 1 else (6, 0))[: max(rank, 1)]
    axis = int(rng.integers(0, rank))
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.amax(axis),
        lambda x: x.amin(axis, keepdim=True),
        lambda x: x.logsumexp(axis),
        lambda x: F.rms_norm(x, [int(shape[-1])]),
        lambda x: torch.count_nonzero(x > 0, axis).float(),
    ]
    functions += [normalised(rank), lambda x: F.group_norm(x, 2)] if rank > 1 else []
    functions += resamplings(rank, rng) if rank > 2 else []
    net = Net(lambda x: tuple(function(x) for function in functions))
    x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    check_each(net, x, "tvm", tmp_path)


@pytest.mark.parametrize("axes", [1, 2])
def test_resampling_of_executorch(axes: int, tmp_path: Path) -> None:
    """By a factor that the sizes are no ratio of the delegate takes another place."""
    rng = np.random.default_rng(axes)
    functions = resamplings(axes + 2, rng)
    net = Net(lambda x: tuple(function(x) for function in functions))
    x = torch.from_numpy(rng.standard_normal((1, 4, *(int(n) for n in rng.integers(5, 9, axes))), dtype=np.float32))
    check_each(net, x, "executorch", tmp_path)


def test_axes_behind_a_convolution_of_executorch(tmp_path: Path) -> None:
    """The delegate keeps a convolution's output channels-last; a softmax of rows took the channels for them."""
    row, column, channel = torch.arange(7.0), torch.arange(6.0)[:, None], torch.arange(4.0)[:, None, None]
    functions: list[Callable[[Tensor], Tensor]] = [
        *(lambda x, a=axis: x.softmax(a) for axis in (1, 2, 3, -1)),
        lambda x: F.log_softmax(x, 3),
        *(lambda x, o=other: (x + o) * (x - o) for other in (row, column, channel)),
        lambda x: torch.minimum(x, row) * torch.maximum(x, column),
        *(lambda x, a=axis: x * x.mean(a, keepdim=True) + x.amax(a, keepdim=True) for axis in (1, 2, 3)),
        lambda x: torch.cat([x, x * 2], 3),
        lambda x: F.pad(x, (1, 0, 0, 1, 2, 0)) * 2,
        lambda x: x[..., 1:4].permute(0, 3, 1, 2) * 2,
        lambda x: x.reshape(1, 2, 2, 6, 7) * 2,
        lambda x: F.layer_norm(x, (7,)) @ torch.ones(7, 7).tril(),
        lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])).flip(3),
    ]
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 6, 7)
    net = Net(lambda x: tuple(function(layer(x)) for function in functions))
    net.layer = layer
    check_each(net, x, "executorch", tmp_path)


def convolutions(rng: np.random.Generator, axes: int) -> list[nn.Module]:
    """Grouped, strided, dilated ones of an image of so many axes and 6 channels, and their transposes."""
    made: list[nn.Module] = []
    for kind in ((nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1],) * 2:
        groups = int(rng.choice([2, 3, 6]))
        made.append(
            kind(
                6,
                6,
                2,
                int(rng.integers(1, 3)),
                int(rng.integers(0, 2)),
                int(rng.integers(1, 3)) if axes < 3 else 1,
                groups,
            )
        )
    for dilation in (1, 2 if axes < 3 else 1):
        groups, padding = int(rng.choice([1, 2, 3])), int(rng.integers(0, 4))  # 3: more than the kernel reaches
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
        made.append(kind(6, 6, 2, 2, padding, 1, groups, bool(rng.integers(0, 2)), dilation))
    return made


PARTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: (x + 1).chunk(2, 0)[0],
    lambda x: (x + 1).unbind(0)[0],
    lambda x: (x + 1).split(9, 1)[0],
    lambda x: torch.cat([x + 1]),
]


@pytest.mark.parametrize(("axes", "seed"), [(1, 0), (2, 1), (2, 2), (3, 3)])
def test_islands_of_litert_at_random(axes: int, seed: int, tmp_path: Path) -> None:
    """Resampling, convolutions of every kind, lists of one tensor: what its converter got wrong, refused or died of."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    shape = (1, 6, *(int(n) for n in rng.integers(4, 8, axes)))
    sampled = [f for f in resamplings(axes + 2, rng) if not isinstance(f, nn.Module)]
    picked = [sampled[i] for i in rng.choice(len(sampled), 10, replace=False)]
    nearest = sampled[:4]  # by a whole factor, by fractions, to sizes
    functions: list[Callable[[Tensor], Tensor]] = [*nearest, *picked, *convolutions(rng, axes), *PARTS]
    net = Net(lambda x: tuple(function(x) for function in functions))
    net.layers = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))
    x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    engine = backends.backend("litert")
    artifact = engine.lower(float_program(capture(net.eval(), (x,)))[0], tmp_path, name="model", layers={})
    with torch.no_grad():
        wanted = net(x)
    for number, (got, right) in enumerate(zip(engine.load(artifact.path)([x]), wanted, strict=True)):
        torch.testing.assert_close(got, right, atol=1e-4, rtol=1e-4, msg=lambda m, n=number: f"{shape}, {n}: {m}")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(1, 3, (1, 2, 1), 2, 1),
        nn.Conv3d(3, 3, (3, 2, 2), 2, 1, groups=3, bias=False),
        nn.Conv3d(2, 6, (2, 3, 3), 1, 1, groups=2),
        nn.ConvTranspose3d(3, 3, (1, 2, 2), 2, groups=3),
        nn.ConvTranspose3d(1, 2, (2, 1, 3), 1),
    ],
    ids=str,
)
def test_a_convolution_of_three_axes_and_one_channel_converts(layer: Any, tmp_path: Path) -> None:
    """The converter ends its process on such a channel, alone or in a group."""
    layer, x = layer.eval(), torch.randn(1, layer.in_channels, 6, 5, 4)
    artifact = backends.backend("litert").lower(float_program(capture(layer, (x,)))[0], tmp_path, name="m", layers={})
    with torch.no_grad():
        torch.testing.assert_close(
            backends.backend("litert").load(artifact.path)([x])[0], layer(x), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(1, 3, (1, 2, 1), 2, 1),
        nn.Conv3d(4, 4, (3, 2, 2), (2, 1, 2), (1, 0, 1), groups=2, bias=False),
        nn.Conv3d(3, 6, 2, dilation=(2, 1, 2), groups=3),
    ],
    ids=str,
)
def test_executorch_convolves_volumes_plane_by_plane(layer: Any, tmp_path: Path) -> None:
    """Its kernels take two axes at most, and ended in error 0x12."""
    layer, x = layer.eval(), torch.randn(2, layer.in_channels, 6, 5, 4)
    engine = backends.backend("executorch")
    artifact = engine.lower(float_program(capture(layer, (x,)))[0], tmp_path, name="m", layers={})
    with torch.no_grad():
        torch.testing.assert_close(engine.load(artifact.path)([x])[0], layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv3d(4, 4, 2, 2, 1, 2, 4), nn.ConvTranspose3d(4, 4, 2, 2, dilation=2)])
def test_a_dilated_convolution_of_three_axes_is_a_sentence(layer: nn.Module, tmp_path: Path) -> None:
    program = float_program(capture(layer.eval(), (torch.randn(1, 4, 5, 5, 5),)))[0]
    with pytest.raises(EdgeqError, match="no operator for a dilated 3-D convolution; write it without dilation"):
        backends.backend("litert").lower(program, tmp_path, name="model", layers={})
