"""Objective `tgpl`, the task-guided global positive loss: what the whole network answers where its float form sees objects.

Zhou et al. 2024, LiDAR-PTQ (arXiv 2401.15865), section 3.3: the float network's final predictions are the label; boxes above
a score, the best of them, mark the positive cells, and classification and regression outputs of both networks are
compared there. The loss is the mean over outputs of Σ m · (ŷ − y)² / Σ m · y², with y of the float network, ŷ of the quantized
one and m the mask of positives; it is added to the span's local error, each in units of where it started. Which cells the
positives are only the task knows: its hook `positives(outputs)` says it. Ours: every output's difference is divided
by its own size at the positives, so that logits, metres and angles need no weights of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.cache import Cache
from edgeq.calib.objectives import Hook, Objective, plain
from edgeq.calib.view import View
from edgeq.graph.capture import Captured
from edgeq.spec import EdgeqError, Progress

# the hook: takes the float network's flat outputs for one calibration batch; returns one mask or weight per output
# (broadcastable to it, or None) that is above 0 where the detector's answers are, or None where there are none
HOOK: Final = "positives"
Positives = Callable[[tuple[Tensor, ...]], Sequence[Tensor | None] | None]


class TaskLoss(Objective):
    """Float outputs and positive masks of every frame, in a cache; the loss against them."""

    needs: ClassVar[frozenset[str]] = frozenset({f"{HOOK}()"})
    behind: ClassVar[bool] = True

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.positives: Positives = lambda outputs: None
        self.names: list[str] = []  # of the outputs, for errors
        self.frames: list[int] = []  # those with positives
        self.power = torch.zeros(0, dtype=torch.float64)  # squared float outputs at the positives, all frames

    def prepare(self, captured: Captured, hook: Hook) -> None:
        """The task's positives(), which takes the float outputs of one frame.

        Raises:
            EdgeqError: it has none.
        """
        positives: Positives | None = hook(HOOK)
        if positives is None:
            raise EdgeqError(
                "objective 'tgpl' looks at the cells where the detector's answers are: add positives(outputs) to the "
                "task file, which takes the float outputs of one batch and returns one mask per output (1 at positives); see "
                "examples/centerpoint_pillar.py, or use recipe 'adaround', which needs none"
            )
        self.positives, self.names = positives, [o.name for o in captured.outputs]
        self.power = torch.zeros(len(self.names), dtype=torch.float64)

    def see(self, cache: Cache, frame: int, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Take in the float outputs of `frame`; returns its masks.

        Raises:
            EdgeqError: positives() returned something else than a mask or None for each output.
        """
        masks = self._masks(self.positives(outputs), outputs)
        for i, (output, mask) in enumerate(zip(outputs, masks, strict=True)):
            cache.write(f"target {i}", frame, output, 1)
            cache.write(f"mask {i}", frame, mask, 1)
            self.power[i] += (mask * output.square()).sum().double()
        if any(bool(m.any()) for m in masks):
            self.frames.append(frame)
        return masks

    def loss(self, view: View, values: Mapping[Node, Any], start: int, stop: int) -> Tensor:
        """What lies behind the span computes in float on what the span gives."""
        return self.difference(view.twins.cache, view.outputs(values, view.twins.seen, start, stop), start, stop)

    def difference(self, cache: Cache, outputs: Mapping[int, Tensor], start: int, stop: int) -> Tensor:
        """Mean over outputs of squared difference over squared size at the positives; 0-d, one frame's share of them.

        outputs: index → quantized network's output for frames `start` to `stop`, those that can still change.
        """
        total = torch.zeros(())
        for i, found in outputs.items():
            if self.power[i] > 0:
                mask, target = (cache.read(f"{name} {i}", start, stop) for name in ("mask", "target"))
                each = float(self.power[i]) / len(self.frames)
                total = total + (mask * (found - target).square()).sum() / each
        return total / (len(self.names) * (stop - start))

    def guides(self, start: int, stop: int) -> bool:
        """Whether any of the frames `start` to `stop` has positives."""
        return any(start <= frame < stop for frame in self.frames)

    def ready(self, frames: int, progress: Progress) -> None:
        """Say how many of so many frames guide nothing.

        Raises:
            EdgeqError: none guides.
        """
        missing = frames - len(self.frames)
        if not self.frames:
            raise EdgeqError(
                f"positives() marks nothing in any of the {frames} calibration batches: give frames in which the float network "
                "finds objects, or lower the score that positives() asks for"
            )
        progress(f"positives: {missing} of {frames} batches have none and guide nothing", len(self.frames), frames)

    def _masks(self, given: Any, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        if given is None:
            given = [None] * len(outputs)
        if not isinstance(given, (tuple, list)) or len(given) != len(outputs):
            raise EdgeqError(
                f"positives() must return one mask or None for each of the {len(outputs)} outputs "
                f"({', '.join(self.names)}), or None for a frame without positives; it returned {_described(given)}"
            )
        masks = []
        for name, mask, output in zip(self.names, given, outputs, strict=True):
            if mask is not None and not isinstance(mask, Tensor):
                raise EdgeqError(f"positives(): the mask of output {name!r} is a {type(mask).__name__}, not a tensor")
            try:
                masks.append(torch.zeros_like(output) if mask is None else mask.float().expand_as(output).contiguous())
            except RuntimeError as error:
                raise EdgeqError(
                    f"positives(): the mask of output {name!r} has shape {tuple(mask.shape)}, "  # type: ignore[union-attr] # None fits always
                    f"which does not broadcast to {tuple(output.shape)}"
                ) from error
        return masks


def objective(option: str) -> TaskLoss:
    """It takes no option."""
    plain(option, "tgpl")
    return TaskLoss()


def _described(given: Any) -> str:
    return f"{len(given)} of them" if isinstance(given, (tuple, list)) else f"a {type(given).__name__}"
