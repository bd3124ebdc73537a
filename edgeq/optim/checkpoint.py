"""A state_dict, checked against the optimizer that is to go on from it before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeq.optim.maps import blocks, dynamic_map, encode
from edgeq.spec import EdgeqError

if TYPE_CHECKING:
    from edgeq.optim.optimizers import Optimizer8bit

WRAPPED = "__bnb_optimizer_quant_state__"  # where bitsandbytes puts a parameter's tensors, out of FSDP's sight
SAME = 1e-6  # relative: maps that differ by less are one, computed elsewhere


def read(optimizer: Optimizer8bit, state_dict: Any) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Parameter groups, and each parameter's state by its number over all groups.

    Raises:
        EdgeqError: another model's, another optimizer's, another block size's, or not whole.
    """
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise EdgeqError("this is no state_dict of an optimizer: it has no state and param_groups")
    size = state_dict.get("block_size", optimizer.block_size)
    if size != optimizer.block_size:
        raise EdgeqError(
            f"this state has blocks of {size} values, the optimizer of {optimizer.block_size}: make it with block_size={size}"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    ours = optimizer.param_groups
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in ours]:
        raise EdgeqError(
            f"this is another model's state: its groups have {', '.join(str(len(g['params'])) for g in groups)} parameters, "
            f"the optimizer's {', '.join(str(len(g['params'])) for g in ours)}"
        )
    if any(g.get("amsgrad") for g in groups):
        raise EdgeqError("this state is of AMSGrad, whose largest second moments have no 8-bit form here: start anew")
    parameters = [p for g in ours for p in g["params"]]
    numbers = {key: index for index, key in enumerate(key for g in groups for key in g["params"])}
    found: dict[int, dict[str, Any]] = {}
    for key, held in state.items():
        if key not in numbers:
            raise EdgeqError(f"this state_dict is not whole: it has a state of parameter {key!r}, which no group names")
        p = parameters[numbers[key]]
        found[numbers[key]] = _checked(optimizer, p, _ours(optimizer, p, held))
    kept = [
        {**mine, **{k: _number(v) for k, v in theirs.items() if k in mine or k == "initial_lr"}}
        for mine, theirs in zip(ours, groups, strict=True)
    ]
    return [{**group, "params": theirs["params"]} for group, theirs in zip(kept, groups, strict=True)], found


def _number(option: Any) -> Any:
    """torchao's learning rate is a tensor."""
    return float(option) if isinstance(option, Tensor) and option.numel() == 1 else option


def _ours(optimizer: Optimizer8bit, p: Tensor, held: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state under our names: bitsandbytes has state1, qmap1 and absmax1, torchao a tensor with codes."""
    found = {**held, **held.get(WRAPPED, {})}
    for place, name in enumerate(optimizer.states, 1):
        value, qmap, scale = found.get(f"state{place}"), found.get(f"qmap{place}"), found.get(f"absmax{place}")
        if value is None:
            value = found.get(name, found.get({"exp_avg": "momentum_buffer", "exp_avg_sq": "sum"}[name]))
            if value is None or not hasattr(value, "codes"):
                found[name] = value
                continue
            value, qmap, scale = value.codes, value.qmap, value.scale
        found[name] = value
        if value.dtype == torch.uint8 and isinstance(scale, Tensor):
            found[name], found[f"{name}_max"] = _recoded(optimizer, p, name, value, qmap, scale)
    return found


def _recoded(
    optimizer: Optimizer8bit, p: Tensor, name: str, codes: Tensor, qmap: Any, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes and scales in our map: as they are where theirs is the same, else their values encoded anew."""
    size, which = optimizer.block_size, dynamic_map(name == "exp_avg")
    if scale.numel() != blocks(p.numel(), size) and codes.numel() == p.numel():
        theirs = 1 << (-(-codes.numel() // max(1, scale.numel())) - 1).bit_length()
        raise EdgeqError(
            f"{name} of {optimizer._name(p)} has blocks of {theirs} values, the optimizer of {size}: make it with "
            f"block_size={theirs}"
        )
    if not isinstance(qmap, Tensor) or qmap.shape != which.values.shape:
        raise EdgeqError(f"{name} of {optimizer._name(p)} has codes without the map of 256 values that they count")
    if torch.allclose(qmap.float().cpu(), which.values, rtol=SAME, atol=0) or codes.shape != p.shape:
        return codes, scale
    values = qmap.float()[codes.flatten().long()] * scale.float().repeat_interleave(size)[: codes.numel()]
    return encode(values.view(codes.shape), which, size)


def _checked(optimizer: Optimizer8bit, p: Tensor, held: dict[str, Any]) -> dict[str, Any]:
    """One parameter's state, if it is whole and of this parameter."""
    where = optimizer._name(p)
    step = held.get("step")
    if isinstance(step, Tensor) and step.numel() == 1:
        held["step"] = int(step)
    if not isinstance(held.get("step"), int) or held["step"] < 1:
        raise EdgeqError(f"the state of {where} is not whole: it has no step count")
    for name in optimizer.states:
        value, maxima = held.get(name), held.get(f"{name}_max")
        if not isinstance(value, Tensor):
            raise EdgeqError(f"the state of {where} is not whole, or another optimizer's: it has no {name}")
        if value.shape != p.shape:
            raise EdgeqError(
                f"this is another model's state: {name} of {where} has the shape {list(value.shape)}, not {list(p.shape)}"
            )
        if value.dtype == torch.uint8:
            wanted = blocks(p.numel(), optimizer.block_size)
            if not isinstance(maxima, Tensor) or maxima.shape != (wanted,):
                got = list(maxima.shape) if isinstance(maxima, Tensor) else "nothing"
                raise EdgeqError(
                    f"the state of {where} is not whole: {name}_max is {got}, not the scales of {wanted} blocks"
                )
            maxima = held[f"{name}_max"] = maxima.float()
            if not bool((maxima >= 0).all()) or not bool(maxima.isfinite().all()):
                raise EdgeqError(f"the state of {where} is damaged: a block's scale is below 0, infinite or NaN")
        else:
            held[name] = value.float()
            if not bool(held[name].isfinite().all()):
                raise EdgeqError(f"the state of {where} is damaged: {name} has infinite values or NaN")
    known = {"step", "norms", *(n + end for n in optimizer.states for end in ("", "_max"))}
    return {key: value for key, value in held.items() if key in known}
