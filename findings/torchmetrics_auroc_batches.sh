#!/usr/bin/env bash
# torchmetrics decides batch by batch whether binary scores are logits, so the result depends on the batch size.
#
# Expected: AUROC and accuracy of the same 64 logits do not depend on how they are cut into batches.
# Guess before running: decided once for the metric. Wrong.
# What happens: each update applies a sigmoid if any of ITS values lies outside [0, 1]. A batch whose logits all happen to lie inside
# is taken for probabilities: a logit of 0.3 stays 0.3 (class 0 at the threshold of 0.5) instead of 0.57. With a batch of 64
# and of 8 all is well; with 2 and with 1 both metrics change, and AUROC, which no monotone function may change, changes too.
# Hurts: evaluation on a device or of a stream, one sample at a time, compared with a training log made in large batches. Apply the
# sigmoid before the metric.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import torchmetrics
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
torch.manual_seed(0)
logits = torch.randn(64) * 2
labels = (logits + torch.randn(64) > 0).long()


def measured(scores, batch):
    metrics = (BinaryAUROC(), BinaryAccuracy())
    for start in range(0, 64, batch):
        for metric in metrics:
            metric.update(scores[start : start + batch], labels[start : start + batch])
    return tuple(round(m.compute().item(), 6) for m in metrics)


for batch in (64, 8, 2, 1):
    raw, probabilities = measured(logits, batch), measured(logits.sigmoid(), batch)
    print(f"batches of {batch}: AUROC, accuracy of logits {raw}, of their sigmoid {probabilities}")
    assert probabilities == measured(logits, 64)
assert measured(logits, 1)[0] != measured(logits, 64)[0], "the behaviour changed"
assert measured(logits, 1)[1] != measured(logits, 64)[1], "the behaviour changed"
PYTHON
