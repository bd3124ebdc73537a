"""torch.optim optimizers with 8-bit states: groups, state_dict and closures as torch has them, a quarter of the memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from edgeq.optim import native
from edgeq.optim.clipping import Clipping
from edgeq.optim.maps import blocks, decode, dynamic_map, encode
from edgeq.optim.stable import StableWeight
from edgeq.optim.update import Kind, Numbers, factors, rounded, update
from edgeq.spec import EdgeqError

SIZES = tuple(2**n for n in range(6, 13))  # of a block: whole registers, and a thread's first-level cache
TOO_LARGE = 2.0**50  # sums of many squares of what is below are finite
FIRST, SECOND = "exp_avg", "exp_avg_sq"
LARGEST = "_max"  # of a block, behind the name of its state
Parameters = Iterable[Any]


class Optimizer8bit(Optimizer):
    """What all have in common; `kind` names the update in edgeq.optim.update.

    block_size: values that share a scale, 2048 in the paper. min_8bit_size: parameters with fewer values keep float32 states;
    so does every parameter of a group with `bits=32`, and every StableWeight. percentile_clipping: below 100, a gradient
    whose norm is above that percentile of the parameter's last 100 norms is scaled down to it.
    """

    kind: Kind
    states: ClassVar[tuple[str, ...]]  # which of FIRST and SECOND there are

    def __init__(
        self,
        params: Parameters,
        defaults: dict[str, Any],
        *,
        block_size: int,
        min_8bit_size: int,
        percentile_clipping: float,
        maximize: bool,
    ) -> None:
        options = {"bits": 8, "percentile_clipping": percentile_clipping, "maximize": maximize}
        if block_size not in SIZES:
            raise EdgeqError(f"block_size {block_size}: use one of {', '.join(map(str, SIZES))}")
        self.block_size, self.min_8bit_size = block_size, min_8bit_size
        super().__init__(params, {**defaults, **options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see torch.optim.Optimizer.

        Raises:
            EdgeqError: a number of it is out of range, or a parameter is no dense float32 tensor.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
            for p in group["params"]:
                if p.dtype != torch.float32:
                    raise EdgeqError(
                        f"{self._name(p)} is {str(p.dtype).removeprefix('torch.')}: 8-bit states need float32 parameters; keep "
                        "them so, and let torch.autocast compute in half precision"
                    )
        except EdgeqError:
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        lr, bits, percentile = group["lr"], group["bits"], group["percentile_clipping"]
        if not 0 <= float(lr) < math.inf:
            raise EdgeqError(f"lr is {lr}: a learning rate is 0 or above")
        if not 0 <= group["weight_decay"] < math.inf:
            raise EdgeqError(f"weight_decay is {group['weight_decay']}: it is 0 or above")
        if not 0 <= group.get("eps", 0.0) < math.inf:
            raise EdgeqError(f"eps is {group['eps']}: it is 0 or above")
        for beta in group.get("betas", ()):
            if not 0 <= beta < 1:
                raise EdgeqError(f"betas are {group['betas']}: each is from 0 to below 1")
        if bits not in (8, 32):
            raise EdgeqError(f"bits is {bits}: 8, or 32 for float32 states")
        if not 0 < percentile <= 100:
            raise EdgeqError(f"percentile_clipping is {percentile}: a percentile above 0, or 100 for no clipping")

    def _numbers(self, group: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        """The scalars of the parameter's next step, `state["step"]` counted from 1; for edgeq.optim.update.Numbers."""
        raise EdgeqError(f"{type(self).__name__} has no rule of its own: use one of the optimizers of edgeq.optim")

    def _begin(self, p: Tensor, state: dict[str, Any], bits: int) -> None:
        """States of zeros: codes with a largest magnitude a block, or float32."""
        state["step"] = 0
        small = bits == 32 or isinstance(p, StableWeight) or p.numel() < self.min_8bit_size
        for name in self.states:
            if small:
                state[name] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                continue
            zero = dynamic_map(name == FIRST).zero
            state[name] = torch.full(p.shape, zero, dtype=torch.uint8, device=p.device)
            state[name + LARGEST] = torch.zeros(blocks(p.numel(), self.block_size), device=p.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss.

        Raises:
            EdgeqError: a gradient is infinite, NaN, above 2^50, or sparse. No parameter is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None]
        for p, _ in given:
            if p.grad.layout != torch.strided:
                raise EdgeqError(
                    f"the gradient of {self._name(p)} is sparse: use sparse=False in its embedding, or torch.optim.SparseAdam"
                )
            if p.grad.dtype != torch.float32:
                raise EdgeqError(
                    f"the gradient of {self._name(p)} is {p.grad.dtype}: 8-bit states need float32 gradients"
                )
        kernel = native.load()
        compiled = [pair for pair in given if kernel is not None and _dense(pair[0]) and _dense(pair[0].grad)]
        chosen = {id(p) for p, _ in compiled}
        by_torch = [pair for pair in given if id(pair[0]) not in chosen]
        self._refuse_unsound(kernel, [p for p, _ in compiled], [p for p, _ in by_torch])
        if kernel is not None and compiled:
            self._by_kernel(kernel, compiled)
        for p, group in by_torch:
            self._by_torch(p, group)
        return loss

    def _refuse_unsound(self, kernel: native.Native | None, compiled: list[Tensor], by_torch: list[Tensor]) -> None:
        wrong: Tensor | None = None
        if kernel is not None and compiled:
            array = native.parameter_array(len(compiled))
            for at, p in zip(array, compiled, strict=True):
                assert p.grad is not None
                native.fill(at, p, p.grad, None, None, Numbers())
            index = kernel.unsound(array, len(compiled))
            wrong = compiled[index] if index >= 0 else None
        for p in by_torch:
            if wrong is None and p.grad is not None and not bool((p.grad.abs() < TOO_LARGE).all()):
                wrong = p
        if wrong is not None:
            raise EdgeqError(
                f"the gradient of {self._name(wrong)} is infinite, NaN or above 2^50: lower the learning rate, or clip or scale "
                "the gradients; no parameter was changed"
            )

    def _next(self, p: Tensor, group: dict[str, Any]) -> Numbers:
        """Begin the parameter's state where there is none, count its step, and give the scalars."""
        state: dict[str, Any] = self.state[p]
        if not state:
            self._begin(p, state, group["bits"])
        state["step"] += 1
        scale = -1.0 if group["maximize"] else 1.0
        if group["percentile_clipping"] < 100:
            clipping = state.setdefault("norms", torch.zeros(0))
            factor, state["norms"] = Clipping(group["percentile_clipping"]).factor(p.grad, clipping, self.block_size)
            scale *= factor
        numbers: dict[str, Any] = {k: v if k == "plain" else rounded(v) for k, v in self._numbers(group, state).items()}
        return Numbers(**numbers, scale=rounded(scale))

    def _by_kernel(self, kernel: native.Native, given: list[tuple[Tensor, dict[str, Any]]]) -> None:
        full = [pair for pair in given if self._next_states_are_codes(*pair)]
        if full:
            array = native.parameter_array(len(full))
            for at, (p, group) in zip(array, full, strict=True):
                numbers, state = self._next(p, group), self.state[p]
                states = {n: (state[n], state[n + LARGEST]) for n in self.states}
                assert p.grad is not None
                native.fill(at, p, p.grad, states.get(FIRST), states.get(SECOND), numbers)
            kernel.step(self.kind, array, [p.numel() for p, _ in full], self.block_size)
        rest = {id(p) for p, _ in full}
        for p, group in given:
            if id(p) not in rest:
                self._by_torch(p, group)

    def _next_states_are_codes(self, p: Tensor, group: dict[str, Any]) -> bool:
        state = self.state.get(p)
        if state:
            return bool(state[self.states[0]].dtype == torch.uint8)
        return group["bits"] == 8 and not isinstance(p, StableWeight) and p.numel() >= self.min_8bit_size

    def _by_torch(self, p: Tensor, group: dict[str, Any]) -> None:
        numbers, state = self._next(p, group), self.state[p]
        held: dict[str, Tensor] = {}
        for name in self.states:
            kept, (reading, _) = state[name], factors(self.kind, numbers, name == FIRST)
            held[name] = (
                decode(kept, state[name + LARGEST] * reading, dynamic_map(name == FIRST), self.block_size)
                if kept.dtype == torch.uint8
                else kept * reading
            )
        if self.kind == "adam":
            held[FIRST] = torch.where(self._has_squares(state), held[FIRST], 0.0)
        assert p.grad is not None
        update(self.kind, p, p.grad, held.get(FIRST), held.get(SECOND), numbers)
        for name, value in held.items():
            _, writing = factors(self.kind, numbers, name == FIRST)
            if state[name].dtype == torch.uint8:
                codes, maxima = encode(value, dynamic_map(name == FIRST), self.block_size)
                state[name].copy_(codes)
                state[name + LARGEST].copy_(maxima * writing)
            else:
                state[name].copy_(value * writing)

    def _has_squares(self, state: dict[str, Any]) -> Tensor:
        """Where Adam's second moment is not stored as 0; elsewhere the first counts as 0 too.

        Of float32 states it is. Of codes it may be that only the second was below its block's least value, and
        first / epsilon would throw the weight far away.
        """
        squares: Tensor = state[SECOND]
        if squares.dtype != torch.uint8:
            return squares > 0
        scales: Tensor = (
            state[SECOND + LARGEST].repeat_interleave(self.block_size)[: squares.numel()].view(squares.shape)
        )
        return (squares > 0) & (scales > 0)

    def _name(self, p: Tensor) -> str:
        """The parameter as a user knows it: its name where named_parameters() were given, else group and place."""
        for number, group in enumerate(self.param_groups):
            for index, q in enumerate(group["params"]):
                if q is p:
                    names = group.get("param_names")
                    shape = f"[{', '.join(map(str, p.shape))}]"
                    return (
                        f"parameter {names[index]!r} {shape}"
                        if names
                        else f"parameter {index} {shape} of group {number}"
                    )
        return "a parameter"

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the block size, which the codes cannot be read without."""
        return {**super().state_dict(), "block_size": self.block_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state_dict of this optimizer, of bitsandbytes or of torchao; codes stay codes.

        Raises:
            EdgeqError: it is another model's, another optimizer's, of another block size, or not whole. Nothing is changed.
        """
        from edgeq.optim.checkpoint import read

        groups, states = read(self, state_dict)
        bare = {"param_groups": groups, "state": {}}
        super().load_state_dict(bare)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, state in states.items():
            p = parameters[index]
            self.state[p] = {
                k: v.detach().to(p.device).clone() if isinstance(v, Tensor) and k != "norms" else copy.deepcopy(v)
                for k, v in state.items()
            }


def _dense(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.device.type == "cpu" and tensor.is_contiguous()


def _adam_numbers(group: dict[str, Any], state: dict[str, Any], apart: bool) -> dict[str, Any]:
    lr, decay, (beta1, beta2) = float(group["lr"]), group["weight_decay"], group["betas"]
    step = state["step"]
    root = math.sqrt(
        (1 - beta2**step) / (1 - beta2)
    )  # of the squares' sum without factors and their bias-corrected mean
    return {
        "beta1": beta1 / (1 - beta1),
        "rest1": 1 - beta1,
        "beta2": beta2 / (1 - beta2),
        "rest2": 1 - beta2,
        "epsilon": group["eps"] * root,
        "rate": lr * (1 - beta1) / (1 - beta1**step) * root,
        "keep": 1 - lr * decay if apart else 1.0,
        "decay": 0.0 if apart else decay,
    }


class Adam8bit(Optimizer8bit):
    """torch.optim.Adam with 8-bit states: exp_avg (signed map) and exp_avg_sq (unsigned)."""

    kind: Kind = "adam"
    states = (FIRST, SECOND)
    apart = False  # whether the weight decay is apart from the gradient

    def __init__(
        self,
        params: Parameters,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        block_size: int = 2048,
        min_8bit_size: int = 4096,
        percentile_clipping: float = 100.0,
    ) -> None:
        if amsgrad:
            raise EdgeqError(
                "amsgrad=True has no 8-bit form: the largest second moment would be rounded anew in every step; leave it out, or "
                "use torch.optim.Adam"
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, block_size=block_size, min_8bit_size=min_8bit_size,
            percentile_clipping=percentile_clipping, maximize=maximize,
        )  # fmt: skip

    def _numbers(self, group: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        return _adam_numbers(group, state, self.apart)


class AdamW8bit(Adam8bit):
    """torch.optim.AdamW with 8-bit states; weight_decay is 0.01 where not given, as there."""

    apart = True

    def __init__(self, params: Parameters, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2, amsgrad: bool = False, **options: Any) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)


class SGD8bit(Optimizer8bit):
    """torch.optim.SGD with an 8-bit momentum buffer, which it therefore needs."""

    states = (FIRST,)

    def __init__(
        self,
        params: Parameters,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        block_size: int = 2048,
        min_8bit_size: int = 4096,
        percentile_clipping: float = 100.0,
    ) -> None:
        if not 0 < momentum < 1:
            raise EdgeqError(
                f"momentum is {momentum}: it is between 0 and 1 here; without one, torch.optim.SGD keeps no state at all"
            )
        if nesterov and dampening:
            raise EdgeqError("nesterov=True needs dampening=0, as in torch.optim.SGD")
        self.kind = "nesterov" if nesterov else "momentum"
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, block_size=block_size, min_8bit_size=min_8bit_size,
            percentile_clipping=percentile_clipping, maximize=maximize,
        )  # fmt: skip

    def _numbers(self, group: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        return {
            "beta1": group["momentum"],
            "rest1": 1 - group["dampening"],
            "rate": float(group["lr"]),
            "decay": group["weight_decay"],
            "plain": state["step"] == 1,
        }


class Lion8bit(Optimizer8bit):
    """Lion (Chen et al. 2023, algorithm 2) with an 8-bit momentum."""

    kind: Kind = "lion"
    states = (FIRST,)

    def __init__(
        self,
        params: Parameters,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        block_size: int = 2048,
        min_8bit_size: int = 4096,
        percentile_clipping: float = 100.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, block_size=block_size, min_8bit_size=min_8bit_size,
            percentile_clipping=percentile_clipping, maximize=maximize,
        )  # fmt: skip

    def _numbers(self, group: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        return {
            "beta1": beta1,
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            "rate": lr,
            "keep": 1 - lr * group["weight_decay"],
        }


class Adagrad8bit(Optimizer8bit):
    """torch.optim.Adagrad with an 8-bit sum of squares (unsigned map)."""

    kind: Kind = "adagrad"
    states = (SECOND,)

    def __init__(
        self,
        params: Parameters,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        block_size: int = 2048,
        min_8bit_size: int = 4096,
        percentile_clipping: float = 100.0,
    ) -> None:
        if not 0 <= lr_decay < math.inf:
            raise EdgeqError(f"lr_decay is {lr_decay}: it is 0 or above")
        defaults = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, block_size=block_size, min_8bit_size=min_8bit_size,
            percentile_clipping=percentile_clipping, maximize=maximize,
        )  # fmt: skip

    def _numbers(self, group: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        return {
            "epsilon": group["eps"],
            "rate": float(group["lr"]) / (1 + (state["step"] - 1) * group["lr_decay"]),
            "decay": group["weight_decay"],
        }
