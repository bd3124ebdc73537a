"""Train a detector on synthetic scenes: `tools/train_detector.py centerpoint_pillar`.

Every step makes new scenes, so none is seen twice. Ctrl-C or a time limit (--minutes) saves a checkpoint and the weights so
far to --work; the same command goes on from there. The package gets its weights after the last step. Training scenes have
seeds from 1,000,000 on; evaluation scenes are seeds 0 to 499.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from edgeq.lidar import pipeline
from edgeq.lidar.detectors import DETECTORS, WEIGHTS, Detector
from edgeq.lidar.frame import Frame
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.lidar.synthetic import TRAINING
from edgeq.lidar.training import Sample, augment, collate, losses, samples, targets

FIRST_SEED = TRAINING
BANK_SCENES = 150


def main() -> None:
    """Train, then save the weights in half precision in the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", choices=sorted(DETECTORS))
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps of the whole training")
    parser.add_argument("--batch", type=int, default=2, help="scenes per step")
    parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long; run again to go on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="folder of checkpoints")
    parser.add_argument("--publish", action="store_true", help="put weights into the package before the last step too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(DETECTORS[options.detector], options)


def train(detector: Detector, options: argparse.Namespace) -> None:
    """Go on from the checkpoint, if there is one, to the last step."""
    torch.manual_seed(options.seed)
    network = detector.network().to(options.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=0.01)
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    state = options.work / f"{detector.name}.ckpt"
    done = 0
    if state.is_file():
        saved = torch.load(state, weights_only=True, map_location=options.device)
        network.load_state_dict(saved["network"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
        print(f"going on from step {done}", flush=True)

    def save() -> None:
        state.parent.mkdir(parents=True, exist_ok=True)
        parts = {"network": network, "averaged": averaged, "optimizer": optimizer}
        torch.save({"step": done, **{k: v.state_dict() for k, v in parts.items()}}, state.with_suffix(".new"))
        state.with_suffix(".new").replace(state)
        export(averaged.module, options.work / f"{detector.name}.safetensors")

    bank = samples([made(FIRST_SEED - 1 - i) for i in range(BANK_SCENES)])
    started, recent, first = time.monotonic(), [], done
    try:
        for step in range(first, options.steps):
            frames = fresh(options, step, bank)
            inputs = collate([pipeline.prepare(f.points, detector.pipeline, padded=False).inputs for f in frames])
            heads = network(*(x.to(options.device) for x in inputs))
            shape = heads["heatmap"].shape[2:]
            answers = [targets(f, detector.pipeline["head"], shape) for f in frames]
            wanted = {k: torch.from_numpy(np.stack([a[k] for a in answers])).to(options.device) for k in answers[0]}
            parts = losses(heads, wanted)
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = options.rate * one_cycle(step / options.steps)
            sum(parts.values()).backward()  # type: ignore[union-attr] # a sum of tensors
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            averaged.update_parameters(network)
            done = step + 1
            recent.append([float(v.detach()) for v in parts.values()])
            if step % 50 == 49:
                mean = dict(zip(parts, np.mean(recent, 0).round(4).tolist(), strict=True))
                pace = (time.monotonic() - started) / (done - first)
                print(f"step {done}/{options.steps} {pace:.2f} s/step {json.dumps(mean)}", flush=True)
                recent = []
            if step % 250 == 249:
                save()
            if time.monotonic() - started > options.minutes * 60:
                break
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
    save()
    if done >= options.steps or options.publish:
        export(averaged.module, WEIGHTS / f"{detector.name}.safetensors")


def fresh(options: argparse.Namespace, step: int, bank: list[Sample]) -> list[Frame]:
    """The scenes of a step, with objects of `bank` in them: the same however often the training was interrupted."""
    random = np.random.default_rng([options.seed, step])
    seeds = FIRST_SEED + step * options.batch + np.arange(options.batch)
    return [augment(made(int(s)), bank, random) for s in seeds]


def one_cycle(done: float) -> float:
    """Share of the largest learning rate after the share `done` of all steps: up for a tenth, then a cosine down to 0."""
    return 0.04 + 9.6 * done if done < 0.1 else 0.5 + 0.5 * float(np.cos(np.pi * (done - 0.1) / 0.9))


def export(network: torch.nn.Module, file: Path) -> None:
    """Write weights as they are shipped, in float16, whole or not at all."""
    halves = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(halves, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def made(seed: int) -> Frame:
    """The scene of one seed, forward quarter only."""
    return scene(seed, HDL64_FRONT)


if __name__ == "__main__":
    main()
