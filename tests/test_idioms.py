"""Spellings that other people's networks use: the captured graph is still their network, and what is linear is one layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgeq.graph.capture import Captured, capture
from edgeq.graph.ops import kind_of


class Net(nn.Module):
    """Named layers and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.does = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


def shuffled(net: Any, x: Tensor) -> Tensor:
    n, c, h, w = net.a(x).shape
    return net.b(net.a(x).view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))


def ssd_heads(net: Any, x: Tensor) -> Tensor:
    parts = [head(x).permute(0, 2, 3, 1).contiguous().view(1, -1, 4) for head in (net.a, net.c)]
    return torch.cat(parts, 1)


def attention(net: Any, x: Tensor) -> Tensor:
    tokens = net.a(x).flatten(2).transpose(1, 2)
    q, k, v = (t.view(1, -1, 2, 4).transpose(1, 2) for t in (tokens, tokens + 1, tokens * 2))
    mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    return mixed.transpose(1, 2).contiguous().view(1, -1, 8)


def windows(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).permute(0, 2, 3, 1)
    parts = y.view(1, 2, 4, 2, 4, 8).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, 4, 8)
    return F.relu_(parts).reshape(1, -1)  # in place: reshape comes as clone and _unsafe_view


def quiet_part(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x))
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        y = y + torch.relu_(net.b(y))
        with torch.enable_grad():
            y = y * y.mean()
    return checkpoint(lambda t: t.sigmoid() - 1, y, use_reentrant=False)  # type: ignore[no-any-return] # a tensor


def casts(net: Any, x: Tensor) -> Tensor:
    y = net.a(x.float()).to("cpu").type_as(x).expand(1, 8, 8, 8)
    return torch.cat((y.to(torch.float32).clone(), y.detach()), 1)


def neutral(net: Any, x: Tensor) -> Tensor:
    return (sum(layer(x) for layer in (net.a, net.b)) * 1 / 1) ** 1 - 0


def frozen_norm(net: Any, x: Tensor) -> Tensor:
    norm = net.n
    factor = (norm.weight * (norm.running_var + norm.eps).rsqrt()).reshape(1, -1, 1, 1)
    return net.a(x) * factor + (norm.bias.reshape(1, -1, 1, 1) - norm.running_mean.reshape(1, -1, 1, 1) * factor)


def written_out(net: Any, x: Tensor) -> Tensor:
    return 2.0 - (3.0 + (net.a(x) - 0.5) / 4.0) * 1.5


def positions(net: Any, x: Tensor) -> Tensor:
    wave = torch.arange(8) ** 2 / 10.0 ** (2 * torch.div(torch.arange(8).float(), 2, rounding_mode="floor") / 8)
    return net.a(x) + torch.cat((wave[0::2].sin(), wave[1::2].cos())).expand(8, -1)


def distances(net: Any, x: Tensor) -> Tensor:
    apart = (torch.arange(8)[None] - torch.arange(8)[:, None]).abs()
    far = 2 + (torch.log(apart.float() / 2) / math.log(2) * 2).long()
    return net.a(x) + net.e(torch.where(apart < 2, apart, torch.min(far, torch.full_like(far, 5)))).permute(2, 0, 1)


def centres(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    down, right = torch.meshgrid(torch.arange(y.shape[2]), torch.arange(y.shape[3]), indexing="ij")
    return y.sigmoid() + torch.cat((torch.stack((right, down)).float() + 0.5, torch.zeros(6, 8, 8)))


def empty_cells(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return torch.cat((y, torch.zeros_like(y[:, :2]), y.new_ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)), 1)


def alike(net: Any, x: Tensor) -> Tensor:
    a, b = net.a(x), net.c(x)
    rows = (F.cosine_similarity(a, b, dim=2), F.pairwise_distance(a, b, p=1.0), F.cosine_similarity(a, b))
    return torch.cat([each.flatten(1) for each in rows], 1)


def packed(net: Any, x: Tensor) -> Tensor:
    order = torch.arange(8)[None]
    started = torch.diff(order, prepend=order[:, :1] - 1, dim=-1) != 1
    return net.a(x).masked_fill(started.cumsum(-1) > 0, 0.0)


def written_table(net: Any, x: Tensor) -> Tensor:
    table = torch.zeros(8, 8) * 2
    table[1:3] = x[0, 0, 1:3] + torch.arange(8).float().sin()
    return net.a(x) + table


def conv(inputs: int = 3, outputs: int = 8, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "shuffle": (Net(shuffled, a=conv(), b=conv(8)), (1, 3, 8, 8)),
    "SSD heads": (Net(ssd_heads, a=conv(), c=conv()), (1, 3, 8, 8)),
    "attention": (Net(attention, a=conv()), (1, 3, 8, 8)),
    "windows": (Net(windows, a=conv()), (1, 3, 8, 8)),
    "no_grad, autocast, checkpoint": (Net(quiet_part, a=conv(), b=conv(8)), (1, 3, 8, 8)),
    "casts": (Net(casts, a=conv()), (1, 3, 8, 8)),
    "neutral arithmetic": (Net(neutral, a=conv(), b=conv(kernel=1)), (1, 3, 8, 8)),
    "frozen norm": (Net(frozen_norm, a=conv(bias=False), n=nn.BatchNorm2d(8)), (1, 3, 8, 8)),
    "numbers": (Net(written_out, a=conv()), (1, 3, 8, 8)),
    "positions": (Net(positions, a=conv()), (1, 3, 8, 8)),
    "distances": (Net(distances, a=conv(), e=nn.Embedding(6, 8)), (1, 3, 8, 8)),
    "centres": (Net(centres, a=conv()), (1, 3, 8, 8)),
    "empty cells": (Net(empty_cells, a=conv()), (1, 3, 8, 8)),
    "alike": (Net(alike, a=conv(), c=conv()), (1, 3, 8, 8)),
    "packed": (Net(packed, a=conv()), (1, 3, 8, 8)),
    "a table that is written to": (Net(written_table, a=conv()), (1, 3, 8, 8)),
    "norm over tokens": (nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)), (1, 5, 7)),
    "norm over other tokens": (nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(6), nn.ReLU()), (1, 6, 7)),
    "norm over channels of four axes": (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm2d(3)), (1, 3, 8, 8)),
    "norm behind linear": (nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)), (2, 7)),
    "norm alone, rank 2": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(7)), (2, 7)),
    "norm alone, rank 3": (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5)), (2, 5, 7)),
    "norm alone, rank 4": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(5)), (2, 5, 7, 3)),
    "norm alone, rank 5": (nn.Sequential(nn.ReLU(), nn.BatchNorm3d(5)), (2, 5, 7, 3, 2)),
    "norm behind conv3d": (nn.Sequential(nn.Conv3d(2, 5, 3), nn.BatchNorm3d(5)), (1, 2, 6, 5, 4)),
    "norm behind transposed": (nn.Sequential(nn.ConvTranspose1d(4, 5, 3), nn.BatchNorm1d(5)), (1, 4, 6)),
    "norm behind groups transposed": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        (1, 4, 5, 5),
    ),
    "norm behind conv without batch": (
        Net(lambda n, x: n.b(n.a(x)[None])[0], a=conv(), b=nn.BatchNorm2d(8)),
        (3, 8, 8),
    ),
    "conv1d without batch": (nn.Sequential(nn.Conv1d(2, 8, 5, padding="same"), nn.ReLU(), nn.Conv1d(8, 4, 3)), (2, 32)),
    "conv2d without batch": (nn.Sequential(nn.Conv2d(2, 8, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), (2, 9, 9)),
    "transposed without batch": (nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.AvgPool2d(2)), (2, 6, 6)),
}


def seeded(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` with random weights, and BatchNorm statistics that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.2 if "running_var" in name else -0.5))
    return net.eval()


def kinds(captured: Captured) -> list[str]:
    return [kind_of(n) or str(n.target) for n in captured.module.graph.nodes if n.op == "call_function"]


def same(net: nn.Module, shape: tuple[int, ...]) -> Captured:
    """The captured network, after it gave what the module gives."""
    captured = capture(net, (torch.zeros(shape),))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want, got = net(x), captured.module(x)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    return captured


@pytest.mark.parametrize("name", NETS)
def test_the_graph_is_the_network(name: str) -> None:
    net, shape = NETS[name]
    captured = same(seeded(net), shape)
    left = kinds(captured)
    assert not [k for k in left if "batch_norm" in k or "view" in k or "set_grad" in k or "autocast" in k]


def test_neutral_and_written_out_norms_leave_one_layer() -> None:
    assert kinds(same(seeded(NETS["neutral arithmetic"][0]), (1, 3, 8, 8))) == ["conv2d"]
    assert kinds(same(seeded(NETS["frozen norm"][0]), (1, 3, 8, 8))) == ["conv2d"]
    assert kinds(same(seeded(NETS["casts"][0]), (1, 3, 8, 8))) == ["conv2d", "cat"]


def test_likeness_is_norms_and_products() -> None:
    """Neither coremltools nor TVM's importer knows cosine_similarity or pairwise_distance as torch.export writes them."""
    left = {*kinds(same(seeded(NETS["alike"][0]), (1, 3, 8, 8)))}
    assert not [kind for kind in left if "similarity" in kind or "pairwise" in kind]


def test_what_no_input_decides_is_a_constant() -> None:
    assert kinds(same(seeded(NETS["positions"][0]), (1, 3, 8, 8))) == ["conv2d", "add"]
    assert kinds(same(seeded(NETS["distances"][0]), (1, 3, 8, 8))) == ["conv2d", "add"]
    assert kinds(same(seeded(NETS["centres"][0]), (1, 3, 8, 8))) == ["conv2d", "sigmoid", "add"]
    assert kinds(same(seeded(NETS["empty cells"][0]), (1, 3, 8, 8))) == ["conv2d", "cat"]
    assert kinds(same(seeded(NETS["packed"][0]), (1, 3, 8, 8))) == ["conv2d", "aten.masked_fill.Scalar"]


@settings(max_examples=20, deadline=None)
@given(st.integers(-3, 2), st.integers(1, 5), st.integers(1, 6))
def test_windows_of_a_series_are_moves(axis: int, size: int, step: int) -> None:
    """Tensor.unfold, which cuts a series into patches, overlapping, side by side or with gaps."""
    net = Net(lambda _, x: x.unfold(axis, size, step))
    assert {*kinds(same(net, (5, 6, 7)))} <= {"slice", "cat", "reshape", "permute"}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-2, 3), min_size=4, max_size=4), st.sampled_from([0.0, 1.5]))
def test_padding_by_a_negative_amount_is_a_slice(amounts: list[int], filled: float) -> None:
    captured = same(Net(lambda _, x: F.pad(x, amounts, value=filled)), (2, 5, 6))
    pads = [n for n in captured.module.graph.nodes if kind_of(n) == "pad"]
    assert all(a >= 0 for n in pads for a in n.args[1])


branches = st.tuples(
    st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3])), st.booleans(), st.sampled_from([1, 2, 4])
)


@settings(max_examples=30, deadline=None)
@given(st.lists(branches, min_size=2, max_size=4), st.sampled_from([1, 2]), st.booleans())
def test_parallel_branches_are_one_convolution(parts: list[Any], stride: int, identity: bool) -> None:
    """RepVGG, MobileOne, ACNet before they are reparameterised: branches of other kernels and groups, and a norm alone."""
    layers: dict[str, nn.Module] = {}
    for index, ((height, width), bias, groups) in enumerate(parts):
        layer = nn.Conv2d(4, 4, (height, width), stride, (height // 2, width // 2), groups=groups, bias=bias)
        layers[f"branch{index}"] = nn.Sequential(layer, nn.BatchNorm2d(4))
    if identity and stride == 1:
        layers["identity"] = nn.BatchNorm2d(4)

    def forward(net: Any, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in net.children())  # type: ignore[return-value] # of at least two tensors

    captured = same(seeded(Net(forward, **layers)), (1, 4, 9, 8))
    groups = [g for *_, g in parts]
    nested = all(max(a, b) % min(a, b) == 0 for a in groups for b in groups)
    assert nested and len(kinds(captured)) == 1


@pytest.mark.parametrize("make", [nn.Linear, nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("turned", [False, True])
def test_an_adapter_of_low_rank_becomes_part_of_its_layer(make: Any, turned: bool) -> None:
    """LoRA beside a linear or a 3-wide convolution, with a factor; a bottleneck of two layers alone stays two."""
    wide, point = (() if make is nn.Linear else (k,) for k in (3, 1))
    shape = (2, 8) if make is nn.Linear else (2, 8, *([9] * (1 if make is nn.Conv1d else 2)))

    def forward(net: Any, x: Tensor) -> Tensor:
        low = net.b(net.a(x)) * 0.5
        return low + net.base(x) if turned else net.base(x) + low

    net = Net(forward, base=make(8, 8, *wide), a=make(8, 2, *wide, bias=False), b=make(2, 8, *point))
    assert len(kinds(same(seeded(net), shape))) == 1
    assert len(kinds(same(seeded(Net(lambda n, x: n.b(n.a(x)), a=net.a, b=net.b)), shape))) == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(5, 9), st.booleans())
def test_a_ceiling_that_adds_no_window_goes(kernel: int, stride: int, padding: int, size: int, average: bool) -> None:
    pool = (nn.AvgPool2d if average else nn.MaxPool2d)(kernel, stride, min(padding, kernel // 2), ceil_mode=True)
    captured = same(nn.Sequential(conv(), pool), (1, 3, size, size))
    whole = (size + 2 * min(padding, kernel // 2) - kernel) % stride == 0
    at = 4 if average else 5
    left = [n.args[at] for n in captured.module.graph.nodes if "pool2d" in str(n.target) and len(n.args) > at]
    if whole:  # elsewhere torch may still drop a last window, one that begins in the padding
        assert not any(left)


def test_what_else_reads_a_branch_keeps_it() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        first = net.a(x)
        return torch.cat((first + net.b(x), first), 1)

    assert kinds(same(seeded(Net(forward, a=conv(), b=conv(kernel=1))), (1, 3, 8, 8))).count("conv2d") == 2


def test_a_residual_around_a_convolution_stays_an_addition() -> None:
    assert kinds(same(seeded(Net(lambda n, x: x + n.a(x), a=conv(3, 3))), (1, 3, 8, 8))) == ["conv2d", "add"]
