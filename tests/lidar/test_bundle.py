"""A bundle goes from raw points to the boxes of the whole quantized program, with code that knows nothing of edgeq."""

from __future__ import annotations

import copy
import importlib
import json
import math
import random
import re
import shutil
import subprocess
import sys
import warnings
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
from edgeq.lidar.networks import CenterPointPillar, CenterPointVoxel, PillarEncoder, scatter
from edgeq.lidar.runner import Bundle, alike, rounded
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.spec import EdgeqError, EdgeqWarning
from edgeq.task import Task

WIDTHS = {"heatmap": 3, "offset": 2, "height": 1, "size": 3, "rotation": 2, "direction": 1}
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
    folder = bundle.bundle(model, runtime, folder=tmp_path / runtime)
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


def test_a_runner_outside_a_bundle_says_so_and_runs_by_what_it_is_given(small: Path, points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="lies in no bundle; run the bundle's own"):
        Bundle(small)
    found = Bundle(small, load=importlib.import_module("edgeq.backends.litert.engine").loader(1)).detect(points)
    assert alike(rounded(*found), json.loads((small / "golden_boxes.json").read_text()))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pillar bundle for LiteRT whose network is next to nothing."""
    wanted = settings("pillar")
    wanted["encoder"].update(max_pillars=200)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = PillarEncoder(10, 8)
            self.shrink = torch.nn.Conv2d(8, 8, 3, stride=4, padding=1)
            self.heads = torch.nn.ModuleDict({n: torch.nn.Conv2d(8, c, 1) for n, c in WIDTHS.items()})

        def forward(self, pillars: torch.Tensor, table: torch.Tensor) -> dict[str, torch.Tensor]:
            seen = self.shrink(scatter(self.encoder(pillars), table, (64, 64))).relu()
            return {name: head(seen) for name, head in self.heads.items()}

    def batches() -> Any:
        ready = pipeline.prepare(scene(0, HDL64_FRONT).points, wanted)
        yield tuple(torch.from_numpy(a) for a in ready.inputs)

    task = Task("small", lambda: Network().eval(), lambda: next(batches()), batches, preprocessing={"pipeline": wanted})
    model = api.quantize(task, recipe="minmax", output=tmp_path_factory.mktemp("small") / "small")
    return bundle.bundle(model, "litert")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lidar.runner", ".", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


ODD = {
    "empty": (lambda p: p[:0], 0, "the cloud is empty"),
    "out of range": (lambda p: p + np.float32(500), 0, "N points, N ignored .* none is left"),
    "NaN": (lambda p: p * np.float32("nan"), 0, "N points, N ignored .* none is left"),
    "three columns": (lambda p: p[:1001, :3], 2, "12012 bytes are no float32 rows of 4 numbers .*--columns"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_cloud_has_a_clear_outcome_in_words(small: Path, points: np.ndarray, kind: str, tmp_path: Path) -> None:
    change, code, words = ODD[kind]
    made = np.ascontiguousarray(change(points))
    made.tofile(tmp_path / "odd.bin")
    done = run(small, str(tmp_path / "odd.bin"))
    assert (done.returncode, done.stdout) == (code, "")
    assert re.search(words.replace("N", str(len(made))), done.stderr), done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr


def test_columns_behind_the_fourth_are_cut_and_fewer_are_refused(
    small: Path, points: np.ndarray, tmp_path: Path
) -> None:
    five = np.column_stack([points, np.arange(len(points))]).astype(np.float32)
    five.tofile(tmp_path / "five.bin")
    np.save(tmp_path / "five.npy", five.astype(np.float64))
    golden = json.loads((small / "golden_boxes.json").read_text())
    assert len(golden) > 3
    for arguments in (("five.bin", "--columns", "5"), ("five.npy",)):
        done = run(small, str(tmp_path / arguments[0]), *arguments[1:], "--check")
        assert done.returncode == 0, done.stderr
        assert [json.loads(line) for line in done.stdout.splitlines()] == golden
        ready = pipeline.prepare(points, json.loads((small / "pipeline.json").read_text()))
        assert f"{len(points)} points, {ready.ignored} ignored" in done.stderr
        assert f"left out, beyond the static limits: {ready.dropped[0]} of {ready.found[0]} pillars" in done.stderr
        assert ready.dropped[0] > 0 and ready.found[0] == ready.dropped[0] + 200
    done = run(small, str(tmp_path / "five.bin"), "--columns", "3")
    assert done.returncode == 2 and "needs four columns" in done.stderr and len(done.stderr.splitlines()) == 1
    (tmp_path / "cut.npy").write_bytes((tmp_path / "five.npy").read_bytes()[:5000])
    done = run(small, str(tmp_path / "cut.npy"))
    assert done.returncode == 2 and "no whole .npy array" in done.stderr and len(done.stderr.splitlines()) == 1
    (tmp_path / "cut.npy").write_bytes(b"")
    assert "no whole .npy array" in run(small, str(tmp_path / "cut.npy")).stderr
    np.save(tmp_path / "three.npy", five[:, :3])
    done = run(small, str(tmp_path / "three.npy"))
    assert done.returncode == 2 and f"float32 [{len(points)}, 3]" in done.stderr and len(done.stderr.splitlines()) == 1


def test_what_a_bundle_lacks_is_one_sentence(small: Path, tmp_path: Path) -> None:
    def broken(name: str, keep: float) -> Path:
        folder = tmp_path / name
        shutil.copytree(small, folder)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * keep)])
        return folder

    for name in ("golden_boxes.json", "dense.tflite"):
        done = run(broken(name, 0.7), "golden_points.bin", "--check")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert name in done.stderr and "write the bundle again" in done.stderr
    gone = tmp_path / "golden_boxes.json"
    (gone / "golden_boxes.json").unlink()
    done = run(gone, "golden_points.bin", "--check")
    assert done.returncode == 2 and "golden_boxes.json: missing" in done.stderr


def test_the_golden_frame_may_be_the_users_and_one_without_boxes_is_warned_of(
    small: Path, points: np.ndarray, tmp_path: Path
) -> None:
    own = scene(3, HDL64_FRONT).points
    np.save(tmp_path / "own.npy", np.column_stack([own, np.ones(len(own))]))
    np.save(tmp_path / "empty.npy", np.zeros((0, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = bundle.bundle(small.parent.parent, "litert", folder=tmp_path / "own", points=tmp_path / "own.npy")
    np.testing.assert_array_equal(np.fromfile(folder / "golden_points.bin", np.float32).reshape(-1, 4), own)
    assert json.loads((folder / "golden_boxes.json").read_text()) != json.loads(
        (small / "golden_boxes.json").read_text()
    )
    assert run(folder, "golden_points.bin", "--check").returncode == 0
    with pytest.warns(EdgeqWarning, match="the golden frame has no boxes"):
        bundle.bundle(small.parent.parent, "litert", folder=tmp_path / "empty", points=tmp_path / "empty.npy")
    with pytest.raises(EdgeqError, match=r"golden frame: .*nowhere\.bin"):
        bundle.bundle(small.parent.parent, "litert", folder=tmp_path / "none", points=tmp_path / "nowhere.bin")


def test_the_command_writes_a_bundle_for_each_runtime_and_says_why_one_is_missing(small: Path) -> None:
    command = [sys.executable, "-m", "edgeq.cli", "lidar", "bundle", str(small.parent.parent), "--json"]
    before = (small / "golden_boxes.json").read_bytes()
    done = subprocess.run([*command, "--to", "litert"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backends"] == {"litert": {"bundle": str(small)}}
    assert (small / "golden_boxes.json").read_bytes() == before
    done = subprocess.run(
        [*command, "--to", "litert", "--to", "tvm-hexagon"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "which tvm-hexagon has not" in json.loads(done.stdout)["backends"]["tvm-hexagon"]["error"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "name at least one backend" in done.stderr


def test_no_lidar_detector_no_bundle(model: QuantizedModel, tmp_path: Path) -> None:
    import dataclasses

    other = dataclasses.replace(model, preprocessing=None)
    with pytest.raises(EdgeqError, match="is no lidar detector"):
        bundle.bundle(other, "litert", folder=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(ValueError, match="no whole lidar bundle"):
        Bundle(tmp_path)


@pytest.mark.parametrize("seed", range(150))
def test_a_changed_value_of_a_pipeline_is_one_sentence_or_a_bundle(small: Path, seed: int) -> None:
    """Types, lengths, signs and sizes of what pipeline.json says are looked at before anything is loaded by it."""
    chance = random.Random(seed)
    whole = (small / "pipeline.json").read_text()
    said = json.loads(whole)
    for part in said["parts"]:
        part["coverage"] = []  # told for people; a bundle does not read it
    places: list[tuple[Any, Any]] = []
    pending = [said]
    while pending:
        tree = pending.pop()
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            places.append((tree, key))
            if isinstance(tree[key], (dict, list)):
                pending.append(tree[key])
    container, key = chance.choice(places)
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        2**70,
        1e308,
        "",
        "x",
        "../x",
        [],
        [1],
        {},
        {"x": 1},
        [[]],
        math.nan,
        math.inf,
    ]
    container[key] = chance.choice(values)
    (small / "pipeline.json").write_text(json.dumps(said))
    points = np.fromfile(small / "golden_points.bin", np.float32).reshape(-1, 4)
    try:
        bundle = Bundle(small, load=lambda path: lambda inputs: [])
        pipeline.prepare(points, bundle.settings)
    except ValueError as error:
        assert len(str(error)) > 20
    finally:
        (small / "pipeline.json").write_text(whole)
