"""Recipes as people write and change them, and plans that hold them: what goes in is what is done, and what comes back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from networks import InvertedResidual, inputs, seeded
from torch import Tensor, nn
from typer.testing import CliRunner

from edgeq import api
from edgeq.calib import written
from edgeq.calib.recipes import RECIPES, recipe
from edgeq.calib.solvers import names as solvers
from edgeq.calib.steps import kind
from edgeq.calib.steps import names as steps
from edgeq.calib.written import changed, read, toml
from edgeq.cli import app
from edgeq.graph.package import QuantizedModel, dump_plan, load, load_plan
from edgeq.spec import EdgeqError, QuantPlan
from edgeq.task import Task

OLD = Path(__file__).parent / "old_model"  # as edgeq wrote it when plans knew recipes by name alone


def task(batches: int = 4) -> Task:
    network = seeded(InvertedResidual)
    data = [inputs(InvertedResidual, i) for i in range(batches)]
    return Task("net", lambda: network, lambda: inputs(InvertedResidual), (lambda: data) if batches else None)


def constants(model: QuantizedModel) -> dict[str, bytes]:
    held = {**model.program.state_dict, **model.program.constants}
    return {name: t.detach().numpy().tobytes() for name, t in held.items() if isinstance(t, Tensor)}


# ---------------------------------------------------------------- as people write them


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back_from_its_own_toml_and_from_a_plan(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(toml(recipe(name)))
    assert read(file) == recipe(name)
    plan = QuantPlan("portable", name, {"a/conv2d": "w8a8"}, steps=written.written(recipe(name)))
    (tmp_path / "plan.json").write_text(dump_plan(plan))
    again = load_plan(tmp_path / "plan.json")
    assert again == plan and written.planned(again, "plan.json") is recipe(name)


def test_a_changed_recipe_is_stored_whole_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = api.quantize(
        task(),
        settings=("round.solver=gptq", "ranges.method=percentile:99.9"),
        precision="w4a8",
        target="simulated",
        output=out,
    )
    assert first.plan.recipe == "default, ranges.method=percentile:99.9, round.solver=gptq"
    second = api.quantize(task(), plan=out / "plan.json")
    assert constants(second) == constants(first) and second.plan == load(out).plan
    assert constants(api.quantize(task(), precision="w4a8", target="simulated")) != constants(first)
    assert second.qparams != api.quantize(task(), precision="w4a8", target="simulated").qparams


def test_the_name_of_a_recipe_tells_what_was_changed_by_hand_too() -> None:
    plan = QuantPlan("portable", "default, round.solver=gptq", {}, steps=written.written(recipe("default")))
    assert written.planned(plan, "plan.json") is recipe("default")
    edited = [{**step, "solver": "nearest"} if step["step"] == "round" else step for step in plan.steps]
    again = dataclasses.replace(plan, steps=tuple(edited))
    assert written.planned(again, "plan.json").name == "default, round.solver=nearest"
    shorter = dataclasses.replace(plan, steps=plan.steps[:2])
    assert written.planned(shorter, "plan.json").name == "default, changed"


def test_a_toml_file_is_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "quick.toml"
    file.write_text(
        '[[steps]]\nstep = "ranges"\n[[steps]]\nstep = "scales"\n[[steps]]\nstep = "round"\nsolver = "squant"\n'
    )
    model = api.quantize(task(), recipe=file)
    assert model.plan.recipe == "quick" and constants(model) == constants(api.quantize(task(), recipe="default"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = 3", "steps is a whole number instead of a list"),
        ("[[steps]]\nsolver = 'gptq'", "has no name"),
        ("[[steps]]\nstep = 'rounding'", "unknown step 'rounding': use correct, ends, equalise"),
        ("[[steps]]\nstep = 'round'\nsolve = 'gptq'", "solve is no field"),
        ("[[steps]]\nstep = 'round'\nsolver = 'magic'", "unknown solver 'magic'"),
        ("[[steps]]\nstep = 'reconstruct'\nextent = 'house'", "extent is 'house'"),
        (
            "[[steps]]\nstep = 'reconstruct'\nobjectives = ['mse', 'magic']",
            "unknown objective 'magic': use fisher, mse, tgpl",
        ),
        ("[[steps]]\nstep = 'reconstruct'\nobjectives = ['mse:2']", "objective 'mse' takes no option"),
        ("[[steps]]\nstep = 'reconstruct'\nobjectives = []", "there is no objective; use one or more of .*mse, tgpl"),
        ("[[steps]]\nstep = 'reconstruct'\nsteps = 0", "0 steps"),
        ("[[steps]]\nstep = 'search'\nleast = 'some'", "least is a string instead of a number"),
        ("[[steps]]\nstep = 'scales'\nmethod = 'entropy'", "not one of minmax, mse"),
        ("[[steps]]\nstep = 'ends'\nprecision = 'w99'", "unknown precision 'w99'"),
        ("steps = []", "at least one step"),
        ("steps = [", "not valid TOML"),
    ],
)
def test_what_no_recipe_says_is_refused_before_anything_runs(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(EdgeqError, match=words) as caught:
        api.quantize(task(), recipe=file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("solver=gptq", r"write it as STEP\.OPTION=VALUE"),
        ("roun.solver=gptq", "no step 'roun'; it has ranges, scales, round"),
        ("round.slover=gptq", "no option 'slover'; it has solver, start, balanced"),
        ("round.balanced=perhaps", "balanced is a string instead of true or false"),
        ("round.start=gptq", "reads data itself"),
        ("ranges.method=percentile:20", "a percentage above 50"),
    ],
)
def test_settings_that_mean_nothing_are_named(setting: str, words: str) -> None:
    with pytest.raises(EdgeqError, match=words):
        changed(recipe("default"), (setting,))


def test_settings_have_the_types_of_their_options() -> None:
    made = changed(
        recipe("lidar-ptq"),
        (
            "reconstruct.steps=7",
            "reconstruct.objectives=mse",
            "round.balanced=false",
            "search.least=0.5",
            "ends.precision=w6a8",
        ),
    )
    found = {each["step"]: each for each in written.written(made)}
    assert (found["reconstruct"]["steps"], found["reconstruct"]["objectives"]) == (7, ["mse"])
    assert (found["round"]["balanced"], found["search"]["least"], found["ends"]["precision"]) == (False, 0.5, "w6a8")
    assert changed(recipe("default"), ("round.solver=squant",)) is recipe("default"), "nothing was changed"


def test_the_command_prints_what_it_reads(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["recipes", "lidar-ptq"])
    (tmp_path / "a.toml").write_text(printed.stdout)
    assert printed.exit_code == 0 and read(tmp_path / "a.toml") == recipe("lidar-ptq")
    listed = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)
    assert listed.keys() == RECIPES.keys()
    assert listed["lidar-ptq"]["needs"] == ["calibration()", "positives()"]
    assert listed["minmax"]["needs"] == ["calibration(), but for weights alone"]


def test_a_step_and_a_solver_are_files() -> None:
    for name in steps():
        assert dataclasses.is_dataclass(kind(name)) and kind(name)() is not None
    assert {"adaround", "flexround", "gptq", "nearest", "quantease", "squant"} <= set(solvers())


# ---------------------------------------------------------------- plans


def test_a_plan_of_exceptions_has_a_default_and_patterns() -> None:
    plan = QuantPlan("simulated", "minmax", {"*": "w6a6", "*/conv2d": "w4a8", "*depthwise*": "fp32"}, default="w8a8")
    model = api.quantize(task(), plan=plan)
    kinds = {key.rpartition("/")[2].split("#")[0]: name for key, name in model.plan.layers.items()}
    assert kinds["conv2d"] == "w4a8" and kinds["depthwise_conv2d"] == "fp32" and kinds["add"] == "w6a6"
    assert model.plan.default is None and all("*" not in key for key in model.plan.layers)
    alone = api.quantize(task(), plan=QuantPlan("simulated", "minmax", {}, default="w4a8"))
    assert set(alone.plan.layers.values()) == {"w4a8"}


@pytest.mark.parametrize(
    ("line", "precision", "words"),
    [
        ("deccoder.*", "fp32", "unknown layer 'deccoder"),
        ("ad[d]", "w8", "asks for w8"),
        ("*", "w99", "unknown precision"),
    ],
)
def test_lines_that_say_nothing_are_refused(line: str, precision: str, words: str) -> None:
    with pytest.raises(EdgeqError, match=words):
        api.quantize(task(), plan=QuantPlan("portable", "default", {line: precision}))


def test_an_old_plan_of_a_person_still_means_what_it_says() -> None:
    plan = load_plan(OLD / "plan.json")
    assert (plan.recipe, plan.steps, plan.layers) == ("default", (), {"linear": "w8a8"})


@pytest.mark.parametrize("name", [None, "digits.py"])
def test_an_old_folder_is_refused_with_the_command_to_run(name: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    if name is not None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "task": name}))
    for verb in (["export", str(folder), "--to", "litert"], ["verify", str(folder)], ["report", str(folder)]):
        result = CliRunner().invoke(app, verb)
        said = str(result.exception) if result.exception else result.output
        assert f"run edgeq quantize {name or 'TASK.py'} -o {folder} again" in said and "\n" not in said.strip()


# ---------------------------------------------------------------- data that nobody needs


class Shared(nn.Module):
    """Two layers that read one input."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.many = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, 3, 8, 8] → twice [1, 4, 8, 8]."""
        return self.few(x), self.many(x)


@pytest.mark.parametrize("order", [("few", "many"), ("many", "few")])
def test_an_input_that_two_layers_read_has_the_bits_of_the_wider_one(order: tuple[str, str]) -> None:
    plan = QuantPlan("simulated", "minmax", {f"{order[0]}/conv2d": "w8a4", f"{order[1]}/conv2d": "w8a8"})
    batches = [(torch.randn(1, 3, 8, 8),)]
    model = api.quantize(Shared().eval(), example_inputs=batches[0], calibration=batches, plan=plan)
    assert (model.qparams["input x"].qmin, model.qparams["input x"].qmax) == (-128, 127)


@pytest.mark.parametrize("precision", ["w8", "fp32"])
def test_weights_alone_need_no_data(precision: str, tmp_path: Path) -> None:
    network = seeded(InvertedResidual)
    without = api.quantize(task(0), precision=precision, target="simulated", output=tmp_path / "a")
    beside = api.quantize(task(), precision=precision, target="simulated")
    assert constants(without) == constants(beside)
    x = inputs(InvertedResidual, 9)
    with torch.no_grad():
        wanted = network(*x)
    wanted = wanted if isinstance(wanted, Tensor) else wanted[0]
    error = (load(tmp_path / "a").qdq(x)[0] - wanted).square().sum() / wanted.square().sum()
    assert float(error) < (1e-9 if precision == "fp32" else 1e-3)


@pytest.mark.parametrize(
    ("recipe", "precision"), [("default", "w8a8"), ("gptq", "w8"), ("dfq", "w8"), ("adaround", "w8")]
)
def test_what_needs_data_says_so_before_a_batch_is_asked_for(recipe: str, precision: str) -> None:
    with pytest.raises(EdgeqError, match=f"recipe '{recipe}' needs calibration batches: add calibration"):
        api.quantize(task(0), recipe=recipe, precision=precision, target="simulated")


def test_no_batch_is_read_where_positives_are_missing() -> None:
    asked = []

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for i in range(3):
            asked.append(i)
            yield inputs(InvertedResidual, i)

    made = dataclasses.replace(task(), calibration=batches)
    with pytest.raises(EdgeqError, match="positives"):
        api.quantize(made, recipe="lidar-ptq")
    assert len(asked) <= 1, "the first one alone, with which the network was confirmed"
