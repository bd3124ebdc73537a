"""Which tensors may share a scale: one whose numbers a kernel fixes stands beside none that needs its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.graph.annotate import annotate, default_plan
from edgeq.graph.capture import capture
from edgeq.task import Task


class FixedBeside(nn.Module):
    """Boxes in pixels beside scores of a sigmoid, whose scale LiteRT's kernel fixes at 1/256; a concat of two sigmoids."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box, self.score = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        nn.init.constant_(self.box.bias, 100.0)  # type: ignore[arg-type] # there is one

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.relu(self.stem(x))
        box, score = self.box(y), self.score(y)
        mixed = torch.cat((box.flatten(2), score.sigmoid().flatten(2)), 1)
        alike = torch.cat((score.sigmoid(), box.sigmoid()), 1)
        return mixed, alike, torch.cat((score.tanh(), score.sigmoid()), 1)


def test_a_fixed_scale_is_forced_on_no_other_tensor() -> None:
    torch.manual_seed(0)
    net = FixedBeside().eval()
    batches = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    task = Task("fixed", lambda: net, lambda: batches[0], lambda: batches)
    model = api.quantize(task, target="litert")
    for batch in batches:
        with torch.no_grad():
            wanted = net(*batch)
        for real, seen in zip(wanted, model.qdq(batch), strict=True):
            assert float((seen - real).abs().max()) < 0.02 * float(real.abs().max())
    assert [k for k in model.islands if k.startswith("cat")] == ["cat"]  # boxes beside scores; the others requantize
    captured = capture(net, batches[0])
    target = backends.target("litert")
    annotation = annotate(captured, target, default_plan(captured, target, "minmax"))
    for group in annotation.groups:
        joined = [n for n in group.inputs if (group.key, n) not in annotation.apart]
        sets = {annotation.tensors.find(n) for n in (group.output, *joined)}
        assert not group.support.shared_scale or len(sets) == 1
        assert group.key != "cat#2" or len(joined) == 2  # two sigmoids share one scale
        if group.support.fixed_output is not None:
            numbers = annotation.tensors.fixed[annotation.tensors.find(group.output)]
            assert (numbers.scale[0], numbers.zero_point[0]) == group.support.fixed_output
