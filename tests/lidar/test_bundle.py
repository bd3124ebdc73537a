"""A bundle goes from raw points to the boxes of the whole quantized program, with code that knows nothing of edgeq."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeq import api, backends
from edgeq.graph.package import QuantizedModel
from edgeq.lidar import bundle, pipeline
from edgeq.lidar.detectors import DETECTORS
from edgeq.lidar.networks import CenterPointPillar, CenterPointVoxel
from edgeq.lidar.runner import Bundle, alike, rounded
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.spec import EdgeqError
from edgeq.task import Task

RANGE = [0.0, -6.4, -3.0, 12.8, 6.4, 1.0]


def settings(kind: str) -> dict[str, Any]:
    """A pipeline of a 12.8 m square, so that a network of its size runs in no time."""
    made = copy.deepcopy(DETECTORS[f"centerpoint_{kind}"].pipeline)
    made["encoder"]["point_range"] = RANGE
    made["head"].update(origin=[0.0, -6.4], score=0.005, limit=20)  # an untrained heatmap lies about 0.01
    if kind == "pillar":
        made["encoder"].update(max_pillars=900, max_points=8)
    else:
        made["encoder"].update(grid=[64, 64, 20], limits=[1200, 900, 500])
    return made


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return scene(0, HDL64_FRONT).points


@pytest.fixture(scope="module", params=["pillar", "voxel"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    wanted = settings(request.param)

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        if request.param == "pillar":
            return CenterPointPillar(grid=(64, 64)).eval()
        return CenterPointVoxel(bev=(16, 16, 5)).eval()

    def batches() -> Any:
        for seed in range(2):
            ready = pipeline.prepare(scene(seed, HDL64_FRONT).points, wanted)
            yield tuple(torch.from_numpy(a) for a in ready.inputs)

    task = Task(request.param, network, lambda: next(batches()), batches, preprocessing={"pipeline": wanted})
    return api.quantize(task, recipe="minmax", output=tmp_path_factory.mktemp("bundle") / request.param)


def boxes_of(model: QuantizedModel, points: np.ndarray, arithmetic: str) -> list[dict[str, Any]]:
    """The whole program's boxes by simulation."""
    assert model.preprocessing is not None
    wanted = model.preprocessing["pipeline"]
    inputs = [torch.from_numpy(a) for a in pipeline.prepare(points, wanted).inputs]
    heads = model.simulate(inputs, arithmetic)
    named = dict(zip(wanted["head"]["outputs"], (h.numpy() for h in heads), strict=True))
    return rounded(*pipeline.boxes(named, wanted))


@pytest.mark.parametrize("runtime", sorted(backends.RUNTIMES))
def test_a_bundle_finds_the_boxes_of_the_whole_program(
    model: QuantizedModel, points: np.ndarray, runtime: str, tmp_path: Path
) -> None:
    folder = api.bundle(model, runtime, folder=tmp_path / runtime)
    said = json.loads((folder / "pipeline.json").read_text())
    assert [p["name"] for p in said["parts"]] == (["pillars", "dense"] if model.name == "pillar" else ["network"])
    wanted = boxes_of(model, points, backends.backend(runtime).target.arithmetic)
    assert len(wanted) > 3
    if runtime == "coreml" and sys.platform != "darwin":

        def load(path: Path) -> Any:
            run = backends.backend("coreml").load(path)

            def call(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
                return [o.numpy() for o in run([torch.from_numpy(x) for x in inputs])]

            return call

        assert alike(rounded(*Bundle(folder, load=load).detect(points)), wanted)
        return
    command = [sys.executable, "-m", "lidar.runner", ".", "golden_points.bin", "--check"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == wanted


def test_the_code_of_a_bundle_imports_numpy_alone() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from lidar import runner\n"
        "loaded = {m.split('.')[0] for m in sys.modules}\n"
        "assert not loaded & {'torch', 'edgeq', 'scipy'}, loaded"
    )
    source = Path(bundle.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(source.parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_lidar_detector_no_bundle(model: QuantizedModel, tmp_path: Path) -> None:
    import dataclasses

    other = dataclasses.replace(model, preprocessing=None)
    with pytest.raises(EdgeqError, match="is no lidar detector"):
        api.bundle(other, "litert", folder=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(ValueError, match="no whole lidar bundle"):
        Bundle(tmp_path)
