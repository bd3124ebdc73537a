"""States go through a checkpoint unchanged, those of bitsandbytes and torchao come in, and what does not fit is refused."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch

from edgeq import optim
from edgeq.spec import EdgeqError

CLASSES = ("Adam8bit", "AdamW8bit", "SGD8bit", "Lion8bit", "Adagrad8bit")


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(s, generator=draw)) for s in shapes or ((70, 100), (33,))]


def step(optimizer: Any, given: list[torch.nn.Parameter], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in given:
        p.grad = torch.randn(p.shape, generator=draw)
    optimizer.step()


@pytest.mark.parametrize("name", CLASSES)
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(name: str) -> None:
    given = parameters()
    optimizer = getattr(optim, name)(given, percentile_clipping=90, lr=1e-3)
    step(optimizer, given, 1)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_parameters = copy.deepcopy(given)
    resumed = getattr(optim, name)(resumed_parameters, lr=123.0)
    resumed.load_state_dict(torch.load(file))  # weights_only
    for seed in (2, 3):
        step(optimizer, given, seed)
        step(resumed, resumed_parameters, seed)
    assert resumed.param_groups[0]["lr"] == 1e-3
    assert all(torch.equal(a, b) for a, b in zip(given, resumed_parameters, strict=True))
    for a, b in zip(given, resumed_parameters, strict=True):
        for key, value in optimizer.state[a].items():
            other = resumed.state[b][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            assert not isinstance(value, torch.Tensor) or value.dtype == other.dtype


def dynamic(signed: bool) -> torch.Tensor:
    """The map that bitsandbytes writes beside its codes, by its definition."""
    found = [0.0, 1.0]
    for exponent in range(7):
        limits = torch.linspace(0.1, 1, 2 ** (exponent if signed else exponent + 1) + 1)
        found += (means := 10.0 ** (exponent - 6) * ((limits[:-1] + limits[1:]) / 2)).tolist()
        found += (-means).tolist() if signed else []
    return torch.tensor(sorted(found))


def of_bitsandbytes(count: int, signs: tuple[bool, ...], wrapped: bool) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(6)
    tensors: dict[str, torch.Tensor] = {}
    for place, signed in enumerate(signs, 1):
        tensors[f"state{place}"] = torch.randint(0, 256, (count,), generator=draw, dtype=torch.uint8)
        tensors[f"qmap{place}"] = dynamic(signed)
        tensors[f"absmax{place}"] = torch.rand(-(-count // 256), generator=draw)
    return {"step": 7, **({"__bnb_optimizer_quant_state__": tensors} if wrapped else tensors)}


def values(state: dict[str, Any], place: int) -> np.ndarray:
    """What bitsandbytes would decode."""
    codes = state[f"state{place}"].numpy().astype(int)
    scales = np.repeat(state[f"absmax{place}"].numpy().astype(np.float64), 256)[: len(codes)]
    decoded: np.ndarray = state[f"qmap{place}"].numpy()[codes] * scales
    return decoded


@pytest.mark.parametrize("wrapped", [True, False])
def test_states_of_bitsandbytes_come_in_code_by_code(wrapped: bool) -> None:
    (p,) = parameters((5000,))
    saved = of_bitsandbytes(5000, (True, False), wrapped)
    group = {"lr": 0.5, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.0, "alpha": 0.0, "params": [0]}
    optimizer = optim.AdamW8bit([p], block_size=256)
    optimizer.load_state_dict({"state": {0: saved}, "param_groups": [group]})
    plain = saved.get("__bnb_optimizer_quant_state__", saved)
    state = optimizer.state[p]
    assert state["step"] == 7
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert torch.equal(state["exp_avg"], plain["state1"])
    assert torch.equal(state["exp_avg_sq"], plain["state2"])
    assert torch.equal(state["exp_avg_max"], plain["absmax1"])
    before, m, v = p.detach().numpy().astype(np.float64), values(plain, 1), values(plain, 2)
    p.grad = torch.ones(5000)
    optimizer.step()
    m, v = 0.8 * m + 0.2, 0.9 * v + 0.1  # Adam's equations at step 8
    wanted = before - 0.5 * (m / (1 - 0.8**8)) / (np.sqrt(v / (1 - 0.9**8)) + 1e-7)
    near = plain["state2"].numpy() > 0  # where it is 0 the first counts as 0 too
    assert np.abs(p.detach().numpy() - wanted)[near].max() < 1e-5


def test_a_sum_of_squares_that_bitsandbytes_keeps_in_the_signed_map_is_encoded_anew() -> None:
    (p,) = parameters((5000,))
    saved = of_bitsandbytes(5000, (True,), wrapped=True)
    tensors = saved["__bnb_optimizer_quant_state__"]
    tensors["state1"] = tensors["state1"].clamp(min=127)  # squares
    optimizer = optim.Adagrad8bit([p], block_size=256)
    optimizer.load_state_dict({"state": {0: saved}, "param_groups": [{"lr": 0.1, "params": [0]}]})
    state = optimizer.state[p]
    got = dynamic(False).numpy()[state["exp_avg_sq"].numpy()] * np.repeat(state["exp_avg_sq_max"].numpy(), 256)[:5000]
    scales = np.repeat(tensors["absmax1"].numpy(), 256)[:5000]
    assert (np.abs(got - values(tensors, 1)) <= 0.0036 * scales).all()


def test_states_of_torchao_come_in_code_by_code() -> None:
    from torchao.optim import AdamW8bit as Torchao
    from torchao.optim.subclass_8bit import OptimState8bit

    given = parameters((32, 256), (10,))
    theirs = Torchao(given, lr=0.25, weight_decay=0.0)
    draw = torch.Generator().manual_seed(8)
    for p in given:  # what its step keeps, without its compiler
        state = theirs.state[p]
        state["step"] = torch.tensor(3.0)
        state["exp_avg"], state["exp_avg_sq"] = (theirs._new_buffer(p, signed) for signed in (True, False))
        state["exp_avg"].copy_(torch.randn(p.shape, generator=draw))
        state["exp_avg_sq"].copy_(torch.rand(p.shape, generator=draw))
    assert isinstance(theirs.state[given[0]]["exp_avg"], OptimState8bit)
    optimizer = optim.AdamW8bit(given, block_size=256)
    optimizer.load_state_dict(theirs.state_dict())
    state, own = theirs.state[given[0]], optimizer.state[given[0]]
    assert own["step"] == 3
    assert optimizer.param_groups[0]["lr"] == 0.25
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(own[name], state[name].codes)
        assert torch.equal(own[f"{name}_max"], state[name].scale)
        assert torch.equal(optimizer.state[given[1]][name], theirs.state[given[1]][name])  # below 4096: float32
    step(optimizer, given, 9)
    with pytest.raises(EdgeqError, match=r"blocks of 256 values, the optimizer of 2048: make it with block_size=256"):
        optim.AdamW8bit(given).load_state_dict(theirs.state_dict())


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    given = parameters()
    optimizer = optim.AdamW8bit(given)
    step(optimizer, given, 1)
    whole = optimizer.state_dict()
    before = copy.deepcopy(whole)

    def edited(change: Any) -> dict[str, Any]:
        state = copy.deepcopy(whole)
        change(state)
        return state

    first = r"parameter 0 \[70, 100\] of group 0"
    for change, said in (
        (lambda s: s.pop("state"), "it has no state and param_groups"),
        (lambda s: s["param_groups"][0]["params"].pop(), r"another model's state: its groups have 1 parameters"),
        (lambda s: s["state"][0].pop("exp_avg_sq"), rf"{first} is not whole.*no exp_avg_sq"),
        (lambda s: s["state"][0].pop("step"), rf"{first} is not whole.*no step"),
        (lambda s: s["state"][0].pop("exp_avg_max"), rf"{first} is not whole.*exp_avg_max is nothing"),
        (lambda s: s["state"][0].update(exp_avg_max=s["state"][0]["exp_avg_max"][:-1]), "exp_avg_max is"),
        (lambda s: s["state"][0].update(exp_avg=s["state"][0]["exp_avg"][:60]), r"another model's.*\[60, 100\]"),
        (lambda s: s["state"][0]["exp_avg_max"].fill_(float("nan")), "damaged"),
        (lambda s: s.update(block_size=256), "blocks of 256 values, the optimizer of 2048.*block_size=256"),
        (lambda s: s["param_groups"][0].update(amsgrad=True), "AMSGrad"),
        (lambda s: s["state"].update({9: s["state"][0]}), "parameter 9, which no group names"),
    ):
        with pytest.raises(EdgeqError, match=said):
            optimizer.load_state_dict(edited(change))
        assert str(optimizer.state_dict()) == str(before)
