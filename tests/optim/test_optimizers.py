"""The optimizers compute the published equations on states of a byte a value, to the same bytes on every path."""

from __future__ import annotations

import copy
import ctypes
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from optimizer_equations import Reference

from edgeq import optim
from edgeq.optim import maps, native
from edgeq.spec import EdgeqError

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Adam": ("Adam8bit", {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}),
    "AdamW": ("AdamW8bit", {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}),
    "SGD": ("SGD8bit", {"lr": 1e-2, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1, "nesterov": False}),
    "Nesterov": ("SGD8bit", {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "Lion": ("Lion8bit", {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    "Adagrad": ("Adagrad8bit", {"lr": 1e-2, "lr_decay": 0.1, "eps": 1e-10, "weight_decay": 0.1}),
}
PATHS = (*native.paths(), "torch")


def made(kind: str, parameters: Any, **options: Any) -> Any:
    name, own = KINDS[kind]
    return getattr(optim, name)(parameters, **{**own, **options})


def reference(kind: str, p: torch.Tensor) -> Reference:
    name, own = KINDS[kind]
    flat = {"dampening": 0.0, **{k: v for k, v in own.items() if k != "betas"}}
    flat |= dict(zip(("beta1", "beta2"), own.get("betas", ()), strict=False))
    return Reference(name, p.detach().numpy(), **flat)


def decoded(state: dict[str, Any], name: str, block: int) -> np.ndarray:
    """By NumPy: the map's value of each code times its block's scale."""
    values = maps.dynamic_map(name == "exp_avg").values.numpy()[state[name].numpy().reshape(-1)].astype(np.float64)
    scales: np.ndarray = np.repeat(state[f"{name}_max"].numpy(), block)[: len(values)]
    return values * scales


@pytest.mark.parametrize("kind", KINDS)
def test_float32_states_follow_the_equations(kind: str) -> None:
    draw = torch.Generator().manual_seed(1)
    p = torch.nn.Parameter(torch.randn(37, 11, generator=draw))
    exact, optimizer = reference(kind, p), made(kind, [p])  # below min_8bit_size
    for _ in range(20):
        p.grad = torch.randn(37, 11, generator=draw)
        exact.step(p.grad.numpy())
        optimizer.step()
    assert np.abs(p.detach().numpy() - exact.p).max() <= 2e-6 * np.abs(exact.p).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [64, 2048])
def test_a_step_from_8_bit_states_follows_the_equations(kind: str, block: int) -> None:
    """From the states as they decode, one step in float64: the parameters agree, and the new codes are the nearest."""
    draw = torch.Generator().manual_seed(2)
    p = torch.nn.Parameter(torch.randn(5003, generator=draw))
    optimizer = made(kind, [p], block_size=block)
    for _ in range(4):
        p.grad = torch.randn(5003, generator=draw)
        exact, state = reference(kind, p), optimizer.state[p]
        if state:
            exact.t = state["step"]
            for name in optimizer.states:
                setattr(exact, "m" if name == "exp_avg" else "v", decoded(state, name, block))
            if "Adam" in kind:  # the one rule of our own: docs/optim.md says why
                exact.m[exact.v == 0] = 0
        exact.step(p.grad.numpy())
        optimizer.step()
        assert np.abs(p.detach().numpy() - exact.p).max() <= 1e-6 * np.abs(exact.p).max()
        for name in optimizer.states:
            wanted, widest = (exact.m, 0.9 / 64) if name == "exp_avg" else (exact.v, 0.9 / 128)
            scales = np.repeat(state[f"{name}_max"].numpy(), block)[:5003]
            assert (np.abs(decoded(state, name, block) - wanted) <= (widest / 2 + 1e-6) * scales).all()


def trained(kind: str, path: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What parameters and states are after four steps of four tensors: some blocks whole, some not, one with float32 states."""
    monkeypatch.setenv(native.CHOICE, path)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        draw = torch.Generator().manual_seed(3)
        shapes = [(70, 1003), (4096,), (300,), (3, 4099)]
        parameters = [torch.nn.Parameter(torch.randn(s, generator=draw)) for s in shapes]
        optimizer = made(kind, parameters, block_size=256)
        for _ in range(4):
            for p in parameters:
                kept = torch.rand(p.shape, generator=draw) < 0.8
                p.grad = (
                    torch.randn(p.shape, generator=draw) * kept * 10.0 ** torch.randint(-6, 1, (1,), generator=draw)
                )
            optimizer.step()
        states = [v for p in parameters for _, v in sorted(optimizer.state[p].items()) if isinstance(v, torch.Tensor)]
        return [p.detach() for p in parameters] + states
    finally:
        torch.set_num_threads(before)


def test_the_kernel_is_there_where_it_could_be_compiled() -> None:
    assert native.paths() or shutil.which("g++") is None, "install edgeq anew: pip install -e . builds native/optim.cpp"


def test_a_library_of_another_version_is_not_used() -> None:
    """What an earlier installation left behind has other arguments; the C library stands for one without a version."""
    assert not native.is_current(ctypes.CDLL(None))
    library = native._library()
    assert library is None or native.is_current(library)


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_and_any_number_of_threads_gives_the_same_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = trained(kind, "torch", 1, monkeypatch)
    for path, threads in [*((p, 1) for p in PATHS[:-1]), (PATHS[0], 2), (PATHS[-2], 3), ("torch", 2)]:
        got = trained(kind, path, threads, monkeypatch)
        same = [a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(got, wanted, strict=True)]
        assert all(same), (path, threads)


def test_zeros_stay_zero() -> None:
    """Where a gradient is always 0 nothing moves, however large its neighbours' are."""
    p = torch.nn.Parameter(torch.ones(8192))
    optimizer = optim.AdamW8bit([p], lr=1e-2, weight_decay=0.0)
    for _ in range(30):
        p.grad = torch.randn(8192) * (torch.arange(8192) % 2)
        optimizer.step()
    assert torch.equal(p.detach()[::2], torch.ones(4096))
    assert (p.detach()[1::2] != 1).all()


def test_a_gradient_that_vanishes_beside_large_ones_moves_its_weight_no_further_than_adam_does() -> None:
    """Its second moment is below its block's least code while its first is not: first / epsilon would be without bound."""
    p, plain = torch.nn.Parameter(torch.zeros(4096)), torch.nn.Parameter(torch.zeros(4096))
    optimizer, exact = optim.AdamW8bit([p], lr=1e-3), torch.optim.AdamW([plain], lr=1e-3)
    for i in range(20):
        grad = torch.ones(4096)
        grad[0] = 1e-5 if i < 3 else 0.0
        p.grad, plain.grad = grad, grad.clone()
        optimizer.step()
        exact.step()
    assert 0 < abs(float(p[0].detach())) <= 2 * abs(float(plain[0].detach()))


def test_states_take_a_byte_a_value() -> None:
    p = torch.nn.Parameter(torch.randn(1 << 16))
    optimizer = optim.AdamW8bit([p])
    p.grad = torch.randn(1 << 16)
    optimizer.step()
    tensors = [v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)]
    assert sum(t.numel() * t.element_size() for t in tensors) / p.numel() <= 2.1


def test_parameters_in_any_layout_and_without_gradients() -> None:
    """A transposed parameter with a gradient of another layout is updated as its contiguous copy; one without stays."""
    draw = torch.Generator().manual_seed(4)
    value, slope = torch.randn(96, 64, generator=draw), torch.randn(96, 64, generator=draw)
    turned = torch.nn.Parameter(value.t().contiguous().t())
    plain, idle = torch.nn.Parameter(value.clone()), torch.nn.Parameter(torch.ones(5000))
    turned.grad, plain.grad = slope.clone(), slope.clone()
    optimizer = optim.AdamW8bit([turned, plain, idle], lr=0.1)
    optimizer.step()
    assert torch.equal(turned.detach(), plain.detach())
    assert torch.equal(idle.detach(), torch.ones(5000))
    assert idle not in optimizer.state


def test_groups_and_overrides_choose_the_states() -> None:
    small, forced = torch.nn.Parameter(torch.randn(4095)), torch.nn.Parameter(torch.randn(5000))
    large = torch.nn.Parameter(torch.randn(5000))
    embedding = optim.StableEmbedding(100, 64)
    optimizer = optim.AdamW8bit(
        [{"params": [small, large, embedding.weight]}, {"params": [forced], "bits": 32, "lr": 0.0}], lr=0.1
    )
    before = forced.detach().clone()
    for p in (small, large, forced, embedding.weight):
        p.grad = torch.ones_like(p)
    optimizer.step()
    dtypes = [optimizer.state[p]["exp_avg"].dtype for p in (small, large, forced, embedding.weight)]
    assert dtypes == [torch.float32, torch.uint8, torch.float32, torch.float32]
    assert torch.allclose(forced.detach(), before)
    assert not torch.equal(small.detach(), torch.zeros(4095))


def test_a_copy_of_a_stable_embedding_keeps_its_32_bits() -> None:
    copied = copy.deepcopy(optim.StableEmbedding(100, 64, padding_idx=3))
    assert torch.equal(copied.weight[3].detach(), torch.zeros(64))
    optimizer = optim.AdamW8bit(copied.parameters())
    rows = copied(torch.tensor([[1, 2, 5]]))
    assert rows.mean(-1).abs().max() < 1e-5  # normalised
    rows.square().sum().backward()
    optimizer.step()
    assert optimizer.state[copied.weight]["exp_avg"].dtype == torch.float32


def test_percentile_clipping_holds_an_outlier_down() -> None:
    p = torch.nn.Parameter(torch.zeros(4096))
    optimizer = optim.SGD8bit([p], lr=1.0, momentum=0.5, percentile_clipping=50)
    for norm in (1.0, 2.0, 3.0, 1000.0):
        before = p.detach().clone()
        p.grad = torch.full((4096,), norm / 64)  # a vector of this norm
        optimizer.step()
    moved = float((p.detach() - before).norm())
    # the median of 1, 2, 3, 1000 is 2; the buffer before is 2 + 0.5·(1 + 0.5·1), each clipped to the median until then
    assert moved == pytest.approx(2 + 0.5 * (2 + 0.5 * (1 + 0.5 * 1)), rel=0.02)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1.2e15])
def test_a_bad_gradient_is_refused_by_name_and_changes_nothing(
    bad: float, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.CHOICE, path)
    model = torch.nn.Sequential(torch.nn.Linear(80, 80), torch.nn.Linear(80, 80))
    optimizer = optim.AdamW8bit(model.named_parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    model[1].weight.grad[70, 3] = bad
    with pytest.raises(EdgeqError, match=r"1\.weight.*no parameter was changed"):
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("path", PATHS)
def test_the_largest_gradients_that_are_taken_leave_finite_states(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of squares that Adam keeps beside its map is a thousand times and more the mean of them that is stored."""
    monkeypatch.setenv(native.CHOICE, path)
    p = torch.nn.Parameter(torch.zeros(4096))
    optimizer = optim.AdamW8bit([p], lr=1e-3, betas=(0.9, 0.99999), weight_decay=0.0)
    for _ in range(30):
        p.grad = torch.full((4096,), 1.1e15)  # below 2^50
        optimizer.step()
    assert torch.allclose(p.detach(), torch.full((4096,), -0.03), rtol=1e-4)  # the gradient never changes: lr a step
    assert optimizer.state[p]["exp_avg_sq_max"].isfinite().all()


def test_what_cannot_be_updated_is_refused_in_a_sentence() -> None:
    p = torch.nn.Parameter(torch.zeros(4096))
    with pytest.raises(EdgeqError, match="amsgrad"):
        optim.AdamW8bit([p], amsgrad=True)
    with pytest.raises(EdgeqError, match=r"parameter 0 .*float16.*autocast"):
        optim.Adam8bit([torch.nn.Parameter(torch.zeros(8, dtype=torch.float16))])
    with pytest.raises(EdgeqError, match="block_size 100"):
        optim.Lion8bit([p], block_size=100)
    with pytest.raises(EdgeqError, match="momentum is 0"):
        optim.SGD8bit([p], momentum=0)
    table = torch.nn.Embedding(100, 64, sparse=True)
    optimizer = optim.Adagrad8bit(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(EdgeqError, match=r"parameter 0 .*is sparse.*sparse=False"):
        optimizer.step()
