"""tools/record.py: hashes of what is resolved and written stay where nothing changed, and tell where something did."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeq import api

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("default", "minmax")


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import record

    return record


@pytest.fixture
def run(record: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def called(*arguments: str | Path) -> tuple[int, str]:
        few = ["--network", "small", "--to", "litert", *(word for name in RECIPES for word in ("--recipe", name))]
        monkeypatch.setattr("sys.argv", ["record.py", *map(str, arguments), *few])
        capsys.readouterr()
        return record.main(), "".join(capsys.readouterr())

    return called


def test_a_record_is_the_same_again_goes_on_and_tells_what_moved(run: Any, tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    assert run(before)[0] == 0
    whole = json.loads(before.read_text())
    assert list(whole["pairs"]) == ["small/default", "small/minmax"]
    default, minmax = whole["pairs"].values()  # their rounding differs, what they round to does not
    assert default["numbers"] == minmax["numbers"] and default["plan"] == minmax["plan"]
    assert default["constants"] != minmax["constants"] and default["artifacts"] != minmax["artifacts"]

    half = copy.deepcopy(whole)
    del half["pairs"]["small/minmax"]  # as an interrupted run leaves it
    after.write_text(json.dumps(half))
    code, said = run(after, "--against", before)
    assert code == 0 and "small/default:" not in said and "small/minmax:" in said, said
    assert "nothing moved in 2 pairs" in said
    assert json.loads(after.read_text()) == whole

    other = copy.deepcopy(whole)
    other["pairs"]["small/default"]["numbers"] = "0"
    other["pairs"]["small/minmax"]["artifacts"]["litert"] = "0"
    before.write_text(json.dumps(other))
    assert run(after, "--against", before) == (1, "small/default: numbers\nsmall/minmax: litert\n")
    del other["pairs"]["small/default"]
    before.write_text(json.dumps(other))
    assert run(after, "--against", before) == (1, "small/default: only after\nsmall/minmax: litert\n")

    after.write_text(json.dumps({**whole, "code": "0"}))
    code, said = run(after)
    assert code == 2 and "was recorded by other code" in said and "Traceback" not in said


def test_what_learns_is_recorded_short_under_a_name_that_tells_it(
    record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, frames = tmp_path / "short.json", list[int]()
    quantize = api.quantize
    monkeypatch.setattr(
        api, "quantize", lambda task, **o: (frames.append(len(list(task.calibration()))), quantize(task, **o))[1]
    )
    options = ["--network", "small", "--recipe", "lidar-ptq", "--recipe", "minmax", "--to", "litert", "--frames", "2"]
    settings = ["--set", "round.solver=squant", "--set", "reconstruct.steps=3"]
    monkeypatch.setattr("sys.argv", ["record.py", str(path), *options, *settings])
    assert record.main() == 0
    told = [
        "small/lidar-ptq, round.solver=squant, reconstruct.steps=3, 2 frames",
        "small/minmax, round.solver=squant, 2 frames",
    ]
    assert list(json.loads(path.read_text())["pairs"]) == told and frames == [2, 2]


def test_the_smallest_change_moves_its_own_hash_alone(record: Any) -> None:
    model = api.quantize(record.small(), recipe="minmax")
    kept = record.resolved(model)
    assert record.resolved(model) == kept

    def differing(changed: Any) -> list[str]:
        return [part for part, told in record.resolved(changed).items() if told != kept[part]]

    key, qparams = next(iter(model.qparams.items()))
    nearby = dataclasses.replace(qparams, scale=(math.nextafter(qparams.scale[0], 1.0),))
    assert differing(dataclasses.replace(model, qparams={**model.qparams, key: nearby})) == ["numbers"]
    layer = next(iter(model.plan.layers))
    plan = dataclasses.replace(model.plan, layers={**model.plan.layers, layer: "fp32"})
    assert differing(dataclasses.replace(model, plan=plan)) == ["plan"]
    codes = next(
        t for t in (*model.program.state_dict.values(), *model.program.constants.values()) if t.dtype == torch.int8
    )
    codes.view(-1)[0] ^= 1
    assert differing(model) == ["constants"]


def test_each_network_is_a_task_and_each_recipe_that_fits_applies(record: Any) -> None:
    fitting = {
        name: [r.name for r in record.RECIPES.values() if record.applies(r, make())]
        for name, make in record.NETWORKS.items()
    }
    everything = list(record.RECIPES)
    unguided = [name for name in everything if name != "lidar-ptq"]
    guided = {"small", "pointpillars", "centerpoint-pillar"}
    assert fitting == {name: everything if name in guided else unguided for name in record.NETWORKS}
