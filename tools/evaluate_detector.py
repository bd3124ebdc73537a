"""Score a trained detector and write its model card: `tools/evaluate_detector.py centerpoint_pillar --card`.

AP|R40 in BEV on 500 unseen synthetic scenes (objects in range with at least five points), nuScenes' AP beside it, and,
where EDGEQ_DATA is found, on real KITTI frames that the weights have never seen anything like.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from accuracy import DATA, machine, table
from torch import nn

from edgeq.lidar import kitti, pipeline, synthetic
from edgeq.lidar.average_precision import (
    NUSCENES_DISTANCES,
    average_precision,
    average_precision_nuscenes,
    bootstrap_difference,
    match,
    match_centres,
)
from edgeq.lidar.detectors import DETECTORS, WEIGHTS, Detector
from edgeq.lidar.evaluate import LEAST_POINTS, within
from edgeq.lidar.frame import Frame
from edgeq.lidar.tally import Tally


def scores(detector: Detector, frames: list[Frame], network: nn.Module) -> list[list[str]]:
    """A row per class: objects, AP at KITTI's IoU with its interval, AP at IoU 0.5, nuScenes' AP."""
    tally = Tally()
    found = [detector.detect(f.points, network, tally=tally) for f in frames]
    print(tally, file=sys.stderr, flush=True)
    truth = [within(f.labels, detector.pipeline["encoder"]["point_range"]) for f in frames if f.labels]
    rows = []
    for name in detector.pipeline["head"]["classes"]:
        matches = match(found, truth, name, min_points=LEAST_POINTS)
        if not sum(m.objects for m in matches):
            continue
        nothing = [type(m)(m.objects, *(np.zeros(0) for _ in range(4))) for m in matches]
        ap, low, high = bootstrap_difference(matches, nothing)
        loose = average_precision(
            match(found, truth, name, iou=0.5 if name == "Vehicle" else 0.25, min_points=LEAST_POINTS)
        )
        centres = [
            average_precision_nuscenes(match_centres(found, truth, name, d, min_points=LEAST_POINTS))
            for d in NUSCENES_DISTANCES
        ]
        rows.append(
            [
                name,
                str(sum(m.objects for m in matches)),
                f"{ap:.3f} [{low:.3f}, {high:.3f}]",
                f"{loose:.3f}",
                f"{np.mean(centres):.3f}",
            ]
        )
    return rows


def multiplications(network: nn.Module, detector: Detector) -> tuple[float, float]:
    """GMACs of one frame with every static row filled: of all layers, and of those behind the scatter."""
    total = {"all": 0, "dense": 0}

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        if isinstance(layer, nn.ConvTranspose2d):
            macs = inputs[0].numel() * weight[0].numel()
        elif isinstance(layer, nn.Conv2d):
            macs = output.numel() * weight[0].numel()
        else:
            macs = output.numel() * weight.shape[1]
        total["all"] += macs
        total["dense"] += macs if output.dim() == 4 and output.shape[2] < 1024 else 0

    handles = [
        m.register_forward_hook(count)
        for m in network.modules()
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    frame = next(synthetic.frames(1))
    with torch.no_grad():
        network(*(torch.from_numpy(a) for a in pipeline.prepare(frame.points, detector.pipeline).inputs))
    for handle in handles:
        handle.remove()
    return total["all"] / 1e9, total["dense"] / 1e9


def card(detector: Detector, network: nn.Module, tables: str, command: str) -> str:
    """The model card's text."""
    everything, dense = multiplications(network, detector)
    count = sum(p.numel() for p in network.parameters())
    return f"""# {detector.name}

A CenterPoint-style detector of vehicles, pedestrians and cyclists in one 64-beam lidar sweep, forward quarter, 51.2 m.

- **Network**: {count / 1e6:.2f} M parameters, {everything:.2f} GMACs a frame with all static rows filled ({dense:.2f} behind the
  scatter). Weights stored as float16, computed in float32. Source: `edgeq/lidar/networks.py`.
- **Data**: generated scenes only (`edgeq/lidar/scenes.py`), seeds from {synthetic.TRAINING:,} on, a new scene in every step,
  with flip, rotation, scaling and ground-truth sampling. No recorded data of any licence was used. The weights are
  published under the project's licence, Apache-2.0.
- **Training**: `{command}` (seed 0).
- **Limits**: scenes are simpler than streets (docs/results.md says in what); a detector for the road needs recorded data.

{tables}
"""


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", choices=sorted(DETECTORS))
    parser.add_argument("--frames", type=int, default=500, help="synthetic scenes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trained-by", default="", help="command that trained the weights, for the card")
    parser.add_argument("--card", action="store_true", help="write the card beside the weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    detector = DETECTORS[options.detector]
    network = detector.trained()
    header = ("class", "objects", "AP R40 BEV [95 %]", "IoU 0.5 (0.25)", "nuScenes AP")
    sets = {f"{options.frames} unseen synthetic scenes": list(synthetic.frames(options.frames))}
    if DATA.is_dir():
        sets["41 real KITTI frames"] = [
            f for part in ("train", "eval") for f in kitti.read_frames(DATA / "kitti" / part)
        ]
    parts = []
    for name, frames in sets.items():
        parts.append(
            f"{name}, objects with at least {LEAST_POINTS} points:\n\n{table(header, scores(detector, frames, network))}"
        )
        print(parts[-1], flush=True)
    print(machine())
    if options.card:
        command = options.trained_by or f"tools/train_detector.py {detector.name}"
        path = Path(WEIGHTS) / f"{detector.name}.md"
        path.write_text(card(detector, network, "\n\n".join(parts), command))


if __name__ == "__main__":
    main()
