"""Accuracy of one real network in float, as the QDQ program and on every runtime, image by image, in one table.

python tools/accuracy.py resnet20|efficientnet|pointpillars [--limit N] [--recipe default] [--latency]

Needs the folder EDGEQ_DATA. What was computed is kept in --cache, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeq import api, backends
from edgeq.graph.package import QuantizedModel

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.setdefault("EDGEQ_DATA", str(ROOT.parent / "shared" / "data")))
TASKS = {"resnet20": "resnet20_cifar10", "efficientnet": "efficientnet_lite0", "pointpillars": "pointpillars_kitti"}
HEADS = ("cls", "box", "dir")
POSITIVE = 0.1  # score from which a detector's cell counts as positive
RESAMPLES = 10_000
SAVE_EVERY_S = 20.0

Predict = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
sys.path.insert(0, str(ROOT / "examples"))  # the task files hold the data


# ---------------------------------------------------------------- data


def cifar10(limit: int | None) -> tuple[Tensor, np.ndarray]:
    """Test images [N, 3, 32, 32], normalised, and labels [N]."""
    import resnet20_cifar10 as task

    images, labels = task.test_images()
    return images[:limit], labels[:limit]


def imagenet(limit: int | None) -> tuple[Tensor, np.ndarray]:
    """Images [N, 3, 224, 224], (RGB − 127) / 128 of the centre crop, and labels [N]; `limit` takes them evenly spread.

    wnids.txt is in the order of the classes and the files are named by wnid.
    """
    from PIL import Image

    folder = DATA / "imagenet_256"
    classes = {wnid: i for i, wnid in enumerate((folder / "wnids.txt").read_text().split())}
    files = sorted(folder.glob("*.jpg"))
    if limit is not None and limit < len(files):
        files = [files[i * len(files) // limit] for i in range(limit)]
    images = torch.empty(len(files), 3, 224, 224)
    for i, file in enumerate(files):
        photograph = Image.open(file).convert("RGB")
        side = round(min(photograph.size) * 224 / 256)
        left, top = ((extent - side) // 2 for extent in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        images[i] = torch.from_numpy((np.asarray(crop, np.float32).transpose(2, 0, 1) - 127) / 128)
    return images, np.array([classes[f.stem] for f in files])


def kitti(limit: int | None) -> list[tuple[Tensor, ...]]:
    """The evaluation frames as PointPillars' inputs: pillars and table."""
    import pointpillars_kitti as task

    from edgeq.lidar.kitti import read_frames

    return [task.prepared(frame.points) for frame in list(read_frames(DATA / "kitti" / "eval"))[:limit]]


# ---------------------------------------------------------------- measures


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % bootstrap interval over images."""

    mean: float
    low: float
    high: float


def paired(difference: np.ndarray) -> Interval:
    """Mean of a per-image difference [N] and the 2.5 and 97.5 % quantiles of its means over resampled images."""
    random = np.random.default_rng(0)
    means = [difference[random.integers(0, len(difference), len(difference))].mean() for _ in range(RESAMPLES)]
    return Interval(float(difference.mean()), *(float(q) for q in np.quantile(means, (0.025, 0.975))))


def head_errors(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> np.ndarray:
    """Per frame: signal and noise of each head over all cells, then over the positive ones, then positives and kept.

    A cell is positive where float gives any of its anchors and classes a score above POSITIVE; it is kept where the
    other does too. Returns 14 sums.
    """
    scores = [torch.sigmoid(heads[0].double()).amax(1, keepdim=True) > POSITIVE for heads in (wanted, got)]
    sums = []
    for mask in (torch.ones_like(scores[0]), scores[0]):
        for a, b in zip(wanted, got, strict=True):
            kept = mask.expand_as(a)
            sums += [
                a[kept].double().square().sum().item(),
                (a[kept].double() - b[kept].double()).square().sum().item(),
            ]
    return np.array([*sums, scores[0].sum().item(), (scores[0] & scores[1]).sum().item()])


def decibel(sums: np.ndarray) -> np.ndarray:
    """Pooled head_errors [14] or [N, 14] → SQNR in dB [..., 6]: cls, box, dir over all cells, then over positive ones."""
    pairs = sums[..., :12].reshape(*sums.shape[:-1], 6, 2)
    with np.errstate(divide="ignore"):
        result: np.ndarray = 10 * np.log10(np.maximum(pairs[..., 0], 1e-300) / pairs[..., 1])
    return result


# ---------------------------------------------------------------- running


def resumed(cache: Path, count: int, width: int, measure: Callable[[], Callable[[int], np.ndarray]]) -> np.ndarray:
    """Rows [count, width] of `measure()(i)`; those found in `cache` are not measured again.

    `measure` is called only where a row is missing, because loading a runtime takes time.
    """
    rows = np.full((count, width), np.nan)
    if cache.is_file():
        stored = np.load(cache)["rows"]
        rows[: min(count, len(stored))] = stored[:count]
    missing = [i for i in range(count) if np.isnan(rows[i]).any()]
    if not missing:
        return rows
    run, saved = measure(), time.monotonic()
    for i in missing:
        rows[i] = run(i)
        if i == missing[-1] or time.monotonic() - saved > SAVE_EVERY_S:
            print(f"  {cache.stem}: {i + 1}/{count}", file=sys.stderr, flush=True)
            part = cache.with_suffix(".part.npz")
            np.savez(part, rows=rows)
            part.replace(cache)
            saved = time.monotonic()
    return rows


def loaders(model: QuantizedModel) -> dict[str, Callable[[], Predict]]:
    """Column → what loads it: float, QDQ, then each runtime with the kernels an app gets by default."""
    found: dict[str, Callable[[], Predict]] = {"float": lambda: model.float, "QDQ": lambda: model.qdq}
    for name in backends.RUNTIMES:
        found[name] = _loader(model, name)
    return found


def _loader(model: QuantizedModel, name: str) -> Callable[[], Predict]:
    def load() -> Predict:
        engine = backends.backend(name)
        options = {"kernels": engine.target.kernels[-1][0]} if engine.target.kernels else {}
        return engine.load(api.export(model, name).path, **options)

    return load


def digest(model: QuantizedModel) -> str:
    """Ten characters that change when any weight or scale of the program does."""
    seen = hashlib.sha256(repr(sorted(model.qparams.items())).encode())
    for name, tensor in sorted(model.program.state_dict.items()):
        seen.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    for name, value in sorted(model.program.constants.items()):
        if isinstance(value, Tensor):
            seen.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return seen.hexdigest()[:10]


def prepare(network: str, recipe: str, cache: Path) -> QuantizedModel:
    """Quantize with edgeq's own task file of `network` into the cache folder."""
    task = ROOT / "examples" / f"{TASKS[network]}.py"
    return api.quantize(task, recipe=recipe, output=cache / f"{network}-{recipe}")


def classify(model: QuantizedModel, images: Tensor, cache: Path) -> dict[str, np.ndarray]:
    """Column → predicted class of every image [N]."""
    stem = f"{model.name}-{model.plan.recipe}-{digest(model)}-{len(images)}"
    return {
        column: resumed(cache / f"{stem}-{column}.npz", len(images), 1, lambda load=load: _top1(load(), images))[:, 0]  # type: ignore[misc] # binds the loop's value
        for column, load in loaders(model).items()
    }


def _top1(predict: Predict, images: Tensor) -> Callable[[int], np.ndarray]:
    return lambda i: np.array([float(predict((images[i : i + 1],))[0].argmax())])


def detect(
    model: QuantizedModel, frames: Sequence[tuple[Tensor, ...]], cache: Path, columns: Sequence[str]
) -> dict[str, np.ndarray]:
    """Column → head_errors of every frame [N, 14] against the float network."""
    stem = f"{model.name}-{model.plan.recipe}-{digest(model)}-{len(frames)}"
    floats: dict[int, tuple[Tensor, ...]] = {}

    def measure(load: Callable[[], Predict]) -> Callable[[int], np.ndarray]:
        predict = load()

        def row(i: int) -> np.ndarray:
            if i not in floats:
                floats[i] = model.float(frames[i])
            return head_errors(floats[i], predict(frames[i]))

        return row

    known = loaders(model)
    return {
        column: resumed(cache / f"{stem}-{column}.npz", len(frames), 14, lambda c=column: measure(known[c]))  # type: ignore[misc] # binds the loop's value
        for column in columns
    }


# ---------------------------------------------------------------- tables


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in (header, *rows)]
    lines.insert(1, " | ".join("-" * w for w in widths))
    return "\n".join(f"| {line} |" for line in lines)


def machine() -> str:
    """Processor, vector features, cores, load average, versions and date, in a line."""
    flags, name = "", platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        text = Path("/proc/cpuinfo").read_text()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    features = [f for f in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8") if f in flags.split()]
    packages = ("torch", "ai-edge-litert", "executorch", "coremltools", "apache-tvm")
    return (
        f"{time.strftime('%Y-%m-%d')}; {name}, {os.cpu_count()} cores, {' '.join(features)}; "
        f"load average {os.getloadavg()[0]:.1f}; {', '.join(f'{p} {version(p)}' for p in packages)}"
    )


def classification_table(predictions: dict[str, np.ndarray], labels: np.ndarray) -> str:
    """Top-1 of each column, and its paired difference to float in points with the 95 % interval."""
    rows = []
    right = {column: (p == labels).astype(float) for column, p in predictions.items()}
    for column, hits in right.items():
        d = paired(100 * (hits - right["float"]))
        lost, won = int(((hits == 0) & (right["float"] == 1)).sum()), int(((hits == 1) & (right["float"] == 0)).sum())
        same = 100 * float((predictions[column] == predictions["float"]).mean())
        between = f"[{d.low:+.2f}, {d.high:+.2f}]" if column != "float" else ""
        rows.append([column, f"{100 * hits.mean():.2f}", f"{d.mean:+.2f}", between, f"{won} / {lost}", f"{same:.1f}"])
    header = ("", "top-1 %", "− float, points", "95 % interval", "images won / lost", "same class as float %")
    return table(header, rows)


def detection_row(name: str, sums: np.ndarray) -> list[str]:
    """SQNR pooled over frames: of all heads as one vector, then of each, all cells then positive cells; positives kept."""
    pooled = sums.sum(0)
    signal, noise = pooled[0:6:2].sum(), pooled[1:6:2].sum()
    each = [10 * np.log10(signal / noise), *decibel(pooled)]
    return [name, *(f"{d:.1f}" for d in each), f"{100 * pooled[13] / max(pooled[12], 1):.1f}"]


def arrays(predict: Predict) -> Callable[[np.ndarray], np.ndarray]:
    """The same network from one NumPy input to its first output."""
    return lambda x: predict((torch.from_numpy(x),))[0].numpy()


def latency_table(model: QuantizedModel) -> str:
    """Median milliseconds of int8 and of the float twin on each runtime that has a clock here, called in turn."""
    from peers.exchange import latency_ms

    rows = []
    for name in ("litert", "executorch", "tvm"):
        pair = (api.export(model, name).path, api.export(model, name, float_twin=True).path)
        first, second = (partial(backends.backend(name).load(path), model.golden) for path in pair)
        int8, twin = latency_ms(first, second)
        rows.append([name, f"{int8:.2f}", f"{twin:.2f}", f"{twin / int8:.2f}×", f"{os.getloadavg()[0]:.1f}"])
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    return table(("", "int8 ms", "float ms", "float / int8", "load"), rows)


DETECTION_HEADER = (
    "",
    "all heads",
    *(f"{h}, {c}" for c in ("all cells", "positive") for h in HEADS),
    "positives kept %",
)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=tuple(TASKS))
    parser.add_argument("--limit", type=int, help="images or frames to take")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "accuracy")
    parser.add_argument("--latency", action="store_true", help="time int8 beside float instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    model = prepare(args.network, args.recipe, args.cache)
    if args.latency:
        body = "one thread, medians\n\n" + latency_table(model)
    elif args.network == "pointpillars":
        frames = kitti(args.limit)
        sums = detect(model, frames, args.cache, ("QDQ", *backends.RUNTIMES))
        body = f"{len(frames)} evaluation frames, SQNR in dB against float\n\n"
        body += table(DETECTION_HEADER, [detection_row(c, s) for c, s in sums.items()])
    else:
        images, labels = (cifar10 if args.network == "resnet20" else imagenet)(args.limit)
        body = f"{len(images)} images\n\n" + classification_table(classify(model, images, args.cache), labels)
    print(f"{args.network}, recipe {args.recipe}, {body}\n\n{machine()}")


if __name__ == "__main__":
    main()
