#!/usr/bin/env bash
# torchmetrics has two mean IoUs, and a model can be the better one by either.
#
# Expected: segmentation.MeanIoU and JaccardIndex(average="macro") are the same number of the same masks.
# Guess before running: equal. Wrong.
# What happens: JaccardIndex sums intersections and unions over the whole set and divides once, the mIoU of Cityscapes, KITTI and
# nuScenes; MeanIoU forms the IoU of each image and averages the images, so a class of one pixel in one image weighs as much
# as the road in another. A model that misses one pixel of 200 scores 0.987 by one and 0.748 by the other; one that misses
# thirty pixels of a road scores 0.622 and 0.756: each metric has its own winner.
# Hurts: who logs MeanIoU, as the name in the papers suggests, and compares with published mIoU, or picks by it the model to ship.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import torchmetrics
from torchmetrics import JaccardIndex
from torchmetrics.segmentation import MeanIoU

print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
truth = torch.zeros(2, 10, 10, dtype=torch.long)
truth[0, :5] = 1  # half of the first image
truth[1, 0, 0] = 1  # one pixel of the second
misses_pixel, misses_area = truth.clone(), truth.clone()
misses_pixel[1, 0, 0] = 0
misses_area[0, :3] = 0
seen = {}
for name, mask in (("misses one pixel", misses_pixel), ("misses thirty", misses_area)):
    mean, jaccard = MeanIoU(num_classes=2, input_format="index"), JaccardIndex(task="multiclass", num_classes=2)
    mean.update(mask, truth)
    jaccard.update(mask, truth)
    right = torch.stack([((mask == c) & (truth == c)).sum() / ((mask == c) | (truth == c)).sum() for c in (0, 1)]).mean()
    seen[name] = (mean.compute().item(), jaccard.compute().item())
    print(f"{name}: MeanIoU {seen[name][0]:.3f}, JaccardIndex {seen[name][1]:.3f}, by hand over the set {right:.3f}")
    assert abs(right.item() - seen[name][1]) < 1e-6
by_mean, by_jaccard = zip(*seen.values())
assert by_jaccard[0] > by_jaccard[1]
assert by_mean[0] < by_mean[1], "the behaviour changed"
PYTHON
