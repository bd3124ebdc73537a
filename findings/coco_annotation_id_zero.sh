#!/usr/bin/env bash
# COCO evaluation: an annotation whose id is 0 can never be matched.
#
# Expected: ids are names; three perfect detections of three boxes give AP 1, whatever the ids.
# Guess before running: AP 1 for ids 0, 1, 2 as for ids 1, 2, 3. Wrong.
# What happens: both pycocotools and faster-coco-eval write the matched annotation's id into an array that starts as
# zeros, and read 0 as "not matched". The perfect detection of annotation 0 counts as a false positive and its box as
# missed: AP falls from 1 to 0.44 here; in a set of n boxes about one box in n is lost, always the same one.
# Hurts: whoever converts his own labels (KITTI, a simulator, a LiDAR set in bird's-eye view) with enumerate() and
# compares two models by an AP that neither of them can bring to 1. Number annotations from 1.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile numpy==2.4.6 pycocotools==2.0.11 faster-coco-eval==1.8.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import importlib.metadata
import io

from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

for name in ("pycocotools", "faster-coco-eval", "numpy"):
    print(name, importlib.metadata.version(name))


def ap(dataset, evaluation, first):
    boxes = [[30 * k, 10, 20, 20] for k in range(3)]
    truth = dataset()
    truth.dataset = {
        "info": {},
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            {"id": first + k, "image_id": 1, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0}
            for k, box in enumerate(boxes)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(
            [{"image_id": 1, "category_id": 1, "bbox": b, "score": 0.9 - k / 10} for k, b in enumerate(boxes)]
        )
        run = evaluation(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0])


for dataset, evaluation in ((COCO, COCOeval), (FasterCOCO, COCOeval_faster)):
    zero, one = ap(dataset, evaluation, 0), ap(dataset, evaluation, 1)
    print(f"{evaluation.__name__}: AP {zero:.3f} with ids 0, 1, 2; {one:.3f} with ids 1, 2, 3")
    assert one == 1.0 and abs(zero - 0.442) < 1e-3, "the behaviour changed"
PYTHON
