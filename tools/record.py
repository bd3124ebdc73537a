"""Has a number moved? Records hashes of what is resolved and written, for each network by each recipe, and compares records.

python tools/record.py before.json                        # then change the code
python tools/record.py after.json --against before.json   # 1 where a hash differs, and which

--network, --recipe and --to (repeatable) take some alone. What learns on a detector takes a quarter of an hour; --frames and
--set shorten it: --network pointpillars --recipe lidar-ptq --frames 2 --set round.solver=adaround:5 --set reconstruct.steps=4.
A record is written pair by pair, and the same command goes on where it was interrupted, as long as the code is the same. `small`
is made here; the others are examples/, whose weights and data must be there: a pair that lacks them is named, exit code 2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeq import api, backends, whole
from edgeq.calib.calibrate import needs
from edgeq.calib.needs import DATA, NEIGHBOURS, SEEN
from edgeq.calib.objectives.tgpl import HOOK
from edgeq.calib.recipes import RECIPES
from edgeq.calib.steps import name_of
from edgeq.calib.written import changed
from edgeq.devices import host
from edgeq.graph.package import QuantizedModel
from edgeq.graph.store import hash_of
from edgeq.spec import EdgeqError, Recipe
from edgeq.task import Task, load_task

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
RESOLVED = ("plan", "numbers", "constants")


class Small(nn.Module):
    """Of most kinds one: convolutions with BatchNorm, depthwise too, a residual sum, pooling, a concatenation, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6())
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[1, 3, 16, 16] → [1, 5]."""
        x = self.stem(x)
        x = self.pool(torch.relu(self.pointwise(self.depthwise(x)) + x))
        answer: Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return answer


def small() -> Task:
    """A task with all that recipes ask for, made of seeds."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        return Small().eval()

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for seed in range(4):
            yield (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)),)

    def best(outputs: Sequence[Tensor]) -> list[Tensor]:
        return [(y == y.max()).float() for y in outputs]

    return Task("small", network, lambda: next(batches()), batches, hooks={HOOK: best})


def example(name: str) -> Callable[[], Task]:
    """The task of a file in examples/, read when it is asked for."""
    return lambda: load_task(ROOT / "examples" / f"{name}.py")


NETWORKS: dict[str, Callable[[], Task]] = {
    "small": small,
    "resnet20": example("resnet20_cifar10"),
    "efficientnet-lite0": example("efficientnet_lite0"),
    "pointpillars": example("pointpillars_kitti"),
    "centerpoint-pillar": example("centerpoint_pillar"),
    "minilm": example("minilm_embedding"),
}


def applies(recipe: Recipe, task: Task) -> bool:
    """Whether the task has what the recipe asks for."""
    return needs(recipe) - {DATA, SEEN, NEIGHBOURS} <= {f"{name}()" for name in task.hooks}


def resolved(model: QuantizedModel) -> Row:
    """Hashes of the plan's layers, of scales and zero points, and of weights and biases, however files hold them."""
    constants = {**model.program.state_dict, **model.program.constants}
    tensors = {name: t.detach().contiguous() for name, t in constants.items() if isinstance(t, Tensor)}
    told = {name: [str(t.dtype), list(t.shape), _sha(_bytes(t))] for name, t in tensors.items()}
    return {
        "plan": _hash({"target": model.plan.target, "layers": model.plan.layers}),
        "numbers": _hash({name: asdict(qparams) for name, qparams in model.qparams.items()}),
        "constants": _hash(told),
    }


def written(model: QuantizedModel, to: Sequence[str]) -> Row:
    """Backend → hash of its artefact, or why there is none."""
    made = {}
    for name in to:
        try:
            made[name] = hash_of(api.export(model, name).path)
        except EdgeqError as error:
            made[name] = f"refused: {error}".replace(str(model.folder), "MODEL")
    return made


def shortened(task: Task, frames: int | None) -> Task:
    """The task with its first `frames` calibration batches alone; None: all."""
    calibration = task.calibration
    if frames is None or calibration is None:
        return task
    return replace(task, calibration=lambda: islice(iter(calibration()), frames))


def chosen(name: str, settings: Sequence[str]) -> Recipe:
    """The recipe with those settings that it has a step for; its name tells them.

    Raises:
        EdgeqError: one means nothing there.
    """
    steps = {name_of(step) for step in RECIPES[name].steps}
    return changed(RECIPES[name], [each for each in settings if each.partition(".")[0] in steps])


def row(task: Task, recipe: Recipe, to: Sequence[str]) -> Row:
    """What a pair gives."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        model = api.quantize(task, recipe=recipe, output=Path(folder) / "model")
        return {**resolved(model), "artifacts": written(model, to)}


def key_of(network: str, recipe: Recipe, frames: int | None) -> str:
    """What a pair is called in a record."""
    return f"{network}/{recipe.name}" + ("" if frames is None else f", {frames} frames")


def head() -> Row:
    """What made a record: the code, packages and the machine."""
    sources = sorted(
        Path(at) / name
        for at, _, names in os.walk(ROOT / "edgeq", followlinks=True)
        for name in names
        if name.endswith(".py")
    )
    code = {str(path.relative_to(ROOT)): hash_of(path) for path in [*sources, Path(__file__).resolve()]}
    return {
        "code": _hash(code),
        "versions": backends.versions(),
        "machine": [platform.platform(), host.describe()["features"]],
    }


def recorded(
    path: Path, networks: Sequence[str], recipes: Sequence[Recipe], to: Sequence[str], frames: int | None = None
) -> tuple[Row, list[str]]:
    """The record at `path` with every pair asked for, and a sentence for each that could not be had.

    Raises:
        ValueError: other code made what is there already, or the same code gives other numbers now.
    """
    now = head()
    record: Row = json.loads(path.read_text()) if path.exists() else {**now, "pairs": {}}
    if any(record[key] != now[key] for key in now):
        raise ValueError(f"{path}: was recorded by other code, packages or another machine; name a new file")
    missing = []
    for network in networks:
        task = shortened(NETWORKS[network](), frames)
        for recipe in (each for each in recipes if applies(each, task)):
            key = key_of(network, recipe, frames)
            known: Row = record["pairs"].get(key, {"artifacts": {}})
            if set(to) <= known["artifacts"].keys():
                continue
            start = time.perf_counter()
            try:
                found = row(task, recipe, to)
            except EdgeqError as error:
                missing.append(f"{key}: {error}")
                continue
            if any(known.get(part, found[part]) != found[part] for part in RESOLVED):
                raise ValueError(f"{key}: the same code gives other numbers than before")
            record["pairs"][key] = {**found, "artifacts": {**known["artifacts"], **found["artifacts"]}}
            with whole.file(path) as part:
                part.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{key}: {time.perf_counter() - start:.1f} s", flush=True)
    return record, missing


def moved(before: Row, after: Row, keys: Iterable[str], to: Sequence[str]) -> list[str]:
    """What differs of the pairs `keys` and backends `to`, in words; what one record alone has differs."""
    said = []
    for key in (key for key in keys if key in before["pairs"] or key in after["pairs"]):
        old, new = before["pairs"].get(key), after["pairs"].get(key)
        if old is None or new is None:
            said.append(f"{key}: only {'after' if old is None else 'before'}")
            continue
        parts = [part for part in RESOLVED if old[part] != new[part]]
        parts += [name for name in to if old["artifacts"].get(name) != new["artifacts"].get(name)]
        if parts:
            said.append(f"{key}: {', '.join(parts)}")
    return said


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hash(plain: Any) -> str:
    return _sha(json.dumps(plain, sort_keys=True).encode())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def main() -> int:
    """0 where all was recorded and nothing differs, 1 where something does, 2 where a pair could not be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--against", type=Path, help="an earlier record")
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--recipe", action="append", choices=RECIPES)
    parser.add_argument("--set", action="append", default=[], dest="settings", help="an option of a recipe's step")
    parser.add_argument("--frames", type=int, help="so many calibration batches, instead of all")
    parser.add_argument("--to", action="append", choices=backends.RUNTIMES)
    given = parser.parse_args()
    networks, recipes = given.network or list(NETWORKS), [chosen(r, given.settings) for r in given.recipe or RECIPES]
    to = given.to or list(backends.RUNTIMES)
    before = json.loads(given.against.read_text()) if given.against else None
    try:
        record, missing = recorded(given.record, networks, recipes, to, given.frames)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for sentence in missing:
        print(f"not recorded: {sentence}", file=sys.stderr)
    differing: list[str] = []
    if before is not None:
        keys = [key_of(network, recipe, given.frames) for network in networks for recipe in recipes]
        differing = moved(before, record, keys, to)
        both = [key for key in keys if key in before["pairs"] and key in record["pairs"]]
        print("\n".join(differing) if differing else f"nothing moved in {len(both)} pairs")
        if before["versions"] != record["versions"] or before["machine"] != record["machine"]:
            print("packages or machine differ between the records", file=sys.stderr)
    return 1 if differing else 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
